import numpy as np
import pytest

from dscint_jax import input_pipeline
from dscint_jax.errors import DscintError
from dscint_jax.input_pipeline import (
    evaluation_batches,
    index_batches,
    load_split,
    sum_pool,
    training_batches,
)


def _load(data_dir, split="train", pool=16, cache_gib=1.0):
    return load_split(data_dir, split, pool=pool, cache_gib=cache_gib)


def test_sum_pool_keeps_every_count():
    counts = np.random.default_rng(0).integers(0, 65536, (32, 16, 1)).astype(np.uint16)
    pooled = sum_pool(counts, 8)
    assert pooled.shape == (4, 2, 1)
    assert pooled.sum() == counts.sum(dtype=np.int64)
    assert pooled[1, 0, 0] == counts[8:16, :8].sum(dtype=np.int64)


def test_every_epoch_holds_each_index_once_in_another_order():
    batches = index_batches(12, batch_size=4, seed=7)
    epochs = [np.concatenate([batches[3 * e + i] for i in range(3)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert len({epoch.tobytes() for epoch in epochs}) == 3


def test_order_is_a_function_of_seed_and_step_alone():
    first, again, other = (index_batches(50, batch_size=8, seed=seed) for seed in (3, 3, 4))
    steps = [17, 2, 9, 40]
    for step in steps:
        np.testing.assert_array_equal(first[step], again[step])
    assert any(not np.array_equal(first[step], other[step]) for step in steps)


def test_batches_resumed_at_any_step_are_those_of_an_undisturbed_run(data_dir):
    images = _load(data_dir)
    start = lambda step: training_batches(images, batch_size=8, seed=1, start=step)  # noqa: E731
    whole = start(0)
    undisturbed = [next(whole) for _ in range(7)]
    for step in range(7):
        for name, values in next(start(step)).items():
            np.testing.assert_array_equal(values, undisturbed[step][name], err_msg=name)


def test_memory_and_disk_give_the_same_batches(data_dir):
    indices = np.array([3, 0, 5])
    cached = _load(data_dir, cache_gib=1.0).read(indices)
    uncached = _load(data_dir, cache_gib=0.0).read(indices)
    assert cached.keys() == uncached.keys()
    for name, values in cached.items():
        np.testing.assert_array_equal(values, uncached[name], err_msg=name)


@pytest.mark.parametrize("batch_size", [3, 8, 1000])
def test_evaluation_sees_every_image_once_and_masks_the_padding(data_dir, batch_size):
    images = _load(data_dir)
    batches = list(evaluation_batches(images, batch_size=batch_size))
    assert {len(batch["label"]) for batch in batches} == {batch_size}
    assert sum(batch["mask"].sum() for batch in batches) == len(images)
    seen = np.concatenate([batch["image_id"][batch["mask"]] for batch in batches])
    assert len(set(seen)) == len(images)
    assert all((batch["scale"] > 0).all() for batch in batches)


def test_pooling_scales_with_the_block_so_that_brightness_stays(data_dir):
    fine, coarse = (_load(data_dir, pool=pool).read(np.arange(4)) for pool in (2, 16))
    assert fine["counts"].sum() == coarse["counts"].sum()
    mean = lambda batch: batch["counts"].mean((1, 2, 3)) / batch["scale"]  # noqa: E731
    np.testing.assert_allclose(mean(fine), mean(coarse), rtol=1e-5)


def test_class_counts_are_those_of_the_labels(data_dir):
    images = _load(data_dir)
    labels = images.read(np.arange(len(images)))["label"]
    assert tuple(np.bincount(labels, minlength=4)) == images.class_counts
    assert images.classes == ("normal", "metastasis", "arthritis", "thyroid_carcinoma")


def test_missing_data_set_is_named_with_the_command_that_builds_it(tmp_path):
    with pytest.raises(DscintError, match=rf"{tmp_path}.*tfds_builder\.build"):
        input_pipeline.open_dataset(tmp_path)


def test_unknown_split_pool_and_too_large_batch_are_named(data_dir):
    with pytest.raises(DscintError, match=r"no split 'tset'.*test"):
        _load(data_dir, split="tset")
    with pytest.raises(DscintError, match=r"pool 3 does not divide"):
        _load(data_dir, pool=3)
    with pytest.raises(DscintError, match=r"batch_size 999"):
        training_batches(_load(data_dir), batch_size=999, seed=0, start=0)
