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
from dscint_jax.input_pipeline.protocol import random_order
from dscint_jax.input_pipeline.scintigrams import Scintigrams
from tfds_builder.commandline.errors import UserError


def training_order(
    images: Scintigrams,
    *,
    batch_size: int,
    seed: int,
    sampling: str = SHUFFLED,
) -> grain.MapDataset:
    """The indices of every training batch of a split, as `index_batches` gives them.

    `sampling` is `config.data.sampling`.

    Raises:
      UserError: the split is smaller than one batch.
    """
    if len(images) < batch_size:
        raise UserError(
            f"config.batch_size {batch_size} is more than the {len(images)} training {images.noun}"
        )
    labels = images.keys()["label"] if sampling == BALANCED else None
    return index_batches(len(images), batch_size=batch_size, seed=seed, labels=labels)


def index_batches(
    count: int,
    *,
    batch_size: int,
    seed: int,
    labels: Int[np.ndarray, " image"] | None = None,
) -> grain.MapDataset:
    """The indices of every training batch; element i is the batch of step i.

    Shuffled, every image comes once an epoch, each epoch in a new order; an epoch's last,
    incomplete batch is left out. Balanced, the classes take turns, from one batch to the next, so
    that none is ever more than one image ahead of another; every image of a class comes once
    before any comes again. A class without images is left out.

    Args:
      count: images.
      batch_size: images a step, over all processes.
      seed: less than 2**32.
      labels: the class of each image, to be balanced by; None: they are shuffled.
    """
    if labels is not None:
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
        images = members[turn]
        return images[random_order(len(images), zlib.crc32(b"images"), seed, turn, again)]

    def batch(step: int) -> Int[np.ndarray, "batch"]:
        rounds, turns = np.divmod(step * batch_size + np.arange(batch_size), len(members))
        chosen = np.empty(batch_size, np.int64)
        for turn, images in enumerate(members):
            again, place = np.divmod(rounds[turns == turn], len(images))
            drawn = [shuffled(turn, int(n))[p] for n, p in zip(again, place, strict=True)]
            chosen[turns == turn] = drawn
        # Mixed, so that no class has a place in the batch of its own.
        return chosen[random_order(batch_size, zlib.crc32(b"rows"), seed, step)]

    return batch
