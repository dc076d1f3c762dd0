"""The records of the two configurations: their features, and how images become serialised bytes.

In: the images of a study. Out: records of `views` (one an image) or of `studies` (one a pair of
views). Only what stands here is ever copied from a file into the data set.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.proto import tf_example_pb2

from tfds_builder.classes import Classes
from tfds_builder.manifest import VIEWS
from tfds_builder.studies.matrix import COLUMNS, ROWS
from tfds_builder.studies.study import Image, ReadStudy, scan_id

VERSION = "1.1.0"
"""Of the data set; raised where the same files give other records."""

VIEWS_CONFIG, STUDIES_CONFIG = "views", "studies"
CONFIGS = (VIEWS_CONFIG, STUDIES_CONFIG)
IMAGE_SHAPE = (ROWS, COLUMNS, 1)
VIEW_NAMES = (*VIEWS, "unknown")

_OF_THE_STUDY = ("patient_key", "study_key", "site_key", "sex", "age_band", "manufacturer")
_NO_COUNTS = np.zeros(IMAGE_SHAPE, np.uint16)
_NO_LESION = np.zeros(IMAGE_SHAPE, np.uint8)

Record = dict[str, Any]


def features(config: str, classes: Sequence[str] = ()) -> tfds.features.FeaturesDict:
    """The features of a record of a configuration; no classes where a data set is to tell them."""
    text, tensor = tfds.features.Text, tfds.features.Tensor
    views = (len(VIEWS),)
    if config == VIEWS_CONFIG:
        shape, number = IMAGE_SHAPE, np.float32
        own = {"view": tfds.features.ClassLabel(names=list(VIEW_NAMES))}
    else:
        shape, number = (*views, *IMAGE_SHAPE), tensor(shape=views, dtype=np.float32)
        own = {"has_view": tensor(shape=views, dtype=np.bool_)}
    return tfds.features.FeaturesDict(
        {
            "label": tfds.features.ClassLabel(names=list(classes) or None),
            **{name: text() for name in ("image_id", "view_rule", "notes", *_OF_THE_STUDY)},
            "image": tensor(shape=shape, dtype=np.uint16, encoding="bytes"),
            "lesion_mask": tensor(shape=shape, dtype=np.uint8, encoding="bytes"),
            "pixel_spacing_mm": number,
            "scale": number,
            **own,
        }
    )


def records_of(
    read: ReadStudy, config: str, keep_one_view: bool, classes: Classes
) -> Iterator[tuple[Record, tuple[Image, ...]]]:
    """The records of one study, in the order of their image_id, each with the images in it.

    Under 'studies', the views of one file belong together, and so do the only anterior and the only
    posterior view that come from files of their own. Where there are several of them, or a file of
    the study was rejected, nothing tells which belong together, and they stay alone.

    Args:
      read: what became of the study's files.
      config: 'views' or 'studies'.
      keep_one_view: under 'studies', whether a view that is alone becomes a record, with zeros in
        the other's place. Images of unknown view are in no study record.
      classes: which label is the more serious, of views that have several.
    """
    if config == VIEWS_CONFIG:
        for image in read.images:
            yield _view_record(image), (image,)
        return
    scans = {_record_id(scan): scan for scan in _scans(read)}
    for record_id in sorted(scans):
        scan = scans[record_id]
        if keep_one_view or len(scan) == len(VIEWS):
            own = tuple(scan[view] for view in VIEWS if view in scan)
            yield _study_record(scan, record_id, classes), own


def _scans(read: ReadStudy) -> list[dict[str, Image]]:
    """View -> image, of each pair and of each view that is alone."""
    by_file: dict[int, list[Image]] = defaultdict(list)
    for image in read.images:
        if image.facts.view in VIEWS:
            by_file[image.facts.file].append(image)
    files = by_file.values()
    scans = [images for images in files if _are_a_pair(images)]
    alone = [image for images in files if not _are_a_pair(images) for image in images]
    if _are_a_pair(alone) and not read.rejected:
        scans.append(alone)
    else:
        scans += [[image] for image in alone]
    return [{image.facts.view: image for image in images} for images in scans]


def _are_a_pair(images: Sequence[Image]) -> bool:
    return sorted(image.facts.view for image in images) == sorted(VIEWS)


def _record_id(scan: dict[str, Image]) -> str:
    """The name of the scan; of a view that is alone, its image_id."""
    facts = [image.facts for image in scan.values()]
    if len(facts) == 1:
        return facts[0].image_id
    return scan_id(facts[0].study_key, max(own.nth for own in facts))


def _view_record(image: Image) -> Record:
    facts = image.facts
    return {
        "image": image.counts[..., None],
        "lesion_mask": _lesion_mask(image),
        "label": facts.label,
        "image_id": facts.image_id,
        "view": facts.view,
        "view_rule": facts.view_rule,
        "notes": "; ".join(facts.notes),
        "pixel_spacing_mm": np.float32(facts.pixel_spacing_mm),
        "scale": np.float32(facts.scale),
        **{name: getattr(facts, name) for name in _OF_THE_STUDY},
    }


def _study_record(scan: dict[str, Image], record_id: str, classes: Classes) -> Record:
    """Anterior first. Where the views' labels differ, the study has the most serious one."""
    pair = [scan.get(view) for view in VIEWS]
    known = [image.facts for image in pair if image]
    return {
        "image": np.stack([image.counts[..., None] if image else _NO_COUNTS for image in pair]),
        "lesion_mask": np.stack([_lesion_mask(image) for image in pair]),
        "label": classes.most_serious([facts.label for facts in known]),
        "image_id": record_id,
        "has_view": np.array([image is not None for image in pair]),
        "view_rule": "; ".join(f"{facts.view}: {facts.view_rule}" for facts in known),
        "notes": "; ".join(f"{facts.view}: {note}" for facts in known for note in facts.notes),
        "pixel_spacing_mm": np.array(
            [image.facts.pixel_spacing_mm if image else np.nan for image in pair], np.float32
        ),
        # 1 keeps the empty view finite when it is divided by its scale.
        "scale": np.array([image.facts.scale if image else 1.0 for image in pair], np.float32),
        **{name: getattr(known[0], name) for name in _OF_THE_STUDY},
    }


def _lesion_mask(image: Image | None) -> np.ndarray:
    mask = image.lesion_mask if image else None
    return _NO_LESION if mask is None else mask[..., None]


def serialise(record: Record, classes: Classes) -> bytes:
    """A tf.Example, as TFDS encodes the record, in a third of its time.

    Its features are in a fixed order, so that builds can be compared by byte.
    """
    names_of = {"label": classes.names, "view": VIEW_NAMES}
    # Its classes are made at run time.
    example = tf_example_pb2.Example()  # pyright: ignore[reportAttributeAccessIssue]
    features = example.features.feature
    for name, value in record.items():
        feature = features[name]
        if name in names_of:
            feature.int64_list.value.append(names_of[name].index(value))
        elif isinstance(value, str):
            feature.bytes_list.value.append(value.encode())
        elif value.dtype == np.float32:
            feature.float_list.value.extend(np.atleast_1d(value).tolist())
        elif value.dtype == np.bool_:
            feature.int64_list.value.extend(value.astype(np.int64).tolist())
        else:
            feature.bytes_list.value.append(value.tobytes())
    return example.SerializeToString(deterministic=True)
