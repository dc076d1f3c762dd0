"""Reads manifest.csv, the table that says which files belong to which patient and label.

In: the path of a CSV file or a workbook. Out: typed rows, checked as far as the table alone allows;
the first fault is raised with its row, and how many more there are. Messages name rows and columns,
never a path or a patient: they end up in logs.
"""

import difflib
import functools
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tfds_builder.classes import fault_of, means_unknown, normalise, question_labels
from tfds_builder.commandline.errors import UserError
from tfds_builder.tables import composed, read_rows

VIEWS = ("anterior", "posterior")
SPLITS = ("train", "validation", "test")
FOLD = re.compile(r"fold_(0|[1-9]\d{0,3})", re.ASCII)
REQUIRED_COLUMNS = ("path", "patient_id", "label")
COLUMNS = (
    *REQUIRED_COLUMNS,
    "study_id",
    "view",
    "frame",
    "split",
    "site",
    "sex",
    "age",
    "lesion_mask",
    "accept",
    "comment",
)
MAX_AGE = 130

Value = TypeVar("Value")

_SEXES = {"f": "F", "female": "F", "m": "M", "male": "M", "o": "O", "other": "O", "u": None}
# A column with gaps becomes one of decimals in many programs: 57.0.
_AGE = re.compile(r"(\d{1,3})(?:Y|\.0)?", re.ASCII)
_SHORTENED = re.compile(r"\d([.,]\d+)?E\+\d+", re.ASCII | re.I)
# TRUE and FALSE are what spreadsheets make of a tick.
_ANSWERS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a file, or one frame of it. What a column `comment` says is not kept.

    Attributes:
      number: the row as a spreadsheet shows it; the header is row 1.
      path: the image file, absolute; it may not be there, but it lies in the manifest's folder.
      relative_path: the same as a POSIX path from the manifest's folder.
      patient_id: as written; it never leaves the builder.
      label: the name of a class, normalised.
      study_id: as written, or None.
      view: 'anterior' or 'posterior' where the table says so, or None.
      frame: DICOM frame number, from 1, or None for all of the file's views.
      split: one of `SPLITS` or 'fold_N', or None where the builder decides.
      site: the hospital or camera, as written, or None.
      sex: 'F', 'M', 'O', or None where the table is silent or says that it is unknown.
      age: whole years, or None.
      lesion_mask: a multi-page TIFF, absolute, or None.
      accept: whether a person takes the file although a rule of thumb is against it.
    """

    number: int
    path: Path
    relative_path: str
    patient_id: str
    label: str
    study_id: str | None = None
    view: str | None = None
    frame: int | None = None
    split: str | None = None
    site: str | None = None
    sex: str | None = None
    age: int | None = None
    lesion_mask: Path | None = None
    accept: bool = False


def number_of(name: str) -> str:
    """The whole number that a name is, without zeros before it or '.0' behind it; else empty."""
    found = re.fullmatch(r"0*(\d+?)(\.0+)?", name, re.ASCII)
    return found[1] if found else ""


class _Fault(Exception):
    """What is wrong with one cell or row, without its place."""


def read_manifest(path: Path, classes: tuple[str, ...] | None = None) -> tuple[Row, ...]:
    """Reads and checks a manifest.

    Args:
      path: a table, as `tables.read_rows` reads it; paths in it are relative to its folder.
      classes: what the labels may be; None where they are what the table says.

    Returns:
      The rows in the file's order, at least one.

    Raises:
      UserError: names file, row and field of the first fault, what to do, and how many more are.
    """
    table = read_rows(path)
    if not table:
        raise UserError(
            f"{path}: the manifest is empty; its first row names the columns "
            f"{', '.join(REQUIRED_COLUMNS)}"
        )
    columns = _columns(path, table[0][1])
    files = _Files(path.resolve().parent)
    rows, faults = [], []
    for number, cells in table[1:]:
        try:
            rows.append(_row(number, _named_cells(columns, cells), files, classes))
        except _Fault as fault:
            faults.append((number, str(fault)))
    if not rows and not faults:
        raise UserError(
            f"{path}: the manifest has a header but no rows; add one row per image file"
        )
    faults += [*_duplicates(rows), *_torn_patients(rows), *_patients_but_for_spelling(rows)]
    if faults:
        number, text = min(faults, key=lambda fault: fault[0])
        more = len(faults) - 1
        tail = f" (and {more} more error{'s' if more > 1 else ''} in this manifest)" if more else ""
        raise UserError(f"{path}: row {number}: {text}{tail}")
    if not classes:
        labels: dict[str, list[str]] = defaultdict(list)
        for row in rows:
            labels[row.label].append(f"{path}: row {row.number}")
        many = f"{path}: column 'label' holds {len(labels)} different labels; if all"
        question_labels(labels, many, "correct it")
    return tuple(rows)


def _columns(path: Path, header: list[str]) -> list[str]:
    while header and not header[-1]:
        header = header[:-1]
    for number, name in enumerate(header, start=1):
        if name not in COLUMNS:
            raise UserError(f"{path}: row 1: column {number} is unknown; {_suggestion(name)}")
        if header.count(name) > 1:
            raise UserError(f"{path}: row 1: column '{name}' occurs twice; keep one")
    for name in REQUIRED_COLUMNS:
        if name not in header:
            raise UserError(
                f"{path}: row 1: column '{name}' is missing; present are {', '.join(header)}"
            )
    return header


def _suggestion(name: str) -> str:
    close = difflib.get_close_matches(name.lower().replace(" ", "_"), COLUMNS, n=1)
    if close:
        return f"did you mean '{close[0]}'?"
    return f"known are {', '.join(COLUMNS)}; remove or rename it, and see that row 1 names columns"


def _named_cells(columns: list[str], cells: list[str]) -> dict[str, str]:
    extra = cells[len(columns) :]
    if any(extra):
        raise _Fault(
            f"has {len(cells)} cells, not {len(columns)}; quote a cell that holds a separator"
        )
    return dict(itertools.zip_longest(columns, cells[: len(columns)], fillvalue=""))


def _row(
    number: int, cells: dict[str, str], files: "_Files", classes: tuple[str, ...] | None
) -> Row:
    for name in REQUIRED_COLUMNS:
        if not cells[name]:
            raise _Fault(f"{name} is empty; fill it in")
    path = files.inside("path", cells["path"])
    # One name in two spellings of Unicode would be two patients.
    cells = {name: composed(cell) for name, cell in cells.items()}
    optional: dict[str, Callable[[str], Any]] = {
        "study_id": lambda study: _written_out("study_id", study),
        "view": lambda view: _one_of("view", view, VIEWS),
        "frame": _frame,
        "split": _split,
        "site": str,
        "sex": lambda sex: _meaning("sex", sex, _SEXES, "F, M, O, unknown"),
        "age": _age,
        "lesion_mask": lambda mask: files.inside("lesion_mask", mask),
        "accept": lambda yes: _meaning("accept", yes, _ANSWERS, "yes, no"),
    }
    known = [name for name in optional if not means_unknown(cells.get(name, ""))]
    return Row(
        number=number,
        path=path,
        relative_path=composed(path.relative_to(files.folder).as_posix()),
        patient_id=_patient_id(cells["patient_id"]),
        label=_label(cells["label"], classes),
        **{name: optional[name](cells[name]) for name in known},
    )


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        close = difflib.get_close_matches(value.lower(), allowed, n=1)
        # Where columns have shifted, a cell may hold a name: only what is nearly right is repeated.
        what = f"{field} '{value}'" if close else field
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise _Fault(f"{what} is not one of {', '.join(allowed)}{hint}")
    return value


def _patient_id(value: str) -> str:
    if means_unknown(value):
        raise _Fault(
            "patient_id says that it is unknown; fill it in, so that patients are told apart"
        )
    return _written_out("patient_id", value)


def _written_out(field: str, value: str) -> str:
    if _SHORTENED.fullmatch(value):
        raise _Fault(
            f"{field} is a number that a spreadsheet has shortened (1.2E+11); write it out, with "
            "the column as text"
        )
    return value


def _label(value: str, classes: tuple[str, ...] | None) -> str:
    label = normalise(value)
    if means_unknown(label):
        raise _Fault("label says that it is unknown; fill it in, or take the row out")
    if classes:
        return _one_of("label", label, classes)
    fault = fault_of(label)
    if fault:
        raise _Fault(f"label {fault}; write the name of the class")
    return label


def _split(value: str) -> str:
    return value if FOLD.fullmatch(value) else _one_of("split", value, SPLITS)


def _frame(value: str) -> int:
    number = value.removesuffix(".0")
    if not (number.isascii() and number.isdigit()) or int(number[:9]) < 1:
        raise _Fault("frame is not a whole number from 1 up")
    return int(number[:9])


def _meaning(field: str, value: str, known: Mapping[str, Value], choice: str) -> Value:
    if value.lower() not in known:
        raise _Fault(f"{field} is not one of {choice}")
    return known[value.lower()]


def _age(value: str) -> int:
    match = _AGE.fullmatch(value)
    if not match or int(match[1]) > MAX_AGE:
        raise _Fault(f"age is not whole years from 0 to {MAX_AGE}")
    return int(match[1])


class _Files:
    """The files of the manifest's folder, by their names in any spelling of Unicode."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._names = functools.cache(_composed_names)

    def inside(self, field: str, value: str) -> Path:
        """The file that a cell names. It must lie in the manifest's folder, also behind its links.

        Whether it is there is found when it is read: one file that was moved must not stop the
        rest.
        """
        try:
            # Tables made under Windows have backslashes between folders.
            if "\\" in value and not (self.folder / value).exists():
                value = value.replace("\\", "/")
            named = self._spelled(Path(os.path.normpath(self.folder / value)))
            resolved = named.resolve()
        except (OSError, ValueError, RuntimeError):
            raise _Fault(f"{field} is not a usable path") from None
        if not resolved.is_relative_to(self.folder):
            raise _Fault(
                f"{field} leaves the manifest's folder; move the file inside it "
                "(links that lead out are not followed)"
            )
        # Links inside the folder keep their names, so that each is a row of its own.
        return named if named.is_relative_to(self.folder) else resolved

    def _spelled(self, named: Path) -> Path:
        """The path as the file system spells it, where it has it in another form of Unicode."""
        if str(named).isascii() or not named.is_relative_to(self.folder) or named.exists():
            return named
        found = self.folder
        for part in named.relative_to(self.folder).parts:
            there = (found / part).exists()
            found /= part if there else self._names(found).get(composed(part), part)
        return found


def _composed_names(folder: Path) -> dict[str, str]:
    """Composed name -> name, of what is in a folder."""
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return {composed(name): name for name in names}


def _duplicates(rows: list[Row]) -> Iterator[tuple[int, str]]:
    rows_of: dict[Path, dict[int | None, int]] = defaultdict(dict)
    for row in rows:
        seen = rows_of[row.path]
        first = seen.get(row.frame) or seen.get(None)
        if row.frame is None:
            first = first or next(iter(seen.values()), None)
        if first is not None:
            what = "path" if row.frame is None else f"path with frame {row.frame}"
            yield row.number, f"{what} is already in row {first}"
        seen.setdefault(row.frame, row.number)


def _torn_patients(rows: list[Row]) -> Iterator[tuple[int, str]]:
    first: dict[str, Row] = {}
    for row in rows:
        if row.split is None:
            continue
        other = first.setdefault(row.patient_id, row)
        if other.split != row.split:
            yield (
                row.number,
                f"split '{row.split}', but row {other.number} puts the same patient_id into "
                f"'{other.split}'; keep a patient in one split",
            )


def _patients_but_for_spelling(rows: list[Row]) -> Iterator[tuple[int, str]]:
    """A number without its zeros, or a name in capitals, in some rows alone would be two patients.

    A sign between digits tells them apart: 1-11 is not 11-1.
    """
    first: dict[str, Row] = {}
    for row in rows:
        written = row.patient_id
        signed = re.sub(r"[\s._-]+", "-", written.casefold())
        bare = re.sub(r"(?<!\d)-|-(?!\d)", "", signed)
        other = first.setdefault(number_of(written) or bare, row)
        if other.patient_id != written:
            yield (
                row.number,
                f"patient_id differs from that of row {other.number} in zeros, capitals, spaces or "
                "signs alone; write one patient the same way everywhere, and tell two apart by a "
                "letter",
            )
