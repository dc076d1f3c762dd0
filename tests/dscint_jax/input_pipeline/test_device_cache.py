import dataclasses
import os
import socket
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from dscint_jax.input_pipeline import (
    DeviceCache,
    HeldImages,
    Sample,
    Scintigrams,
    device_fields,
    index_batches,
    load_split,
    training_feed,
)
from dscint_jax.mesh import shard_batch

PROCESS = Path(__file__).parent / "one_of_two_processes.py"


def make_mesh(devices):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


def assert_same_batches(first, second):
    assert first.keys() == second.keys()
    for name in first:
        a, b = first[name], second[name]
        assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding), name
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes(), name


@pytest.mark.parametrize(
    "devices", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 4)), 8]
)
@pytest.mark.parametrize("kind", ["images", "copies", "sample", "studies"])
def test_device_and_host_feed_give_the_same_batches_from_any_start(
    devices, kind, make_data_set, studies_dir
):
    if kind == "studies":
        images = load_split(studies_dir, "train", pool=16, cache_gib=1.0, records="studies")
    else:
        # Not a multiple of the devices.
        folder = make_data_set(train=19, validation=3, test=3)
        copies = 3 if kind == "copies" else None
        sample = Sample(0.6, seed=1) if kind == "sample" else None
        images = load_split(folder, "train", pool=1, cache_gib=0.0, copies=copies, sample=sample)
    mesh, order = make_mesh(devices), index_batches(len(images), batch_size=8, seed=5)
    for start in (0, 1, 7):
        options = {"order": order, "mesh": mesh, "start": start}
        with (
            closing(training_feed(images, cache="device", **options)) as on_devices,
            closing(training_feed(images, cache="host", **options)) as on_host,
        ):
            for step in range(start, start + 4):
                batch = next(on_devices)
                assert ("copy" in batch) == (kind == "copies")
                assert_same_batches(batch, next(on_host))
                host = device_fields(images.read(order[step]))
                assert_same_batches(batch, shard_batch(host, mesh))


def _made(counts, scale=None):
    count = len(counts)
    columns = {
        "counts": np.asarray(counts, np.int32).reshape(count, 1, 1, 1),
        "scale": np.ones(count, np.float32) if scale is None else scale,
        "label": np.arange(count, dtype=np.int32) % 4,
        "mask": np.ones(count, bool),
        **{name: np.full(count, "") for name in ("image_id", "patient_key", "view")},
    }
    return Scintigrams("train", tuple("abcd"), (count, 0, 0, 0), "made", HeldImages(columns))


@pytest.mark.parametrize("devices", [1, 8])
def test_scales_keep_every_bit(devices):
    bits = np.random.default_rng(3).integers(0, 2**32, 64, dtype=np.uint32)
    bits[:4] = (0x80000000, 1, 0x7FC12345, 0xFF800000)
    images, mesh = _made(np.arange(64), bits.view(np.float32)), make_mesh(devices)
    gathered = DeviceCache(images, mesh).batch(np.arange(64))["scale"]
    assert np.asarray(gathered).view(np.uint32).tolist() == bits.tolist()


@pytest.mark.parametrize("largest, size", [(255, 1), (65535, 2), (65536, 4), (2**31 - 1, 4)])
def test_counts_lie_on_the_devices_in_the_smallest_type_and_come_out_whole(largest, size):
    counts = np.random.default_rng(largest).integers(0, 256, 20)
    counts[13] = largest
    cache = DeviceCache(_made(counts), make_mesh(8))
    # 20 images on 8 devices, 3 on each; a scale, a label and a mask besides.
    taken = sum(column.nbytes for column in cache._columns.values())
    assert taken == 24 * (size + 4 + 4 + 1)
    batch = cache.batch(np.arange(16))
    assert batch["counts"].dtype == np.int32
    np.testing.assert_array_equal(batch["counts"][:, 0, 0, 0], counts[:16])


def test_split_of_fewer_images_than_devices_is_gathered():
    batch = DeviceCache(_made([7, 300, 2]), make_mesh(8)).batch(np.array([2, 1, 0, 1, 1, 2, 0, 0]))
    assert batch["counts"].ravel().tolist() == [2, 300, 7, 300, 300, 2, 7, 7]


def test_every_image_is_read_once(make_data_set):
    images = load_split(
        make_data_set(train=19, validation=3, test=3), "train", pool=1, cache_gib=1.0
    )
    seen = []

    class Recorded(HeldImages):
        def read(self, indices):
            seen.extend(indices.tolist())
            return super().read(indices)

    recorded = Recorded(images.read(np.arange(19)))
    DeviceCache(dataclasses.replace(images, images=recorded), make_mesh(4))
    assert seen == [*range(19)]


def test_batches_are_gathered_by_one_compiled_function():
    cache = DeviceCache(_made(np.arange(24)), make_mesh(4))
    for start in range(5):
        cache.batch(np.arange(start, start + 8))
    assert cache._gather._cache_size() == 1


@pytest.mark.slow
def test_two_processes_gather_the_same_batches_and_read_only_their_own(make_data_set):
    folder = make_data_set(train=19, validation=3, test=3)
    with socket.socket() as listener:
        listener.bind(("localhost", 0))
        port = listener.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "2",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(PROCESS), str(port), str(number), str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert ["same batches" in output for output in outputs] == [True, True], outputs
