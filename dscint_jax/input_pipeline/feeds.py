"""Batches: without end for training, on host or devices; each image once for evaluation.

The two training feeds, from host reads and from a copy on the devices, give the same bits from any
step on.
"""

import collections
from collections.abc import Callable, Generator, Iterable, Iterator

import grain
import numpy as np
from jax.sharding import Mesh

from dscint_jax.input_pipeline.device_cache import DeviceCache
from dscint_jax.input_pipeline.placement import DEVICE
from dscint_jax.input_pipeline.records import COPY, DEVICE_FIELDS, HostBatch, padded
from dscint_jax.input_pipeline.scintigrams import Scintigrams
from dscint_jax.mesh import DeviceBatch, local_rows, shard_batch

LOOK_AHEAD = 2
"""Batches on the devices: the one that a step takes, and the next."""


def training_feed(
    images: Scintigrams,
    *,
    order: grain.MapDataset,
    mesh: Mesh,
    cache: str,
    start: int,
    threads: int = 2,
) -> Generator[DeviceBatch, None, None]:
    """Endless batches on the devices, beginning with the one of step `start`.

    Closed, it gives no more, all reading has ended, and what it held is free.

    Args:
      images: the split.
      order: which images each step has: see `training_order`.
      mesh: of the devices; each process reads the rows of its own.
      cache: 'device': the images are copied to the devices first; anything else: batches are read
        from where `images` are.
      start: steps already taken.
      threads: that read batches ahead.
    """
    if cache == DEVICE:
        held = DeviceCache(images, mesh)
        # Grain's hints have None for what a filter leaves out, and an order has no filter.
        steps = range(start, len(order))
        return _ahead(held.batch(np.asarray(order[step])) for step in steps)
    rows = local_rows(len(np.asarray(order[0])), mesh)
    batches = host_batches(images, order=order, rows=rows, threads=threads, start=start)
    on_devices = (shard_batch(device_fields(batch), mesh) for batch in batches)
    # Older versions of Grain end their threads when nothing refers to them any more.
    return _ahead(on_devices, getattr(batches, "close", lambda: None))


def host_batches(
    images: Scintigrams,
    *,
    order: grain.MapDataset,
    start: int,
    rows: slice = slice(None),
    threads: int = 2,
) -> Iterator[HostBatch]:
    """Endless batches on the host, or some rows of each, read ahead by threads.

    Arguments as for `training_feed`.
    """
    batches = order.map(lambda indices: images.read(indices[rows]))
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterator = batches.to_iter_dataset(options).__iter__()
    iterator.set_state({"next_index": start})
    return iterator


def evaluation_batches(
    images: Scintigrams, *, batch_size: int, rows: slice = slice(None)
) -> Iterator[HostBatch]:
    """Every image once, in order; the last batch is padded, and `mask` False where it is.

    `batch_size` is over all processes, of which each wants its own `rows` of every batch.
    """
    for start in range(0, len(images), batch_size):
        wanted = np.arange(start, start + batch_size)[rows]
        real = wanted[wanted < len(images)]
        # Rows of padding alone are made from an image that is masked.
        batch = images.read(real if len(real) else np.zeros(1, np.int64))
        batch["mask"] = batch["mask"] & bool(len(real))
        missing = len(wanted) - len(batch["label"])
        yield {name: padded(values, missing) for name, values in batch.items()}


def device_fields(batch: HostBatch) -> HostBatch:
    """What of a batch the steps need."""
    return {name: batch[name] for name in (*DEVICE_FIELDS, COPY) if name in batch}


def _ahead(
    batches: Iterable[DeviceBatch], close: Callable[[], None] = lambda: None
) -> Generator[DeviceBatch, None, None]:
    """The same batches, each begun before the one before it is taken; `close` ends their reading.

    Copies to devices and gathers on them run beside the step, so that no thread is needed.
    """
    waiting = collections.deque()
    try:
        for batch in batches:
            waiting.append(batch)
            if len(waiting) == LOOK_AHEAD:
                yield waiting.popleft()
        yield from waiting
    finally:
        close()
