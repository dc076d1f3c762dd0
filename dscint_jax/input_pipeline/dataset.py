"""Where the data set lies, and which of its splits make up one split of a run.

In: a data directory, a split's name and a fold. Out: the TFDS builder, read from its files alone,
and names of its splits.
"""

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from dscint_jax.config import NO_FOLD, VIEWS
from tfds_builder.commandline.errors import UserError

DATASET = "scintigraphy"
SPLITS = ("train", "validation", "test")
MEANT = {"val": "validation", "valid": "validation", "dev": "validation", "training": "train"}
"""What other programs call some of them."""

FEWEST_FOLDS = 3

_FOLD = re.compile(r"fold_(\d+)", re.ASCII)


def open_dataset(data_dir: Path, records: str = VIEWS) -> Any:
    """The TFDS builder of the data set under `data_dir`, read from its files alone.

    Args:
      data_dir: where the data set lies.
      records: 'views' or 'studies'; each is a data set of its own.

    Raises:
      UserError: there is no complete data set.
    """
    # Slow to import, and not needed before data is.
    import tensorflow_datasets as tfds

    versions = sorted(
        (data_dir / DATASET / records).glob("*/dataset_info.json"),
        key=lambda path: [int(part) for part in re.findall(r"\d+", path.parent.name)],
    )
    if not versions:
        # A glob passes over what may not be read.
        for folder in (data_dir, data_dir / DATASET, data_dir / DATASET / records):
            if folder.is_dir():
                os.listdir(folder)
        option = "" if records == VIEWS else f" --config {records}"
        raise UserError(
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
      UserError: `fold` does not fit the data set, or there is no such split.
    """
    names = tuple(names)
    folds = folds_of(names)
    if not folds and fold != NO_FOLD:
        raise UserError(
            f"config.data.fold is {fold}, but the data set is divided into {', '.join(names)}, not "
            f"into folds; set --config.data.fold={NO_FOLD}"
        )
    if folds:
        _check_fold(fold, len(folds))
    known = SPLITS if folds else names
    if split not in known:
        raise UserError(
            f"no split '{split}' in the data set; it has {', '.join(known)}"
            f"{did_you_mean(split, known)}"
        )
    if not folds:
        return (split,)
    test, validation = folds[fold], folds[(fold + 1) % len(folds)]
    train = tuple(name for name in folds if name not in (test, validation))
    return {"train": train, "validation": (validation,), "test": (test,)}[split]


def check_split(split: str) -> None:
    """Raises UserError unless it is one of SPLITS."""
    if split not in SPLITS:
        raise UserError(
            f"no split '{split}'; there are {', '.join(SPLITS)}{did_you_mean(split, SPLITS)}"
        )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A question about the split that another name, such as 'val', may stand for; or nothing."""
    meant = MEANT.get(name.strip().lower(), name.strip().lower())
    close = difflib.get_close_matches(meant, tuple(known), n=1)
    return f"; did you mean {close[0]}?" if close else ""


def all_parts(names: Iterable[str]) -> tuple[str, ...]:
    """All of a data set's splits, or of its folds by number, in an order of their own."""
    names = tuple(names)
    return folds_of(names) or tuple(sorted(names))


def _check_fold(fold: int, count: int) -> None:
    choice = f"--config.data.fold=0 .. {count - 1}"
    if count < FEWEST_FOLDS:
        raise UserError(
            f"the data set has {count} folds, and {FEWEST_FOLDS} are needed, to test, to validate "
            "and to train on; build it with more"
        )
    if fold == NO_FOLD:
        raise UserError(f"the data set is divided into {count} folds; train with {choice}")
    if not 0 <= fold < count:
        raise UserError(f"config.data.fold is {fold}; of {count} folds choose {choice}")
