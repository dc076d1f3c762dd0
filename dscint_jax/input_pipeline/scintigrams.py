"""One split of a run, at random access: its images, or copies of images.

In: a data directory and the fields of a config that say which images, how small, and kept where.
Out: `Scintigrams`. An image is one view, or, from the records of `studies`, a pair of views, the
anterior first.
"""

import dataclasses
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from dscint_jax.config import STUDIES, VIEWS
from dscint_jax.input_pipeline.dataset import (
    NO_FOLD,
    SPLITS,
    all_parts,
    did_you_mean,
    folds_of,
    open_dataset,
    parts_of,
)
from dscint_jax.input_pipeline.placement import (
    AUTO,
    HOST,
    UNDECIDED,
    Accelerators,
    Placement,
    place,
)
from dscint_jax.input_pipeline.protocol import (
    Sample,
    draw_patients,
    leakage_of,
    share_out,
    split_copies,
)
from dscint_jax.input_pipeline.records import (
    COPY,
    DiskImages,
    HeldImages,
    HostBatch,
    Images,
    Progress,
    no_progress,
    read_columns,
)
from tfds_builder.commandline.errors import UserError

NOUNS = {VIEWS: "images", STUDIES: "studies"}
"""What the records of a configuration are called when they are counted."""

ITSELF = -1
"""What the field `copy` says of copy 0, which is the image as it is."""


@dataclasses.dataclass(frozen=True, eq=False)
class Scintigrams:
    """One split of a run, at random access.

    Attributes:
      split: its name.
      classes: class names, in the order of the labels.
      class_counts: images of each class; of copies, every copy counts.
      fingerprint: of the data set's sources.
      images: those of the data set that it is made of.
      records: 'views', or 'studies' where an image is a pair of views.
      copies: how the data set was augmented; None where it was not.
      numbers: running numbers of the split's copies, or which of `images` it has; None where it is
        `images` as they are.
      placement: where `images` are, or, if that is 'device', where training shall bring them.
      labels: the number that each label of the records has among `classes`; None where they are
        the same.
    """

    split: str
    classes: tuple[str, ...]
    class_counts: tuple[int, ...]
    fingerprint: str
    images: Images
    records: str = VIEWS
    copies: int | None = None
    numbers: Int[np.ndarray, " image"] | None = None
    placement: Placement = UNDECIDED
    labels: Int[np.ndarray, " class"] | None = None

    @property
    def noun(self) -> str:
        """What its images are called when they are counted."""
        return NOUNS[self.records]

    @property
    def _each(self) -> int:
        """Copies of every image, itself among them."""
        return self.copies or 1

    def __len__(self) -> int:
        return sum(self.class_counts)

    def read(self, indices: Int[np.ndarray, " batch"]) -> HostBatch:
        """Images by their indices, as a host batch with DEVICE_FIELDS and IDENTITY_FIELDS.

        Copies come unmoved, with the field `copy` that `augment.apply_copies` needs, and with
        '#k' behind their image's id.
        """
        batch = self._labelled(self.images.read(self.sources(indices)))
        if self.copies is None or self.numbers is None:
            return batch
        places = self.numbers[indices] % self._each
        names = [f"{i}#{k}" for i, k in zip(batch["image_id"], places, strict=True)]
        return batch | {"image_id": np.array(names), COPY: self.copy_field(indices)}

    def keys(self, progress: Progress = no_progress) -> HostBatch:
        """`label`, `image_id`, `patient_key` and `view` of all; of a copy, those of its image."""
        keys = self._labelled(self.images.keys(progress))
        if self.numbers is None:
            return keys
        sources = self.sources(np.arange(len(self)))
        return {name: values[sources] for name, values in keys.items()}

    def as_classes_of(self, classes: Sequence[str]) -> "Scintigrams":
        """The same images, their labels numbered by another list of classes.

        Args:
          classes: those that a network was trained on.

        Raises:
          UserError: an image has a class that is not among them.
        """
        counts = dict(zip(self.classes, self.class_counts, strict=True))
        unknown = [name for name in self.classes if name not in classes and counts[name]]
        if unknown:
            raise UserError(
                f"the data set has {self.noun} of {', '.join(unknown)}, which the network does not "
                f"know; it was trained on {', '.join(classes)}: name them alike, or leave them out"
            )
        order = [classes.index(name) if name in classes else -1 for name in self.classes]
        return dataclasses.replace(
            self,
            classes=tuple(classes),
            class_counts=tuple(counts.get(name, 0) for name in classes),
            labels=np.array(order, np.int32),
        )

    def _labelled(self, batch: HostBatch) -> HostBatch:
        if self.labels is None:
            return batch
        return batch | {"label": self.labels[batch["label"]]}

    def sources(self, indices: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
        """Where in `images` the split's images are, or those that its copies are of."""
        return indices if self.numbers is None else self.numbers[indices] // self._each

    def copy_field(self, indices: Int[np.ndarray, " batch"]) -> Int[np.ndarray, " batch"]:
        """Running numbers of copies, and -1 where a copy is the image itself."""
        numbers = indices if self.numbers is None else self.numbers[indices]
        return np.where(numbers % self._each, numbers, ITSELF).astype(np.int32)


def load_split(
    data_dir: Path,
    split: str,
    *,
    pool: int,
    cache_gib: float,
    cache: str = AUTO,
    fold: int = NO_FOLD,
    records: str = VIEWS,
    copies: int | None = None,
    sample: Sample | None = None,
    accelerators: Accelerators | None = None,
    beside: Scintigrams | None = None,
    progress: Progress = no_progress,
) -> Scintigrams:
    """Opens one split of a run.

    Args:
      data_dir: where the data set lies.
      split: 'train', 'validation' or 'test'.
      pool: side of the blocks of pixels that are summed.
      cache_gib: the most that the split may take of this machine's memory, GiB.
      cache: where the images stay: 'auto', 'device', 'host' or 'none'; see `placement.place`.
      fold: the fold to test on, of a data set in folds; see `parts_of`.
      records: 'views' or 'studies'; see `open_dataset`.
      copies: how the data set is augmented before it is split; None: it is not.
      sample: which of the split's patients are meant; None: all.
      accelerators: where the images could stay; None: they may not.
      beside: another split of the same data set, opened with the same `pool`. Of copies, both are
        made of the same images, which are then in memory once.
      progress: told how many of how many images were read into memory.

    Raises:
      UserError: no data set, no such split, an empty one, a `fold` that does not fit the data
        set, a `pool` that does not divide the image, or no room where `cache` asks for it.
    """
    builder, parts, class_counts = _opened(data_dir, split, fold, records, copies)
    features = builder.info.features
    count = sum(builder.info.splits[part].num_examples for part in parts)
    placement = place(
        cache,
        images=f"{'training' if split == 'train' else split} {NOUNS[records]}",
        size=count * _image_size(features["image"].shape, pool),
        cache_gib=cache_gib,
        accelerators=accelerators,
    )
    images = beside.images if copies and beside else DiskImages(builder, parts, pool=pool)
    if placement.place == HOST and not isinstance(images, HeldImages):
        images = HeldImages(read_columns(images, np.arange(count), progress))
    numbers = split_copies(images.keys(progress)["label"], copies)[split] if copies else None
    if sample:
        numbers = draw_patients(images.keys(progress), sample)
        labels = images.keys()["label"][numbers]
        class_counts = tuple(np.bincount(labels, minlength=len(class_counts)).tolist())
    return Scintigrams(
        split=split,
        classes=tuple(features["label"].names),
        class_counts=class_counts,
        fingerprint=builder.info.metadata["fingerprint"],
        images=images,
        records=records,
        copies=copies,
        numbers=numbers,
        placement=placement,
    )


def split_size(
    data_dir: Path,
    split: str,
    *,
    fold: int = NO_FOLD,
    records: str = VIEWS,
    copies: int | None = None,
    sample: Sample | None = None,
) -> int:
    """How many images, or copies, a split has, without reading any but for a sample.

    Arguments and errors are those of `load_split`.
    """
    builder, parts, class_counts = _opened(data_dir, split, fold, records, copies)
    if sample:
        return len(draw_patients(DiskImages(builder, parts, pool=1).keys(), sample))
    return sum(class_counts)


def _empty(split: str, data_dir: Path) -> UserError:
    return UserError(
        f"split '{split}' of {data_dir} is empty; build with more patients, or give some of them "
        f"this split in the manifest's column split"
    )


def check_patients(
    training: Scintigrams, other: Scintigrams, progress: Progress = no_progress
) -> None:
    """Checks record by record that no patient of a split is in training; neither is of copies.

    Raises:
      UserError: names a patient who is in both.
    """
    trained, keys = training.keys(progress)["patient_key"], other.keys(progress)["patient_key"]
    both = np.intersect1d(trained, keys)
    if len(both):
        shared = leakage_of(training.keys(), other.keys()).images_of_a_patient_in_training
        more = f" and {len(both) - 1} more" if len(both) > 1 else ""
        raise UserError(
            f"patient {both[0]}{more} of the data set's {other.split} split (in {shared} of "
            f"{len(other)} {other.noun}) is in training too; build the data set again, with each "
            f"patient in one split"
        )


def _opened(
    data_dir: Path, split: str, fold: int, records: str, copies: int | None
) -> tuple[Any, tuple[str, ...], tuple[int, ...]]:
    """The builder, its splits that a run's split is made of, and images or copies by class."""
    builder = open_dataset(data_dir, records)
    parts = _parts(data_dir, builder, split, fold, copies)
    counts = builder.info.metadata["class_counts"]
    classes = builder.info.features["label"].names
    totals = [sum(counts[part][name] for part in parts) for name in classes]
    if copies:
        totals = [share_out(total * copies)[split] for total in totals]
    if not sum(totals):
        raise _empty(split, data_dir)
    return builder, parts, tuple(totals)


def _parts(
    data_dir: Path, builder: Any, split: str, fold: int, copies: int | None
) -> tuple[str, ...]:
    names = tuple(builder.info.splits)
    if not copies:
        # TFDS lists no split without records.
        if split in SPLITS and split not in names and fold == NO_FOLD and not folds_of(names):
            raise _empty(split, data_dir)
        try:
            return parts_of(split, names, fold)
        except UserError as error:
            raise UserError(f"{data_dir}: {error}") from None
    if fold != NO_FOLD:
        raise UserError(
            f"config.data.fold is {fold}, but config.protocol 'augmented' pools all images and "
            f"splits them anew; set --config.data.fold={NO_FOLD}"
        )
    if split not in SPLITS:
        raise UserError(
            f"{data_dir}: no split '{split}'; copies have {', '.join(SPLITS)}"
            f"{did_you_mean(split, SPLITS)}"
        )
    return all_parts(names)


def _image_size(shape: Sequence[int], pool: int) -> int:
    """Bytes of an image at most: what its counts take in the type that holds any."""
    *views, height, width, _ = shape
    if pool < 1 or height % pool or width % pool:
        raise UserError(f"config.data.pool {pool} does not divide an image of {height}x{width}")
    # Records hold 16 bits a pixel; a sum of such may need 32.
    pixel = 2 if pool == 1 else 4
    return math.prod(views) * (height // pool) * (width // pool) * pixel
