import dataclasses
import itertools
import threading
import time
from contextlib import closing

import numpy as np
import pytest

from dscint_jax.input_pipeline import (
    HeldImages,
    evaluation_batches,
    host_batches,
    index_batches,
    load_split,
    training_feed,
)
from dscint_jax.mesh import data_mesh


def _load(data_dir, split="train", pool=16, cache_gib=1.0):
    return load_split(data_dir, split, pool=pool, cache_gib=cache_gib)


def _load_studies(studies_dir, split="train", pool=16, cache_gib=1.0):
    return load_split(studies_dir, split, pool=pool, cache_gib=cache_gib, records="studies")


def test_batches_resumed_at_any_step_are_those_of_an_undisturbed_run(data_dir):
    images = _load(data_dir)
    order = index_batches(len(images), batch_size=8, seed=1)
    start = lambda step: host_batches(images, order=order, start=step)  # noqa: E731
    whole = start(0)
    undisturbed = [next(whole) for _ in range(7)]
    for step in range(7):
        for name, values in next(start(step)).items():
            np.testing.assert_array_equal(values, undisturbed[step][name], err_msg=name)


@pytest.mark.parametrize("batch_size", [3, 8, 1000])
def test_evaluation_sees_every_image_once_and_masks_the_padding(data_dir, batch_size):
    images = _load(data_dir)
    batches = list(evaluation_batches(images, batch_size=batch_size))
    assert {len(batch["label"]) for batch in batches} == {batch_size}
    assert sum(batch["mask"].sum() for batch in batches) == len(images)
    seen = np.concatenate([batch["image_id"][batch["mask"]] for batch in batches])
    assert len(set(seen)) == len(images)
    assert all((batch["scale"] > 0).all() for batch in batches)


def test_evaluation_sees_every_study_once_and_pads_finite_pairs(studies_dir):
    images = _load_studies(studies_dir)
    batches = list(evaluation_batches(images, batch_size=8))
    seen = np.concatenate([batch["image_id"][batch["mask"]] for batch in batches])
    assert len(seen) == len(set(seen)) == len(images)
    assert {batch["counts"].shape for batch in batches} == {(8, 2, 64, 16, 1)}
    assert {batch["scale"].shape for batch in batches} == {(8, 2)}
    assert all((batch["scale"] > 0).all() for batch in batches)


def test_process_reads_only_its_rows_of_every_batch(data_dir):
    images = _load(data_dir)
    order = index_batches(len(images), batch_size=8, seed=1)
    reader = host_batches(images, order=order, rows=slice(2, 5), threads=2, start=4)
    for step in range(4, 8):
        expected = images.read(order[step][2:5])
        for name, values in next(reader).items():
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


class _Torn(HeldImages):
    """Images of which one cannot be read."""

    def __init__(self, images, torn):
        super().__init__(images.read(np.arange(len(images))))
        self._torn = torn

    def read(self, indices):
        if self._torn in indices:
            raise OSError("the disk is gone")
        return super().read(indices)


@pytest.mark.parametrize("threads", [1, 3])
def test_image_that_cannot_be_read_ends_the_feed_with_its_error(data_dir, threads):
    images = _load(data_dir)
    order = index_batches(len(images), batch_size=8, seed=1)
    torn = dataclasses.replace(images, images=_Torn(images.images, order[2][5]))
    options = {"order": order, "mesh": data_mesh(), "cache": "host", "threads": threads}
    with (
        closing(training_feed(torn, start=0, **options)) as feed,
        pytest.raises(OSError, match=r"the disk is gone"),
    ):
        list(itertools.islice(feed, 4))
    assert not _threads()


@pytest.mark.parametrize("cache", ["device", "host"])
def test_closed_feed_gives_nothing_more_and_leaves_no_thread(data_dir, cache):
    images = _load(data_dir)
    order = index_batches(len(images), batch_size=8, seed=1)
    feed = training_feed(images, order=order, mesh=data_mesh(), cache=cache, start=0)
    next(feed)
    feed.close()
    feed.close()
    assert next(feed, None) is None
    assert not _threads()


def _threads(patience_s=5.0):
    """Threads of Grain that still run; those about to end get the time to."""
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        found = [t.name for t in threading.enumerate() if t.name.startswith("grain-prefetch")]
        if not found:
            break
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("cache", ["device", "host"])
def test_next_batch_is_on_its_way_before_a_step_takes_the_one_before(data_dir, cache):
    images = _load(data_dir)
    steps = []
    order = index_batches(len(images), batch_size=8, seed=1)
    order = order.map(lambda indices: steps.append(1) or indices)
    feed = training_feed(images, order=order, mesh=data_mesh(), cache=cache, start=0, threads=1)
    with closing(feed):
        next(feed)
        assert len(steps) >= 2
        # The look-ahead is bounded: two batches, and on the host what threads read ahead.
        time.sleep(0.2)
        assert len(steps) <= 2 + (cache == "host") * 4
