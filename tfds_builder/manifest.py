"""Reads manifest.csv, the table that says which files belong to which patient and label.

In: the path of a CSV file. Out: typed rows, checked as far as the table alone allows; the first
fault is raised with its row, and how many more there are. Messages name rows and columns, never a
path or a patient: they end up in logs.
"""

import csv
import difflib
import io
import os
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tfds_builder.errors import DataError

LABELS = ("normal", "metastasis", "arthritis", "thyroid_carcinoma")
VIEWS = ("anterior", "posterior")
SPLITS = ("train", "validation", "test")
REQUIRED_COLUMNS = ("path", "patient_id", "label")
OPTIONAL_COLUMNS = (
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
COLUMNS = REQUIRED_COLUMNS + OPTIONAL_COLUMNS
MAX_AGE = 130

_SEXES = {
    "f": "F",
    "female": "F",
    "m": "M",
    "male": "M",
    "o": "O",
    "other": "O",
    "u": "unknown",
    "unknown": "unknown",
}
# TRUE and FALSE are what spreadsheets make of a tick.
_ANSWERS = {"yes": True, "true": True, "1": True, "no": False, "false": False, "0": False}
_AGE = re.compile(r"(\d{1,3})Y?", re.ASCII)
_FOLD = re.compile(r"fold_\d{1,3}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Row:
    """One row: a file, or one frame of it. What a column `comment` says is not kept.

    Attributes:
      number: the row as a spreadsheet shows it; the header is row 1.
      path: the image file, absolute; it may not be there, but it lies in the manifest's folder.
      relative_path: the same as a POSIX path from the manifest's folder.
      patient_id: as written; it never leaves the builder.
      label: one of `LABELS`.
      study_id: as written, or None.
      view: 'anterior' or 'posterior' where the table says so, or None.
      frame: DICOM frame number, from 1, or None for all of the file's views.
      split: one of `SPLITS` or 'fold_N', or None where the builder decides.
      site: the hospital or camera, as written, or None.
      sex: 'F', 'M', 'O', 'unknown', or None where the table is silent.
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


class _Fault(Exception):
    """What is wrong with one cell or row, without its place."""


def read_manifest(path: Path) -> tuple[Row, ...]:
    """Reads and checks a manifest.

    Args:
      path: a CSV file in UTF-8, comma, semicolon or tab separated; paths in it are relative to its
        folder.

    Returns:
      The rows in the file's order, at least one.

    Raises:
      DataError: naming the file, the row and the field of the first fault, what to do, and how many
        more faults there are.
    """
    table = _records(path, _text(path))
    _, header = next(table, (1, []))
    columns = _columns(path, header)
    folder = path.resolve().parent
    rows, faults = [], []
    for number, cells in table:
        try:
            rows.append(_row(number, _named_cells(columns, cells), folder))
        except _Fault as fault:
            faults.append((number, str(fault)))
    if not rows and not faults:
        raise DataError(
            f"{path}: the manifest has a header but no rows; add one row per image file"
        )
    faults += _duplicates(rows) + _torn_patients(rows)
    _raise_first(path, faults)
    return tuple(rows)


def _text(path: Path) -> str:
    if path.is_dir():
        raise DataError(f"{path}: is a folder; give the manifest file inside it")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such manifest; give the path of a manifest.csv") from None
    except OSError as error:
        raise DataError(f"{path}: cannot read the manifest ({error.strerror})") from None
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text; save it as 'CSV UTF-8' and try again") from None
    if not text.strip():
        raise DataError(
            f"{path}: the manifest is empty; its first row names the columns "
            f"{', '.join(REQUIRED_COLUMNS)}"
        )
    return text


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Yields (row number, stripped cells) of every row that is not blank."""
    first_line = text.splitlines()[0]
    separator = max(",;\t", key=first_line.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    number = 0
    try:
        for number, cells in enumerate(reader, start=1):
            # One name in two spellings of Unicode would be two patients.
            stripped = [unicodedata.normalize("NFC", cell.strip()) for cell in cells]
            if any(stripped):
                yield number, stripped
    except csv.Error as error:
        raise DataError(f"{path}: row {number + 1}: not valid CSV ({error})") from None


def _columns(path: Path, header: list[str]) -> list[str]:
    while header and not header[-1]:
        header = header[:-1]
    for number, name in enumerate(header, start=1):
        if name not in COLUMNS:
            raise DataError(f"{path}: row 1: column {number} is unknown; {_suggestion(name)}")
        if header.count(name) > 1:
            raise DataError(f"{path}: row 1: column '{name}' occurs twice; keep one")
    for name in REQUIRED_COLUMNS:
        if name not in header:
            raise DataError(
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
    padded = cells + [""] * (len(columns) - len(cells))
    return dict(zip(columns, padded, strict=False))


def _row(number: int, cells: dict[str, str], folder: Path) -> Row:
    for name in REQUIRED_COLUMNS:
        if not cells[name]:
            raise _Fault(f"{name} is empty; fill it in")
    path = _inside(folder, "path", cells["path"])
    mask = cells.get("lesion_mask")
    split = cells.get("split")
    if split and not _FOLD.fullmatch(split):
        _one_of("split", split, SPLITS)
    return Row(
        number=number,
        path=path,
        relative_path=path.relative_to(folder).as_posix(),
        patient_id=cells["patient_id"],
        label=_one_of("label", cells["label"], LABELS),
        study_id=cells.get("study_id") or None,
        view=_optional_one_of("view", cells, VIEWS),
        frame=_frame(cells.get("frame")),
        split=split or None,
        site=cells.get("site") or None,
        sex=_sex(cells.get("sex")),
        age=_age(cells.get("age")),
        lesion_mask=_inside(folder, "lesion_mask", mask) if mask else None,
        accept=_accept(cells.get("accept")),
    )


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        close = difflib.get_close_matches(value.lower(), allowed, n=1)
        # Where columns have shifted, a cell may hold a name: only what is nearly right is repeated.
        what = f"{field} '{value}'" if close else field
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise _Fault(f"{what} is not one of {', '.join(allowed)}{hint}")
    return value


def _optional_one_of(field: str, cells: dict[str, str], allowed: tuple[str, ...]) -> str | None:
    value = cells.get(field)
    return _one_of(field, value, allowed) if value else None


def _frame(value: str | None) -> int | None:
    if not value:
        return None
    if not (value.isascii() and value.isdigit()) or int(value[:9]) < 1:
        raise _Fault("frame is not a whole number from 1 up")
    return int(value[:9])


def _sex(value: str | None) -> str | None:
    if not value:
        return None
    if value.lower() not in _SEXES:
        raise _Fault("sex is not one of F, M, O, unknown")
    return _SEXES[value.lower()]


def _accept(value: str | None) -> bool:
    if value and value.lower() not in _ANSWERS:
        raise _Fault("accept is not one of yes, no")
    return bool(value) and _ANSWERS[value.lower()]


def _age(value: str | None) -> int | None:
    if not value:
        return None
    match = _AGE.fullmatch(value)
    if not match or int(match[1]) > MAX_AGE:
        raise _Fault(f"age is not whole years from 0 to {MAX_AGE}")
    return int(match[1])


def _inside(folder: Path, field: str, value: str) -> Path:
    """The file that a cell names. It must lie in the manifest's folder, also behind its links.

    Whether it is there is found when it is read: one file that was moved must not stop the rest.
    """
    try:
        named = Path(os.path.normpath(folder / value))
        resolved = named.resolve()
    except (OSError, ValueError, RuntimeError):
        raise _Fault(f"{field} is not a usable path") from None
    if not resolved.is_relative_to(folder):
        raise _Fault(
            f"{field} leaves the manifest's folder; move the file inside it "
            "(links that lead out are not followed)"
        )
    # Links inside the folder keep their names, so that each is a row of its own.
    return named if named.is_relative_to(folder) else resolved


def _duplicates(rows: list[Row]) -> list[tuple[int, str]]:
    faults = []
    seen: dict[tuple[Path, int | None], int] = {}
    first_of_path: dict[Path, int] = {}
    for row in rows:
        whole, one = (row.path, None), (row.path, row.frame)
        first = seen.get(one) or seen.get(whole)
        if first is None and row.frame is None:
            first = first_of_path.get(row.path)
        if first is not None:
            what = "path" if row.frame is None else f"path with frame {row.frame}"
            faults.append((row.number, f"{what} is already in row {first}"))
        seen.setdefault(one, row.number)
        first_of_path.setdefault(row.path, row.number)
    return faults


def _torn_patients(rows: list[Row]) -> list[tuple[int, str]]:
    faults = []
    first: dict[str, Row] = {}
    for row in rows:
        if row.split is None:
            continue
        other = first.setdefault(row.patient_id, row)
        if other.split != row.split:
            faults.append(
                (
                    row.number,
                    f"split '{row.split}', but row {other.number} puts the same patient_id into "
                    f"'{other.split}'; keep a patient in one split",
                )
            )
    return faults


def _raise_first(path: Path, faults: list[tuple[int, str]]) -> None:
    if not faults:
        return
    number, text = min(faults, key=lambda fault: fault[0])
    more = len(faults) - 1
    tail = f" (and {more} more error{'s' if more > 1 else ''} in this manifest)" if more else ""
    raise DataError(f"{path}: row {number}: {text}{tail}")
