"""The two protocols: split by patient, or augmented first and split by image, copy by copy.

Under 'patient', images are what the data set has, and no patient is on both sides. Under
'augmented', the published system's, all images of the data set are pooled, of every image there are
several copies, and the copies are split: to measure what that leaks. Which images leak is found by
looking at the records, under either protocol.
"""

import dataclasses
import math
import zlib

import numpy as np
from jaxtyping import Int

from dscint_jax.config import AUGMENTED, STUDIES, Config
from dscint_jax.input_pipeline.dataset import SPLITS
from dscint_jax.input_pipeline.records import HostBatch
from tfds_builder.commandline.errors import UserError

HELD_OUT = 0.15
"""Share of the copies that validates, and that tests; the rest trains. None is published."""
COPIES_SEED = 0
"""Of the split of the copies and of their poses: runs of all seeds are compared on the same."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """Which training patients are trained on.

    Attributes:
      share: of the patients of each class, rounded up.
      seed: of the order in which they are drawn.
    """

    share: float
    seed: int


@dataclasses.dataclass(frozen=True)
class Leakage:
    """How many images of a split are known from training.

    Attributes:
      images: of the split, copies counted each.
      images_with_a_copy_in_training: those of which training has a copy, or which it has itself.
      images_of_a_patient_in_training: those whose patient training has any image of.
    """

    images: int
    images_with_a_copy_in_training: int
    images_of_a_patient_in_training: int


def copies_of(config: Config) -> int | None:
    """Copies of every image, itself among them; None where images are split by patient."""
    return config.data.copies if config.protocol == AUGMENTED else None


def sample_of(config: Config, split: str) -> Sample | None:
    """The sample of a split's patients that a config asks for; None where all are meant."""
    if split != "train" or config.data.training_share == 1.0:
        return None
    if config.protocol == AUGMENTED:
        raise UserError(
            "config.data.training_share leaves patients out, but config.protocol 'augmented' "
            "splits copies; set --config.data.training_share=1"
        )
    return Sample(config.data.training_share, config.seed)


def draw_patients(keys: HostBatch, sample: Sample) -> Int[np.ndarray, " image"]:
    """The images of a sample's patients, ascending; a smaller sample is part of a larger one.

    Args:
      keys: `label` and `patient_key` of all images of the split. A patient is drawn with the class
        of the first image.
      sample: how many, by which seed.
    """
    patients, first = np.unique(keys["patient_key"], return_index=True)
    classes = keys["label"][first]
    drawn = []
    for label in np.unique(classes):
        own = patients[classes == label]
        order = random_order(len(own), sample.seed, zlib.crc32(b"sample"), int(label))
        drawn.append(own[order[: math.ceil(sample.share * len(own))]])
    return np.flatnonzero(np.isin(keys["patient_key"], np.concatenate(drawn)))


def share_out(count: int) -> dict[str, int]:
    """How many of `count` copies of one class each split gets."""
    held_out = round(HELD_OUT * count)
    return {"train": count - 2 * held_out, "validation": held_out, "test": held_out}


def split_copies(
    labels: Int[np.ndarray, " image"], copies: int
) -> dict[str, Int[np.ndarray, " copy"]]:
    """Which copies each split has, as running numbers in ascending order.

    Copy k of image i has the running number i * copies + k. Copy 0 is the image itself; any other
    is moved once and for all by `augment.apply_copies`. Class by class the copies are shuffled and
    shared out, whichever image and patient they are of.

    Args:
      labels: of all images of the data set.
      copies: of every image, itself among them.
    """
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for label in np.unique(labels):
        images = np.flatnonzero(labels == label)
        numbers = (images[:, None] * copies + np.arange(copies)).ravel()
        order = random_order(len(numbers), COPIES_SEED, zlib.crc32(b"copies"), int(label))
        shuffled = numbers[order]
        start = 0
        for split, size in share_out(len(numbers)).items():
            parts[split].append(shuffled[start : start + size])
            start += size
    empty = np.zeros(0, np.int64)
    return {split: np.sort(np.concatenate([empty, *chosen])) for split, chosen in parts.items()}


def leakage_of(training: HostBatch, evaluated: HostBatch) -> Leakage:
    """Counts the images of a split that training knows, or whose patients it knows.

    Args:
      training: `image_id` and `patient_key` of the training images, as their records say; of a
        copy, those of the image that it is a copy of.
      evaluated: the same of the split.
    """
    known = {
        name: int(np.isin(evaluated[name], training[name]).sum())
        for name in ("image_id", "patient_key")
    }
    return Leakage(len(evaluated["image_id"]), known["image_id"], known["patient_key"])


def leakage_in_words(leakage: Leakage | None, *, split: str, protocol: str, records: str) -> str:
    """What a reader of a split's score has to know of it.

    `leakage` is None where the split is of another data set than training.
    """
    one, many = ("study", "studies") if records == STUDIES else ("image", "images")
    if leakage is None:
        return (
            f"These {many} are of another data set than the one trained on; its records do not "
            f"tell whether their patients were in training."
        )
    if split == "train":
        return (
            f"The network was trained on these very {many}: the score is not one for new patients."
        )
    if protocol == AUGMENTED:
        return (
            f"Copies of {split} {many} are in the training set: the data set was augmented before "
            f"it was split. Of the {leakage.images} copies in this split, "
            f"{leakage.images_with_a_copy_in_training} have a copy of the same {one} in training, "
            f"and {leakage.images_of_a_patient_in_training} are of a patient who is in training. "
            f"The score is not one for new patients."
        )
    return (
        f"No patient of this split was in training: the patient keys in the records of its "
        f"{leakage.images} {many} were compared with those of all training records."
    )


def random_order(count: int, *seeds: int) -> Int[np.ndarray, " count"]:
    """A random order; from raw bits, whose stream NumPy promises to keep."""
    return np.argsort(np.random.PCG64(seeds).random_raw(count), kind="stable")
