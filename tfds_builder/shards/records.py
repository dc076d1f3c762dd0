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
from tfds_builder.studies.study import Image, ReadStudy

VIEWS_CONFIG, STUDIES_CONFIG = "views", "studies"
CONFIGS = (VIEWS_CONFIG, STUDIES_CONFIG)
IMAGE_SHAPE = (ROWS, COLUMNS, 1)
VIEW_NAMES = (*VIEWS, "unknown")

_OF_THE_STUDY = ("patient_key", "study_key", "site_key", "sex", "age_band", "manufacturer")
_NO_LESION = np.zeros(IMAGE_SHAPE, np.uint8)

Record = dict[str, Any]


def features(config: str, classes: Sequence[str] = ()) -> tfds.features.FeaturesDict:
    """The features of a record of a configuration; no classes where a data set is to tell them."""
    text, tensor = tfds.features.Text, tfds.features.Tensor
    common = {
        "label": tfds.features.ClassLabel(names=list(classes) or None),
        **{name: text() for name in ("image_id", "view_rule", "notes", *_OF_THE_STUDY)},
    }
    if config == VIEWS_CONFIG:
        shape = IMAGE_SHAPE
        own = {
            "view": tfds.features.ClassLabel(names=list(VIEW_NAMES)),
            "pixel_spacing_mm": np.float32,
            "scale": np.float32,
        }
    else:
        shape = (len(VIEWS), *IMAGE_SHAPE)
        own = {
            "has_view": tensor(shape=(len(VIEWS),), dtype=np.bool_),
            "pixel_spacing_mm": tensor(shape=(len(VIEWS),), dtype=np.float32),
            "scale": tensor(shape=(len(VIEWS),), dtype=np.float32),
        }
    images = {
        "image": tensor(shape=shape, dtype=np.uint16, encoding="bytes"),
        "lesion_mask": tensor(shape=shape, dtype=np.uint8, encoding="bytes"),
    }
    return tfds.features.FeaturesDict(common | images | own)


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
    scans = {_scan_id(scan): scan for scan in _scans(read)}
    for scan_id in sorted(scans):
        scan = scans[scan_id]
        if keep_one_view or len(scan) == len(VIEWS):
            own = tuple(scan[view] for view in VIEWS if view in scan)
            yield _study_record(scan, scan_id, classes), own


def _scans(read: ReadStudy) -> Iterator[dict[str, Image]]:
    """View -> image, of each pair and of each view that is alone."""
    by_file: dict[int, list[Image]] = defaultdict(list)
    for image in read.images:
        if image.facts.view in VIEWS:
            by_file[image.facts.file].append(image)
    alone = []
    for images in by_file.values():
        if _are_a_pair(images):
            yield {image.facts.view: image for image in images}
        else:
            alone += images
    if _are_a_pair(alone) and not read.rejected:
        yield {image.facts.view: image for image in alone}
    else:
        yield from ({image.facts.view: image} for image in alone)


def _are_a_pair(images: Sequence[Image]) -> bool:
    return sorted(image.facts.view for image in images) == sorted(VIEWS)


def _scan_id(scan: dict[str, Image]) -> str:
    """'<study_key>' or '<study_key>-<nth>'; of a view that is alone, its image_id."""
    facts = next(iter(scan.values())).facts
    if len(scan) == 1:
        return facts.image_id
    nth = max(image.facts.nth for image in scan.values())
    return facts.study_key if nth == 1 else f"{facts.study_key}-{nth}"


def _view_record(image: Image) -> Record:
    facts = image.facts
    mask = image.lesion_mask
    return {
        "image": image.counts[..., None],
        "lesion_mask": _NO_LESION if mask is None else mask[..., None],
        "label": facts.label,
        "image_id": facts.image_id,
        "view": facts.view,
        "view_rule": facts.view_rule,
        "notes": "; ".join(facts.notes),
        "pixel_spacing_mm": np.float32(facts.pixel_spacing_mm),
        "scale": np.float32(facts.scale),
        **{name: getattr(facts, name) for name in _OF_THE_STUDY},
    }


def _study_record(scan: dict[str, Image], study_id: str, classes: Classes) -> Record:
    """Anterior first. Where the views' labels differ, the study has the most serious one."""
    pair = [scan.get(view) for view in VIEWS]
    known = [image.facts for image in pair if image]
    counts = np.zeros((len(VIEWS), *IMAGE_SHAPE), np.uint16)
    masks = np.zeros((len(VIEWS), *IMAGE_SHAPE), np.uint8)
    for n, image in enumerate(pair):
        if image is not None:
            counts[n, ..., 0] = image.counts
            if image.lesion_mask is not None:
                masks[n, ..., 0] = image.lesion_mask
    return {
        "image": counts,
        "lesion_mask": masks,
        "label": classes.most_serious([facts.label for facts in known]),
        "image_id": study_id,
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
            feature.int64_list.value.extend(value.tolist())
        else:
            feature.bytes_list.value.append(value.tobytes())
    return example.SerializeToString(deterministic=True)
