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
from dscint_jax.input_pipeline.order import training_order
from dscint_jax.input_pipeline.placement import DEVICE
from dscint_jax.input_pipeline.records import COPY, DEVICE_FIELDS, HostBatch
from dscint_jax.input_pipeline.scintigrams import Scintigrams
from dscint_jax.mesh import DeviceBatch, local_rows, shard_batch

LOOK_AHEAD = 2
"""Batches on the devices: the one that a step takes, and the next."""


class TrainingFeed(Iterator[DeviceBatch]):
    """Endless batches on the devices; closed, it gives no more and what it held is free.

    Args:
      batches: the batches.
      close: ends what they are read by.
    """

    def __init__(self, batches: Iterable[DeviceBatch], close: Callable[[], None] = lambda: None):
        self._batches, self._close = _ahead(batches), close

    def __next__(self) -> DeviceBatch:
        return next(self._batches)

    def close(self) -> None:
        """Ends all reading; may be called again."""
        self._batches.close()
        self._close()

    def __enter__(self) -> "TrainingFeed":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def training_feed(
    images: Scintigrams,
    *,
    order: grain.MapDataset,
    mesh: Mesh,
    cache: str,
    start: int,
    threads: int = 2,
) -> TrainingFeed:
    """Endless batches on the devices, beginning with the one of step `start`.

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
        return TrainingFeed(held.batch(indices) for indices in _from(order, start))
    rows = local_rows(len(np.asarray(order[0])), mesh)
    batches = host_batches(images, order=order, rows=rows, threads=threads, start=start)
    on_devices = (shard_batch(device_fields(batch), mesh) for batch in batches)
    # Older versions of Grain end their threads when nothing refers to them any more.
    return TrainingFeed(on_devices, getattr(batches, "close", lambda: None))


def training_batches(
    images: Scintigrams, *, batch_size: int, seed: int, start: int, threads: int = 2
) -> Iterator[HostBatch]:
    """Endless shuffled batches on the host, beginning with the one of step `start`.

    Raises:
      UserError: the split is smaller than one batch.
    """
    order = training_order(images, batch_size=batch_size, seed=seed)
    return host_batches(images, order=order, rows=slice(None), threads=threads, start=start)


def host_batches(
    images: Scintigrams, *, order: grain.MapDataset, rows: slice, threads: int, start: int
) -> Iterator[HostBatch]:
    """Some rows of every batch, beginning with the one of step `start`, read ahead by threads."""
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
        yield {name: _pad(values, missing) for name, values in batch.items()}


def device_fields(batch: HostBatch) -> HostBatch:
    """What of a batch the steps need."""
    return {name: batch[name] for name in (*DEVICE_FIELDS, COPY) if name in batch}


def _from(order: grain.MapDataset, start: int) -> Iterator[np.ndarray]:
    for step in range(start, len(order)):
        # Grain's hints have None for what a filter leaves out, and an order has no filter.
        yield np.asarray(order[step])


def _ahead(batches: Iterable[DeviceBatch]) -> Generator[DeviceBatch, None, None]:
    """The same batches, each begun before the one before it is taken.

    Copies to devices and gathers on them run beside the step, so that no thread is needed.
    """
    waiting = collections.deque()
    for batch in batches:
        waiting.append(batch)
        if len(waiting) == LOOK_AHEAD:
            yield waiting.popleft()
    yield from waiting


def _pad(values: np.ndarray, missing: int) -> np.ndarray:
    if not missing:
        return values
    # A scale of 1 keeps the padding finite; all else is zero, False or empty.
    filler = np.ones if values.dtype == np.float32 else np.zeros
    return np.concatenate([values, filler((missing, *values.shape[1:]), values.dtype)])
