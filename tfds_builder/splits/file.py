"""splits.csv, which keeps patients in their split when a data set is built again."""

import csv
import io
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from tfds_builder.classes import fault_of
from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import FOLD, SPLITS
from tfds_builder.tables import csv_text

FILE_NAME = "splits.csv"
_FIELDS = ("patient_key", "label", "split")
_KEY = re.compile(r"[0-9a-f]{16}", re.ASCII)


def read_splits(path: Path) -> dict[str, tuple[str, str]]:
    """Reads splits.csv: pseudonym -> (label, split); empty where there is no file.

    Raises UserError on a file that `splits_text` did not make.
    """
    try:
        table = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, csv.Error):
        raise UserError(f"{path}: cannot be read; restore it or remove it") from None
    if not table or tuple(table[0]) != _FIELDS:
        raise UserError(f"{path}: row 1 must be {','.join(_FIELDS)}; restore the file or remove it")
    known: dict[str, tuple[str, str]] = {}
    for number, row in enumerate(table[1:], start=2):
        whole = len(row) == len(_FIELDS) and not fault_of(row[1])
        if not whole or not (row[2] in SPLITS or FOLD.fullmatch(row[2])):
            raise UserError(f"{path}: row {number}: not patient_key,label,split; restore the file")
        if not _KEY.fullmatch(row[0]):
            raise UserError(
                f"{path}: row {number}: patient_key is not 16 hexadecimal digits (did a "
                "spreadsheet make a number of it?); restore the file"
            )
        if row[0] in known:
            raise UserError(f"{path}: row {number}: patient {row[0]} occurs twice; keep one row")
        known[row[0]] = (row[1], row[2])
    return known


def splits_text(known: Mapping[str, tuple[str, str]]) -> str:
    """The content of splits.csv: pseudonyms, labels and splits, sorted."""
    return csv_text(_FIELDS, ((patient, *known[patient]) for patient in sorted(known)))


def check_division(found: set[str], names: tuple[str, ...], file: Path) -> None:
    """Checks that the splits found in a file are those that patients are to be divided into.

    The file holds a whole division: four folds are never the first four of five. Raises UserError.
    """
    divided, wanted = _division(found), _division(names)
    if found and (divided != wanted or not found <= set(names)):
        raise UserError(
            f"{file} divides into {divided}, not into {wanted}: use another --data_dir, or remove "
            "the file to divide all patients anew"
        )


def _division(names: Collection[str]) -> str:
    if set(names) <= set(SPLITS):
        return ", ".join(SPLITS)
    folds = [int(fold[1]) for name in names if (fold := FOLD.fullmatch(name))]
    if len(folds) == len(names):
        return f"{1 + max(folds)} folds"
    return ", ".join(sorted(names))
