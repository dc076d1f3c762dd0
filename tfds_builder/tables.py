"""Reads tables as spreadsheets save them: CSV in its dialects, or a workbook (.xlsx). Writes CSV.

In: the path of a file. Out: its rows that are not blank, as trimmed text, under the numbers that a
spreadsheet shows.
"""

import contextlib
import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.progress import say

Rows = list[tuple[int, list[str]]]

_SEPARATORS = ",;\t"
_LINES_LOOKED_AT = 20
_SEPARATOR_LINE = re.compile(r'"?sep=(.)"?[\s,;]*', re.I)
_AS_CSV = "save it as 'CSV UTF-8' and try again"
_ZIP, _OLE = b"PK\x03\x04", b"\xd0\xcf\x11\xe0"
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
# How people keep a spreadsheet from reading a number: ="00123" and '00123.
_KEPT_TEXT = re.compile(r"=\"([^\"]*)\"|'(?=\d)(.*)")


def read_rows(path: Path) -> Rows:
    """Reads a table; of a workbook, the first visible sheet that is not empty.

    Sheets that hold something and are not read are named on the screen.

    Text is UTF-8, or UTF-16 with its mark, separated by comma, semicolon or tab, as a line `sep=;`
    or else the first lines tell. Without any of these, the last word of a line is its second cell.

    Returns (row number, cells) of every row that is not blank; none where the file is empty. A
    UserError names the file, and the row where there is one.
    """
    content = _content(path)
    if content.startswith(_OLE):
        raise UserError(f"{path}: is an old or an encrypted workbook; {_AS_CSV}")
    is_workbook = content.startswith(_ZIP)
    rows = _of_workbook(path, content) if is_workbook else _of_text(path, _text(path, content))
    plain = ((number, [plain_cell(cell) for cell in cells]) for number, cells in rows)
    return [(number, cells) for number, cells in plain if any(cells)]


def composed(text: str) -> str:
    """Text in one spelling: file systems and people write accents in two ways (NFC and NFD)."""
    return unicodedata.normalize("NFC", text)


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table as CSV, with a header line."""
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(rows)
    return text.getvalue()


def _content(path: Path) -> bytes:
    if path.is_dir():
        raise UserError(f"{path}: is a folder; give the file of the table inside it")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; give the path of the table") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _text(path: Path, content: bytes) -> str:
    encoding = "utf-16" if content.startswith(_UTF_16) else "utf-8-sig"
    with contextlib.suppress(UnicodeDecodeError):
        text = content.decode(encoding)
        if "\0" not in text.partition("\n")[0]:
            return text
    raise UserError(f"{path}: not UTF-8 text; {_AS_CSV}")


def plain_cell(cell: str) -> str:
    """What is meant by a cell: without white space around it, or marks that keep it a text."""
    trimmed = cell.strip("\ufeff\u200b \t\r\n\xa0").strip()
    kept = _KEPT_TEXT.fullmatch(trimmed)
    return (kept[1] or kept[2] or "").strip() if kept else trimmed


def _of_text(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    first, _, rest = text.partition("\n")
    said = _SEPARATOR_LINE.fullmatch(first.strip("\r"))
    # A spreadsheet does not show this line, so it counts as none.
    text, separator = (rest, said[1]) if said else (text, _separator(text))
    if separator:
        return _separated(path, text, separator)
    # The last word is a cell of its own; file names may hold spaces.
    return ((n, line.rsplit(None, 1)) for n, line in enumerate(text.splitlines(), start=1))


def _separator(text: str) -> str:
    """The one that most of the first lines hold, and of these the most frequent."""
    lines = [line for line in text.splitlines() if line.strip()][:_LINES_LOOKED_AT]

    def holding(separator: str) -> tuple[int, int]:
        counts = [line.count(separator) for line in lines]
        return sum(count > 0 for count in counts), sum(counts)

    best = max(_SEPARATORS, key=holding)
    return best if 2 * holding(best)[0] > len(lines) else ""


def _separated(path: Path, text: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    number = 0
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        for number, cells in enumerate(reader, start=1):
            yield number, cells
    except csv.Error as error:
        raise UserError(f"{path}: row {number + 1}: not valid CSV ({error})") from None


def _of_workbook(path: Path, content: bytes) -> Iterator[tuple[int, list[str]]]:
    try:
        import openpyxl
    except ImportError:
        raise UserError(
            f"{path}: to read a workbook, install openpyxl (pip install -c constraints.txt "
            f"'.[xlsx]'), or {_AS_CSV}"
        ) from None
    try:
        book = openpyxl.load_workbook(io.BytesIO(content), data_only=True)
    except Exception as error:  # openpyxl raises nearly anything on what is no workbook.
        raise UserError(
            f"{path}: cannot be read as a workbook ({type(error).__name__}); {_AS_CSV}"
        ) from None
    filled = [sheet for sheet in book.worksheets if _extent(sheet)[0]]
    visible = [sheet for sheet in filled if sheet.sheet_state == "visible"]
    if not visible:
        return
    others = ", ".join(f"'{sheet.title}'" for sheet in filled if sheet is not visible[0])
    if others:
        say(f"note: {path}: sheet '{visible[0].title}' is read; not read: {others}")
    yield from _of_sheet(visible[0])


def _extent(sheet: Any) -> tuple[int, int]:
    """The last row and column that hold a value: cells with a format alone may lie far beyond."""
    places = [place for place, cell in sheet._cells.items() if _shown(cell).strip()]
    return max((row for row, _ in places), default=0), max((n for _, n in places), default=0)


def _of_sheet(sheet: Any) -> Iterator[tuple[int, list[str]]]:
    """A merged cell says the same in all its places."""
    rows, columns = _extent(sheet)
    merged = {
        (row, column): (area.min_row, area.min_col)
        for area in sheet.merged_cells.ranges
        for row in range(area.min_row, min(area.max_row, rows) + 1)
        for column in range(area.min_col, min(area.max_col, columns) + 1)
    }
    for row in range(1, rows + 1):
        places = [(row, column) for column in range(1, columns + 1)]
        yield row, [_shown(sheet.cell(*merged.get(place, place))) for place in places]


def _shown(cell: Any) -> str:
    """The text of a cell, with the zeros that its format puts before a number."""
    value = cell.value
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and re.fullmatch("0+", cell.number_format or ""):
        return str(value).zfill(len(cell.number_format))
    if isinstance(value, datetime):
        return value.isoformat()
    # How a workbook writes the end of a line that came from elsewhere.
    return str(value).replace("_x000D_", " ")
