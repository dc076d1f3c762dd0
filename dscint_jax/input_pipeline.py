"""From the TFDS data set to batches: which images, in which order, as which arrays.

An image is one view, or, from the records of `studies`, a pair of views, the anterior first.
The order of training images is a pure function of (seed, step), so a resumed run needs the step
number and nothing else. Counts stay integers: a smaller image is a sum over blocks of pixels.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import grain
import numpy as np
from jaxtyping import Int

from dscint_jax.config import STUDIES, VIEWS
from dscint_jax.errors import DscintError

DATASET = "scintigraphy"
SPLITS = ("train", "validation", "test")
FEWEST_FOLDS = 3
NO_FOLD = -1
"""What `fold` is where the data set is divided into train, validation and test."""

DEVICE_FIELDS = ("counts", "scale", "label", "mask")
IDENTITY_FIELDS = ("image_id", "patient_key", "view")

NOUNS = {VIEWS: "images", STUDIES: "studies"}
"""What the records of a configuration are called when they are counted."""

STUDY_VIEWS = ("neither", "anterior", "posterior", "both")
"""What the field `view` says of a study; its index is a bit for each view that is there."""

HostBatch = dict[str, np.ndarray]

_FOLD = re.compile(r"fold_(\d+)", re.ASCII)


def open_dataset(data_dir: Path, records: str = VIEWS) -> Any:
    """The TFDS builder of the data set under `data_dir`, read from its files alone.

    Args:
      data_dir: where the data set lies.
      records: 'views' or 'studies'; each is a data set of its own.

    Raises:
      DscintError: there is no complete data set.
    """
    # Slow to import, and not needed before data is.
    import tensorflow_datasets as tfds

    versions = sorted(
        (data_dir / DATASET / records).glob("*/dataset_info.json"),
        key=lambda path: [int(part) for part in re.findall(r"\d+", path.parent.name)],
    )
    if not versions:
        option = "" if records == VIEWS else f" --config {records}"
        raise DscintError(
            f"{data_dir} holds no data set {DATASET}/{records}; build one: python -m "
            f"tfds_builder.build --manifest MANIFEST --data_dir {data_dir}{option}"
        )
    return tfds.builder_from_directory(versions[-1].parent)


def fingerprint_of(data_dir: Path, records: str = VIEWS) -> str:
    """Identifies the data set: the same fingerprint, the same records."""
    return open_dataset(data_dir, records).info.metadata["fingerprint"]


def folds_of(names: Iterable[str]) -> tuple[str, ...]:
    """Those of a data set's splits that are folds, by number; none where it is not in folds."""
    numbers = {name: int(match[1]) for name in names if (match := _FOLD.fullmatch(name))}
    return tuple(sorted(numbers, key=numbers.__getitem__))


def parts_of(split: str, names: Iterable[str], fold: int) -> tuple[str, ...]:
    """The data set's splits that make up one split of a run.

    Of K folds, fold k is the test split, the next one (after the last, the first) the validation
    split, and the others are the training split. Elsewhere a split is itself.

    Args:
      split: the run's.
      names: of the data set's splits.
      fold: which fold to test on, from 0, or `NO_FOLD`.

    Raises:
      DscintError: `fold` does not fit the data set, or there is no such split.
    """
    names = tuple(names)
    folds = folds_of(names)
    if not folds and fold != NO_FOLD:
        raise DscintError(
            f"config.data.fold is {fold}, but the data set is divided into {', '.join(names)}, not "
            f"into folds; set --config.data.fold={NO_FOLD}"
        )
    if folds:
        _check_fold(fold, len(folds))
    known = SPLITS if folds else names
    if split not in known:
        raise DscintError(f"no split '{split}' in the data set; it has {', '.join(known)}")
    if not folds:
        return (split,)
    test, validation = folds[fold], folds[(fold + 1) % len(folds)]
    train = tuple(name for name in folds if name not in (test, validation))
    return {"train": train, "validation": (validation,), "test": (test,)}[split]


def _check_fold(fold: int, count: int) -> None:
    choice = f"--config.data.fold=0 .. {count - 1}"
    if count < FEWEST_FOLDS:
        raise DscintError(
            f"the data set has {count} folds, and {FEWEST_FOLDS} are needed, to test, to validate "
            "and to train on; build it with more"
        )
    if fold == NO_FOLD:
        raise DscintError(f"the data set is divided into {count} folds; train with {choice}")
    if not 0 <= fold < count:
        raise DscintError(f"config.data.fold is {fold}; of {count} folds choose {choice}")


@dataclasses.dataclass(frozen=True)
class Scintigrams:
    """One split of a run, at random access.

    Attributes:
      split: its name.
      classes: class names, in the order of the labels.
      class_counts: images of each class.
      fingerprint: of the data set's sources.
      read: images by their indices, as a host batch with DEVICE_FIELDS and IDENTITY_FIELDS.
      records: 'views', or 'studies' where an image is a pair of views.
    """

    split: str
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    fingerprint: str
    read: Callable[[Int[np.ndarray, "batch"]], HostBatch]
    records: str = VIEWS

    @property
    def noun(self) -> str:
        """What its images are called when they are counted."""
        return NOUNS[self.records]

    def __len__(self) -> int:
        return sum(self.class_counts)


def load_split(
    data_dir: Path,
    split: str,
    *,
    pool: int,
    cache_gib: float,
    fold: int = NO_FOLD,
    records: str = VIEWS,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scintigrams:
    """Opens one split of a run.

    Args:
      data_dir: where the data set lies.
      split: 'train', 'validation' or 'test'.
      pool: side of the blocks of pixels that are summed.
      cache_gib: the split is kept in memory if it needs no more than this, GiB; else every batch
        is read from disk.
      fold: the fold to test on, of a data set in folds; see `parts_of`.
      records: 'views' or 'studies'; see `open_dataset`.
      progress: told how many of how many images were read into memory.

    Raises:
      DscintError: no data set, no such split, an empty one, a `fold` that does not fit the data
        set, or a `pool` that does not divide the image.
    """
    import tensorflow_datasets as tfds

    builder = open_dataset(data_dir, records)
    try:
        parts = parts_of(split, builder.info.splits, fold)
    except DscintError as error:
        raise DscintError(f"{data_dir}: {error}") from None
    features = builder.info.features
    *views, height, width, _ = features["image"].shape
    if pool < 1 or height % pool or width % pool:
        raise DscintError(f"config.data.pool {pool} does not divide an image of {height}x{width}")
    source = builder.as_data_source(
        split="+".join(parts), decoders={"lesion_mask": tfds.decode.SkipDecoding()}
    )
    if not len(source):
        raise DscintError(f"split '{split}' of {data_dir} is empty; build with more patients")
    classes = tuple(features["label"].names)
    view_names = np.array(features["view"].names if "view" in features else STUDY_VIEWS)

    def read(indices: Int[np.ndarray, "batch"]) -> HostBatch:
        return _batch(source.__getitems__([int(i) for i in indices]), view_names, pool)

    size = len(source) * math.prod(views) * (height // pool) * (width // pool) * 4 / 2**30
    if size <= cache_gib:
        read = _keep_in_memory(read, len(source), progress)
    metadata = builder.info.metadata
    counts = [metadata["class_counts"][part] for part in parts]
    return Scintigrams(
        split=split,
        classes=classes,
        class_counts=tuple(sum(part[name] for part in counts) for name in classes),
        fingerprint=metadata["fingerprint"],
        read=read,
        records=records,
    )


def sum_pool(
    counts: Int[np.ndarray, "*view height width 1"], side: int
) -> Int[np.ndarray, "*view small_height small_width 1"]:
    """Sums blocks of side x side pixels: no count is lost, and Poisson stays Poisson."""
    *views, height, width, _ = counts.shape
    blocks = counts.reshape(*views, height // side, side, width // side, side, 1)
    return blocks.sum((-4, -2), dtype=np.int32)


def training_batches(
    images: Scintigrams, *, batch_size: int, seed: int, start: int, threads: int = 2
) -> Iterator[HostBatch]:
    """Endless batches, each epoch in a new order, beginning with the batch of step `start`.

    An epoch's last, incomplete batch is left out; the next epoch draws anew.

    Raises:
      DscintError: the split is smaller than one batch.
    """
    if len(images) < batch_size:
        raise DscintError(
            f"config.batch_size {batch_size} is more than the {len(images)} training images"
        )
    batches = index_batches(len(images), batch_size=batch_size, seed=seed).map(images.read)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    iterator = batches.to_iter_dataset(options).__iter__()
    iterator.set_state({"next_index": start})
    return iterator


def index_batches(count: int, *, batch_size: int, seed: int) -> grain.MapDataset:
    """The indices of every training batch; element i is the batch of step i."""
    # Batched before repeated, so that no batch straddles two epochs.
    indices = grain.MapDataset.range(count).shuffle(seed=seed)
    return indices.batch(batch_size, drop_remainder=True).repeat()


def evaluation_batches(images: Scintigrams, *, batch_size: int) -> Iterator[HostBatch]:
    """Every image once, in order; the last batch is padded, and `mask` False where it is."""
    for start in range(0, len(images), batch_size):
        batch = images.read(np.arange(start, min(start + batch_size, len(images))))
        missing = batch_size - len(batch["label"])
        yield {name: _pad(values, missing) for name, values in batch.items()}


def device_fields(batch: HostBatch) -> HostBatch:
    """What of a batch the steps need."""
    return {name: batch[name] for name in DEVICE_FIELDS}


def _batch(records: list[dict[str, Any]], view_names: np.ndarray, pool: int) -> HostBatch:
    return {
        "counts": np.stack([sum_pool(r["image"], pool) for r in records]),
        # The scale is in counts of an original pixel; a block holds pool^2 of them.
        "scale": np.array([r["scale"] * pool**2 for r in records], np.float32),
        "label": np.array([r["label"] for r in records], np.int32),
        "mask": np.ones(len(records), bool),
        "image_id": np.array([_text(r["image_id"]) for r in records]),
        "patient_key": np.array([_text(r["patient_key"]) for r in records]),
        "view": view_names[[_view_index(r) for r in records]],
    }


def _view_index(record: dict[str, Any]) -> int:
    if "view" in record:
        return int(record["view"])
    anterior, posterior = record["has_view"]
    return int(anterior) + 2 * int(posterior)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _keep_in_memory(
    read: Callable[[np.ndarray], HostBatch], count: int, progress: Callable[[int, int], None]
) -> Callable[[np.ndarray], HostBatch]:
    chunks = []
    for start in range(0, count, 64):
        chunks.append(read(np.arange(start, min(start + 64, count))))
        progress(min(start + 64, count), count)
    images = {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}
    return lambda indices: {name: values[indices] for name, values in images.items()}


def _pad(values: np.ndarray, missing: int) -> np.ndarray:
    if not missing:
        return values
    # A scale of 1 keeps the padding finite; all else is zero, False or empty.
    filler = np.ones if values.dtype == np.float32 else np.zeros
    return np.concatenate([values, filler((missing, *values.shape[1:]), values.dtype)])
