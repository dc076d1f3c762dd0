"""The records of a data set as arrays: read from the disk, or held in memory.

In: a TFDS builder and names of its splits. Out: images by their indices, as dicts of arrays, and
the keys of all. Counts stay integers: a smaller image is a sum over blocks of pixels.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int, Integer

DEVICE_FIELDS = ("counts", "scale", "label", "mask")
COPY = "copy"
"""What the steps need besides where images are copies: see `protocol`."""

TEXTS = ("image_id", "patient_key", "study_key", "sex", "age_band", "manufacturer", "site_key")
IDENTITY_FIELDS = (*TEXTS, "view")
"""What an image is of: pseudonyms, and facts by which results are grouped."""
KEY_FIELDS = ("label", *IDENTITY_FIELDS)

STUDY_VIEWS = ("neither", "anterior", "posterior", "both")
"""What the field `view` says of a study; its index is a bit for each view that is there."""

COUNT_TYPES = (np.uint8, np.uint16, np.int32)
"""Types that counts are kept in, the smallest first."""

CHUNK = 64
"""Images that are read at once where a whole split is."""

HostBatch = dict[str, np.ndarray]
Progress = Callable[[int, int], None]
"""Told how many of how many records were read, unless they are in memory."""


def no_progress(done: int, total: int) -> None:
    """Tells nobody."""


class DiskImages:
    """Images that stay on the disk.

    Args:
      builder: of the data set.
      parts: its splits that the images are in, one after the other.
      pool: side of the blocks of pixels that are summed.
    """

    def __init__(self, builder: Any, parts: Sequence[str], *, pool: int):
        import tensorflow_datasets as tfds

        self._features, self._pool = builder.info.features, pool
        skip = tfds.decode.SkipDecoding()
        split = "+".join(parts)
        self._images = builder.as_data_source(split=split, decoders={"lesion_mask": skip})
        # What a decoder passes over is not taken apart, and all but the keys is passed over.
        keys = (*KEY_FIELDS, "has_view")
        others = {name: skip for name in self._features if name not in keys}
        self._records = builder.as_data_source(split=split, decoders=others)
        self._keys: HostBatch | None = None

    def __len__(self) -> int:
        return len(self._images)

    def read(self, indices: Int[np.ndarray, " batch"]) -> HostBatch:
        """Images by their indices, with DEVICE_FIELDS and IDENTITY_FIELDS."""
        records = _records(self._images, indices)
        return batch_of(records, self._pool) | self._keys_of(records)

    def keys(self, progress: Progress = no_progress) -> HostBatch:
        """The KEY_FIELDS of all images; read from the disk once."""
        if self._keys is None:
            chunks = []
            for indices in chunks_of(np.arange(len(self))):
                chunks.append(self._keys_of(_records(self._records, indices)))
                progress(int(indices[-1]) + 1, len(self))
            self._keys = joined(chunks)
        return self._keys

    def _keys_of(self, records: Sequence[dict[str, Any]]) -> HostBatch:
        has_view = "view" in self._features
        return keys_of(records, self._features["view"].names if has_view else STUDY_VIEWS)


class HeldImages:
    """Images in memory.

    Args:
      columns: DEVICE_FIELDS and IDENTITY_FIELDS of all of them; counts of any type.
    """

    def __init__(self, columns: HostBatch):
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns["label"])

    def read(self, indices: Int[np.ndarray, " batch"]) -> HostBatch:
        """Images by their indices, with DEVICE_FIELDS and IDENTITY_FIELDS."""
        batch = {name: values[indices] for name, values in self._columns.items()}
        if np.issubdtype(batch["counts"].dtype, np.integer):
            batch["counts"] = batch["counts"].astype(np.int32)
        return batch

    def keys(self, progress: Progress = no_progress) -> HostBatch:
        """The KEY_FIELDS of all images."""
        return {name: self._columns[name] for name in KEY_FIELDS}


Images = DiskImages | HeldImages


def batch_of(records: Sequence[dict[str, Any]], pool: int) -> HostBatch:
    """What a network needs of records: counts summed over blocks, scale, and a mask of all."""
    return {
        "counts": np.stack([sum_pool(r["image"], pool) for r in records]),
        # The scale is in counts of an original pixel; a block holds pool^2 of them.
        "scale": np.array([r["scale"] * pool**2 for r in records], np.float32),
        "mask": np.ones(len(records), bool),
    }


def keys_of(records: Sequence[dict[str, Any]], views: Sequence[str]) -> HostBatch:
    """The KEY_FIELDS of records; `views` are the names of the field `view`."""
    return {
        "label": np.array([r["label"] for r in records], np.int32),
        **{name: np.array([_text(r[name]) for r in records]) for name in TEXTS},
        "view": np.array(views)[[_view_index(r) for r in records]],
    }


def read_columns(
    images: Images, indices: Int[np.ndarray, " image"], progress: Progress = no_progress
) -> HostBatch:
    """Reads images into arrays, their counts in the smallest of COUNT_TYPES that holds them.

    No more than the result and a few images are in memory meanwhile; where counts outgrow their
    type, for a moment what was read so far is there twice.

    Args:
      images: to read from.
      indices: of the images, in the order that they are to have; at least one.
      progress: told how many of how many were read.
    """
    columns: HostBatch = {}
    rest, done = [], 0
    for chunk in chunks_of(indices):
        batch = images.read(chunk)
        held = columns.get("counts")
        columns["counts"] = _put(held, batch.pop("counts"), done, len(indices))
        rest.append(batch)
        done += len(chunk)
        progress(done, len(indices))
    return columns | joined(rest)


def count_type(most: int) -> type[np.integer]:
    """The smallest of COUNT_TYPES that holds a count."""
    return next(kind for kind in COUNT_TYPES if most <= np.iinfo(kind).max)


def sum_pool(
    counts: Integer[np.ndarray, "*view height width 1"], side: int
) -> Int[np.ndarray, "*view small_height small_width 1"]:
    """Sums blocks of side x side pixels: no count is lost, and Poisson stays Poisson."""
    *views, height, width, _ = counts.shape
    # Row by row, then column by column: NumPy takes up to ten times as long over both at once.
    rows = counts.reshape(*views, height // side, side, width, 1).sum(-3, dtype=np.int32)
    return functools.reduce(np.add, (rows[..., first::side, :] for first in range(side)))


def _put(held: np.ndarray | None, counts: np.ndarray, start: int, total: int) -> np.ndarray:
    """Puts counts behind those that are held, in a wider type if they need one."""
    kind = np.dtype(count_type(int(counts.max(initial=0))))
    if held is None:
        held = np.zeros((total, *counts.shape[1:]), kind)
    if kind.itemsize > held.dtype.itemsize:
        wider = np.zeros(held.shape, kind)
        wider[:start] = held[:start]
        held = wider
    held[start : start + len(counts)] = counts
    return held


def chunks_of(indices: Int[np.ndarray, " image"]) -> list[Int[np.ndarray, " chunk"]]:
    """Parts of so many images as are read at once."""
    return [indices[start : start + CHUNK] for start in range(0, len(indices), CHUNK)]


def joined(chunks: Sequence[HostBatch]) -> HostBatch:
    """Batches one after the other as one."""
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}


def padded(values: np.ndarray, missing: int) -> np.ndarray:
    """A column with so many rows more, for which there is no image."""
    if not missing:
        return values
    # A scale of 1 keeps the padding finite; all else is zero, False or empty.
    filler = np.ones if values.dtype == np.float32 else np.zeros
    return np.concatenate([values, filler((missing, *values.shape[1:]), values.dtype)])


def _records(source: Any, indices: Int[np.ndarray, " batch"]) -> list[dict[str, Any]]:
    return source.__getitems__([int(i) for i in indices])


def _view_index(record: dict[str, Any]) -> int:
    if "view" in record:
        return int(record["view"])
    anterior, posterior = record["has_view"]
    return int(anterior) + 2 * int(posterior)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
