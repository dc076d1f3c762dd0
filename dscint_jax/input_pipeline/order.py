"""Which images a training step has: a pure function of (seed, step), at random access.

In: how many images there are, and their labels where classes are balanced. Out: a Grain data set
whose element i is the indices of step i's batch, so that a resumed run needs the step number and
nothing else, and a batch can be named afterwards.
"""

import functools
import sys
import zlib
from collections.abc import Callable

import grain
import numpy as np
from jaxtyping import Int

from dscint_jax.config import BALANCED, SHUFFLED
from dscint_jax.input_pipeline.records import Progress, no_progress
from dscint_jax.input_pipeline.scintigrams import Scintigrams
from tfds_builder.commandline.errors import UserError


def training_order(
    images: Scintigrams,
    *,
    batch_size: int,
    seed: int,
    sampling: str = SHUFFLED,
    progress: Progress = no_progress,
) -> grain.MapDataset:
    """The indices of every training batch of a split; element i is the batch of step i.

    Args:
      images: the split.
      batch_size: images a step, over all processes.
      seed: of the run.
      sampling: as for `index_batches`.
      progress: told how many of how many labels were read, where they are needed and were not.

    Raises:
      UserError: the split is smaller than one batch.
    """
    check_batches(images, batch_size=batch_size)
    labels = images.keys(progress)["label"] if sampling == BALANCED else None
    return index_batches(
        len(images), batch_size=batch_size, seed=seed, sampling=sampling, labels=labels
    )


def check_batches(images: Scintigrams, *, batch_size: int) -> None:
    """Raises UserError unless the split has at least one batch."""
    if len(images) < batch_size:
        raise UserError(
            f"config.batch_size {batch_size} is more than the {len(images)} training {images.noun}"
        )


def index_batches(
    count: int,
    *,
    batch_size: int,
    seed: int,
    sampling: str = SHUFFLED,
    labels: Int[np.ndarray, " image"] | None = None,
) -> grain.MapDataset:
    """The indices of every training batch; element i is the batch of step i.

    Args:
      count: images.
      batch_size: images a step.
      seed: less than 2**32.
      sampling: 'shuffled': every image once an epoch, each epoch in a new order; an epoch's last,
        incomplete batch is left out. 'balanced': the classes take turns, from one batch to the
        next, so that none is ever more than one image ahead of another; every image of a class
        comes once before any comes again. A class without images is left out.
      labels: the class of each image; needed by 'balanced' alone.
    """
    if sampling == BALANCED:
        if labels is None:
            raise ValueError("sampling 'balanced' needs labels")
        batch = _balanced(labels, batch_size=batch_size, seed=seed)
        return grain.MapDataset.range(sys.maxsize).map(batch)
    # Batched before repeated, so that no batch straddles two epochs.
    indices = grain.MapDataset.range(count).shuffle(seed=seed)
    return indices.batch(batch_size, drop_remainder=True).repeat()


def _balanced(
    labels: Int[np.ndarray, " image"], *, batch_size: int, seed: int
) -> Callable[[int], Int[np.ndarray, " batch"]]:
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]

    # A batch takes from one round of a class, or from two.
    @functools.lru_cache(maxsize=2 * len(members))
    def shuffled(turn: int, again: int) -> Int[np.ndarray, " image"]:
        return members[turn][_order("images", len(members[turn]), seed, turn, again)]

    def batch(step: int) -> Int[np.ndarray, "batch"]:
        rounds, turns = np.divmod(step * batch_size + np.arange(batch_size), len(members))
        chosen = np.empty(batch_size, np.int64)
        for turn, images in enumerate(members):
            again, place = np.divmod(rounds[turns == turn], len(images))
            drawn = [shuffled(turn, int(n))[p] for n, p in zip(again, place, strict=True)]
            chosen[turns == turn] = drawn
        # Mixed, so that no class has a place in the batch of its own.
        return chosen[_order("rows", batch_size, seed, step)]

    return batch


def _order(stream: str, count: int, *seeds: int) -> Int[np.ndarray, " count"]:
    """A random order; from raw bits, whose stream NumPy promises to keep."""
    bits = np.random.PCG64([zlib.crc32(stream.encode()), *seeds])
    return np.argsort(bits.random_raw(count), kind="stable")
