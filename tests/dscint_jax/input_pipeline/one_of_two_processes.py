"""One of two JAX processes that feed the same training: python one_of_two_processes.py PORT N DATA.

Compares the batches of the device cache with those of the host feed, and says 'same batches'.
"""

import contextlib
import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np

port, number, folder = sys.argv[1:]
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", num_processes=2, process_id=int(number))

from dscint_jax.input_pipeline import (  # noqa: E402
    HeldImages,
    index_batches,
    load_split,
    training_feed,
)
from dscint_jax.mesh import data_mesh  # noqa: E402


class Recorded(HeldImages):
    """Images that remember which of them were read."""

    def __init__(self, images):
        super().__init__(images.read(np.arange(len(images))))
        self.seen = []

    def read(self, indices):
        self.seen += indices.tolist()
        return super().read(indices)


mesh = data_mesh()
for copies in (None, 3):
    images = load_split(Path(folder), "train", pool=1, cache_gib=1.0, copies=copies)
    order = index_batches(len(images), batch_size=8, seed=5)
    batches, seen = {}, {}
    for cache in ("device", "host"):
        recorded = Recorded(images.images)
        part = dataclasses.replace(images, images=recorded)
        feed = training_feed(part, order=order, mesh=mesh, cache=cache, start=3)
        with contextlib.closing(feed):
            batches[cache] = [next(feed) for _ in range(4)]
        seen[cache] = recorded.seen
    for on_devices, on_host in zip(batches["device"], batches["host"], strict=True):
        assert on_devices.keys() == on_host.keys()
        for name in on_devices:
            a, b = on_devices[name], on_host[name]
            assert (a.shape, a.dtype, a.sharding) == (b.shape, b.dtype, b.sharding), name
            for x, y in zip(a.addressable_shards, b.addressable_shards, strict=True):
                assert np.asarray(x.data).tobytes() == np.asarray(y.data).tobytes(), name
    half = -(-len(images.images) // 4) * 2
    assert all(n // half == int(number) for n in seen["device"]), seen["device"]
    rows = slice(4 * int(number), 4 * int(number) + 4)
    wanted = {n for step in range(3, 20) for n in images.sources(order[step][rows]).tolist()}
    assert set(seen["host"]) <= wanted, seen["host"]
print("same batches")
