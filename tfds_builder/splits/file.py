"""splits.csv, which keeps patients in their split when a data set is built again."""

import csv
import io
import re
from collections.abc import Mapping
from pathlib import Path

from tfds_builder.classes import fault_of
from tfds_builder.commandline.errors import UserError
from tfds_builder.splits.names import is_split_name
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
        if len(row) != len(_FIELDS) or fault_of(row[1]) or not is_split_name(row[2]):
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
