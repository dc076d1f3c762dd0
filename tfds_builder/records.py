"""One image's record: its features, its intensity scale, and shards of records on disk.

In: a shard's sources, as planned. Out: an ArrayRecord file and a summary of what went into it.
"""

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import example_serializer, file_adapters

from tfds_builder import dicom
from tfds_builder.errors import DataError
from tfds_builder.lesion_mask import read_masks
from tfds_builder.manifest import LABELS, VIEWS
from tfds_builder.matrix import COLUMNS, ROWS, fit_of
from tfds_builder.plan import Source

IMAGE_SHAPE = (ROWS, COLUMNS, 1)
VIEW_NAMES = (*VIEWS, "unknown")

_SCALE_POOL = 4
_SCALE_PERCENTILE = 99


@dataclass(frozen=True)
class Written:
    """What one shard file holds: images, bytes before compression, notes and view rules."""

    images: int
    size: int
    notes: Counter[str]
    view_rules: Counter[str]


def features() -> tfds.features.FeaturesDict:
    """The features of a record, one record an image."""
    text = tfds.features.Text
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Tensor(shape=IMAGE_SHAPE, dtype=np.uint16, encoding="bytes"),
            "label": tfds.features.ClassLabel(names=list(LABELS)),
            "image_id": text(),
            "patient_key": text(),
            "study_key": text(),
            "view": tfds.features.ClassLabel(names=list(VIEW_NAMES)),
            "pixel_spacing_mm": np.float32,
            "scale": np.float32,
            "sex": text(),
            "age_band": text(),
            "manufacturer": text(),
            "lesion_mask": tfds.features.Tensor(
                shape=IMAGE_SHAPE, dtype=np.uint8, encoding="bytes"
            ),
        }
    )


def intensity_scale(counts: np.ndarray) -> float:
    """The bright level, in counts a pixel, that normalisation divides an image by.

    The 99th percentile over positive pixels, after 4x4 sum-pooling (divided by 16): single pixels
    hold so few counts that their percentile would be a small whole number, and the maximum would be
    the bladder or the injection site. At least 1/16, one count a pooled pixel, so that an empty
    image can be divided too.

    Args:
      counts: (1024, 256), whole counts.
    """
    pool = _SCALE_POOL
    blocks = counts.reshape(ROWS // pool, pool, COLUMNS // pool, pool)
    pooled = blocks.sum(axis=(1, 3), dtype=np.int64) / pool**2
    positive = pooled[pooled > 0]
    lowest = 1 / pool**2
    return (
        max(float(np.percentile(positive, _SCALE_PERCENTILE)), lowest) if positive.size else lowest
    )


def write_shard(sources: tuple[Source, ...], path: str) -> Written:
    """Decodes a shard's sources one by one and writes their records to one ArrayRecord file.

    Args:
      sources: as planned, in the order in which they are written.
      path: the file to write.

    Raises:
      DataError: a file cannot be decoded, or changed since it was planned; the disk is full.
    """
    notes: Counter[str] = Counter()
    rules: Counter[str] = Counter()
    sizes: list[int] = []

    def serialized() -> Iterator[tuple[int, bytes]]:
        for source in sources:
            for example, view in examples(source):
                record = _serialize(example)
                notes.update(view.notes)
                rules[view.view_rule] += 1
                sizes.append(len(record))
                yield len(sizes), record

    adapter = file_adapters.ADAPTER_FOR_FORMAT[file_adapters.FileFormat.ARRAY_RECORD]
    try:
        adapter.write_examples(path, serialized())
    except RuntimeError as error:  # What ArrayRecord makes of a full disk, for one.
        raise DataError(f"cannot write the data set, is the disk full? ({error})") from None
    return Written(len(sizes), sum(sizes), notes, rules)


def examples(source: Source) -> Iterator[tuple[dict[str, Any], dicom.View]]:
    """Decodes one source; yields each image's record as a dict, and the view that it came from."""
    row = source.row
    views = {
        (view.frame, view.name): view for view in dicom.read_views(row.path, row.frame, row.view)
    }
    if views.keys() != {(image.frame, image.view) for image in source.images}:
        raise DataError(f"{row.path}: changed while the data set was built; build again")
    for image, mask in zip(source.images, _masks(source), strict=True):
        view = views[image.frame, image.view]
        yield (
            {
                "image": view.counts[..., None],
                "label": image.label,
                "image_id": image.image_id,
                "patient_key": image.patient_key,
                "study_key": image.study_key,
                "view": image.view,
                "pixel_spacing_mm": np.float32(view.pixel_spacing_mm),
                "scale": np.float32(intensity_scale(view.counts)),
                "sex": image.sex,
                "age_band": image.age_band,
                "manufacturer": image.manufacturer,
                "lesion_mask": mask[..., None],
            },
            view,
        )


def _masks(source: Source) -> list[np.ndarray]:
    """One uint8 (1024, 256) mask an image; all zero where the manifest names none."""
    if source.row.lesion_mask is None:
        return [np.zeros((ROWS, COLUMNS), np.uint8)] * len(source.images)
    frames = tuple(image.frame for image in source.images)
    native = read_masks(source.row.lesion_mask, frames, source.frames, *source.matrix)
    return [fit_of(*source.matrix).mask(mask) for mask in native]


def _serialize(example: dict[str, Any]) -> bytes:
    """A tf.Example whose features are in a fixed order, so that builds can be compared by byte."""
    encoder, serializer = _codec()
    message = serializer.get_tf_example(encoder.encode_example(example))
    return message.SerializeToString(deterministic=True)


@functools.cache
def _codec() -> tuple[tfds.features.FeaturesDict, example_serializer.ExampleSerializer]:
    encoder = features()
    return encoder, example_serializer.ExampleSerializer(encoder.get_serialized_info())
