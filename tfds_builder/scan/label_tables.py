"""Joins label tables of any common shape to files.

In: CSV files with a header, or texts of two columns without one. Out: a label for each file that an
entry names, and how much on either side found no partner.
"""

import csv
import io
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tfds_builder.errors import DataError
from tfds_builder.manifest import LABELS

KEYS = ("path", "file", "study_id", "patient_id")
LEFT_OUT = ""


@dataclass(frozen=True)
class LabelTable:
    """One table.

    Attributes:
      path: where it was read.
      key: one of `KEYS`, what its entries are named by.
      entries: name -> (row number, value as written).
    """

    path: Path
    key: str
    entries: dict[str, tuple[int, str]]


@dataclass(frozen=True)
class Keys:
    """By what a table may name a file; `path` is relative to the folder that is scanned."""

    path: PurePosixPath
    patient_id: str
    study_id: str


@dataclass(frozen=True)
class Joined:
    """Which label each file gets, in the order of the files.

    Attributes:
      labels: one of `LABELS`, `LEFT_OUT`, or None where no entry names the file.
      unused: per table, how many entries name no file.
    """

    labels: tuple[str | None, ...]
    unused: tuple[int, ...]


def read_label_map(pairs: Iterable[str]) -> dict[str, str]:
    """Reads FROM=TO pairs; an empty TO leaves files out.

    Raises:
      DataError: not a pair, a label that there is not, or a value mapped twice.
    """
    mapped: dict[str, str] = {}
    for pair in pairs:
        value, sign, label = pair.rpartition("=")
        if not sign or label not in (*LABELS, LEFT_OUT):
            raise DataError(
                f"--label_map '{pair}': write VALUE=LABEL, where LABEL is {', '.join(LABELS)}, or "
                "empty to leave such files out"
            )
        if mapped.setdefault(value, label) != label:
            raise DataError(f"--label_map: '{value}' is mapped twice")
    return mapped


def resolve(value: str, label_map: dict[str, str], where: str) -> str:
    """The label that a written value means.

    Raises:
      DataError: it means none; `where` begins the message.
    """
    plain = value.lower().replace(" ", "_").replace("-", "_")
    if value in label_map or plain in LABELS:
        return label_map.get(value, plain)
    raise DataError(
        f"{where}: label '{value}' is not one of {', '.join(LABELS)}; "
        f"say what it means: --label_map '{value}=LABEL'"
    )


def read_table(path: Path) -> LabelTable:
    """Reads a label table.

    It has a header row with `label` and one of `KEYS`, comma, semicolon or tab separated; or no
    header and two columns, file name and label, separated by these or by white space.

    Raises:
      DataError: naming the table and the row.
    """
    rows = _rows(path)
    header = [cell.lower() for cell in rows[0][1]]
    if "label" in header:
        key = next((name for name in KEYS if name in header), "")
        if not key:
            raise DataError(
                f"{path}: row 1: beside 'label' one of {', '.join(KEYS)} is needed; "
                f"present are {', '.join(header)}"
            )
        places, rows = (header.index(key), header.index("label")), rows[1:]
    elif len(header) == 2:
        key, places = "file", (0, 1)
    else:
        raise DataError(
            f"{path}: row 1: needs a header with 'label' and one of {', '.join(KEYS)}; "
            "or two columns, file name and label, without a header"
        )
    entries: dict[str, tuple[int, str]] = {}
    for number, cells in rows:
        if len(cells) <= max(places):
            raise DataError(f"{path}: row {number}: has {len(cells)} cells, too few")
        name, value = (cells[place] for place in places)
        if not name or not value:
            continue
        first, known = entries.setdefault(name, (number, value))
        if known != value:
            raise DataError(
                f"{path}: row {number}: {key} '{name}' has another label in row {first}"
            )
    return LabelTable(path, key, entries)


def _rows(path: Path) -> list[tuple[int, list[str]]]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as 'CSV UTF-8'") from None
    first = next((line for line in text.splitlines() if line.strip()), "")
    if not first:
        raise DataError(f"{path}: is empty")
    separator = max(",;\t", key=first.count)
    if separator in first:
        return list(_separated(path, text, separator))
    # The last word is the label; file names may hold spaces.
    lines = enumerate(text.splitlines(), start=1)
    return [(number, line.rsplit(None, 1)) for number, line in lines if line.strip()]


def _separated(path: Path, text: str, separator: str) -> Iterable[tuple[int, list[str]]]:
    number = 0
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for number, cells in enumerate(reader, start=1):
            stripped = [cell.strip() for cell in cells]
            if any(stripped):
                yield number, stripped
    except csv.Error as error:
        raise DataError(f"{path}: row {number + 1}: not valid CSV ({error})") from None


def join(files: Sequence[Keys], tables: Sequence[LabelTable], label_map: dict[str, str]) -> Joined:
    """Gives files the labels that tables have for them.

    A table that is named like a folder (wholeBodyANT.txt) and goes by file name is about the files
    in the folders of that name alone. File names may lack their suffix in a table.

    Raises:
      DataError: a value that means no label; two tables that contradict each other.
    """
    labels: list[str | None] = [None] * len(files)
    source: list[str] = [""] * len(files)
    unused = []
    for table in tables:
        places = _places(files, table)
        unused.append(0)
        for name, (row, value) in table.entries.items():
            where = f"{table.path}: row {row}"
            label = resolve(value, label_map, where)
            found = places.get(name, ())
            unused[-1] += not found
            for place in found:
                if labels[place] not in (None, label):
                    raise DataError(
                        f"{where}: {table.key} '{name}' is labelled otherwise in {source[place]}"
                    )
                labels[place], source[place] = label, where
    return Joined(tuple(labels), tuple(unused))


def _places(files: Sequence[Keys], table: LabelTable) -> dict[str, list[int]]:
    """Name -> which files it means."""
    if table.key != "file":
        return _index((str(getattr(file, table.key)), n) for n, file in enumerate(files))
    own = [n for n, file in enumerate(files) if table.path.stem in file.path.parent.parts]
    numbers = own or range(len(files))
    by_stem = _index((files[n].path.stem, n) for n in numbers)
    return by_stem | _index((files[n].path.name, n) for n in numbers)


def _index(pairs: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    index = defaultdict(list)
    for name, number in pairs:
        index[name].append(number)
    return dict(index)
