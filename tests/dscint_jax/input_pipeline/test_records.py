import tracemalloc

import numpy as np
import pytest

from dscint_jax.input_pipeline import HeldImages, load_split, sum_pool
from dscint_jax.input_pipeline.records import read_columns


def test_sum_pool_keeps_every_count():
    counts = np.random.default_rng(0).integers(0, 65536, (32, 16, 1)).astype(np.uint16)
    pooled = sum_pool(counts, 8)
    assert pooled.shape == (4, 2, 1)
    assert pooled.sum() == counts.sum(dtype=np.int64)
    assert pooled[1, 0, 0] == counts[8:16, :8].sum(dtype=np.int64)


def test_sum_pool_sums_each_view_for_itself():
    counts = np.random.default_rng(1).integers(0, 65536, (2, 16, 8, 1)).astype(np.uint16)
    np.testing.assert_array_equal(sum_pool(counts, 4), [sum_pool(view, 4) for view in counts])


def _load(data_dir, split="train", pool=16, cache_gib=1.0):
    return load_split(data_dir, split, pool=pool, cache_gib=cache_gib)


def _load_studies(studies_dir, split="train", pool=16, cache_gib=1.0):
    return load_split(studies_dir, split, pool=pool, cache_gib=cache_gib, records="studies")


def test_memory_and_disk_give_the_same_batches(data_dir):
    indices = np.array([3, 0, 5])
    cached = _load(data_dir, cache_gib=1.0).read(indices)
    uncached = _load(data_dir, cache_gib=0.0).read(indices)
    assert cached.keys() == uncached.keys()
    for name, values in cached.items():
        np.testing.assert_array_equal(values, uncached[name], err_msg=name)


def test_studies_from_memory_and_disk_are_the_same(studies_dir):
    indices = np.array([3, 0, 5])
    cached, uncached = (_load_studies(studies_dir, cache_gib=g).read(indices) for g in (1.0, 0.0))
    for name, values in cached.items():
        np.testing.assert_array_equal(values, uncached[name], err_msg=name)


def test_pooling_scales_with_the_block_so_that_brightness_stays(data_dir):
    fine, coarse = (_load(data_dir, pool=pool).read(np.arange(4)) for pool in (2, 16))
    assert fine["counts"].sum() == coarse["counts"].sum()
    mean = lambda batch: batch["counts"].mean((1, 2, 3)) / batch["scale"]  # noqa: E731
    np.testing.assert_allclose(mean(fine), mean(coarse), rtol=1e-5)


def test_keys_are_those_of_the_images(data_dir, studies_dir):
    for load, folder in ((_load, data_dir), (_load_studies, studies_dir)):
        held, on_disk = (load(folder, cache_gib=gib).images for gib in (1.0, 0.0))
        whole = held.read(np.arange(len(held)))
        for images in (held, on_disk):
            for name, values in images.keys().items():
                np.testing.assert_array_equal(values, whole[name], err_msg=name)


class _Made(HeldImages):
    """Images with the given largest counts."""

    def __init__(self, largest):
        super().__init__({})
        self._largest = np.array(largest)

    def read(self, indices):
        counts = np.tile(self._largest[indices].reshape(-1, 1, 1, 1), (1, 4, 2, 1))
        return {"counts": counts.astype(np.int32), "label": indices}


@pytest.mark.parametrize(
    "largest, kind", [(255, np.uint8), (256, np.uint16), (65535, np.uint16), (65536, np.int32)]
)
@pytest.mark.parametrize("place", [0, 70, 199])
def test_counts_are_kept_in_the_smallest_type_that_holds_them(largest, kind, place):
    counts = np.random.default_rng(place).integers(0, 256, 200)
    counts[place] = largest
    columns = read_columns(_Made(counts), np.arange(200))
    assert columns["counts"].dtype == kind
    np.testing.assert_array_equal(columns["counts"][:, 3, 1, 0], counts)
    np.testing.assert_array_equal(columns["label"], np.arange(200))


def test_images_in_memory_do_not_cost_double_the_memory_while_they_are_read():
    class Large(HeldImages):
        def read(self, indices):
            return {"counts": np.full((len(indices), 256, 64, 1), 9, np.int32)}

    tracemalloc.start()
    columns = read_columns(Large({}), np.arange(2000))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1.5 * columns["counts"].nbytes
