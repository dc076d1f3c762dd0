"""Joins label tables of any common shape to files.

In: tables with a header, or of two columns without one. Out: a label for each file that an entry
names, and how much on either side found no partner.
"""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tfds_builder.classes import (
    MOST_CLASSES,
    classes_of,
    fault_of,
    means_unknown,
    misspelt,
    normalise,
)
from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import number_of
from tfds_builder.tables import Rows, read_rows

KEYS = ("path", "file", "study_id", "patient_id")
LEFT_OUT = ""

# Other words for these columns, without case, spaces and signs.
_HEADINGS = {
    "path": ("filepath", "imagepath"),
    "file": ("filename", "image", "imagename", "imagefile"),
    "study_id": ("studyid", "study", "studyuid", "studyinstanceuid"),
    "patient_id": ("patientid", "patient", "patientno", "patientnumber", "pid", "mrn"),
    "label": ("labels", "class", "classname", "diagnosis", "category", "groundtruth"),
}
_MOST_ROWS_ABOVE_HEADER = 10


@dataclass(frozen=True)
class LabelTable:
    """One table.

    Attributes:
      path: where it was read.
      key: one of `KEYS`, what its entries are named by; empty where the files must tell.
      entries: name -> (row number, value as written).
      incomplete: how many rows lack a name or a label.
    """

    path: Path
    key: str
    entries: dict[str, tuple[int, str]]
    incomplete: int = 0


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
      labels: the name of a class, `LEFT_OUT`, or None where no entry gives the file a label.
      sources: the table and row that each label is from; empty text where there is none.
      remarks: what is odd about a table, each a line.
    """

    labels: tuple[str | None, ...]
    sources: tuple[str, ...]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class Meanings:
    """What written labels mean: a value, normalised -> the class, or `LEFT_OUT`.

    `classes` are those that there may be, or None where any name is one.
    """

    of: dict[str, str]
    classes: tuple[str, ...] | None = None


def read_meanings(pairs: Iterable[str], classes: tuple[str, ...] | None = None) -> Meanings:
    """Reads the FROM=TO pairs of `--label_map`; an empty TO leaves files out.

    Raises:
      UserError: not a pair, a TO that names no class, or a value mapped twice.
    """
    mapped: dict[str, str] = {}
    for pair in pairs:
        value, sign, to = pair.rpartition("=")
        label = normalise(to)
        if not sign or (label != LEFT_OUT and _fault(label, classes)):
            fault = f"'{to}' {_fault(label, classes)}; " if sign else ""
            raise UserError(
                f"--label_map '{pair}': {fault}write VALUE=CLASS, or VALUE= to leave such files out"
            )
        if mapped.setdefault(_plain(value), label) != label:
            raise UserError(f"--label_map: '{value}' is mapped twice")
    return Meanings(mapped, classes)


def resolve(value: str, meanings: Meanings, where: str) -> str | None:
    """The class that a written value means, `LEFT_OUT`, or None where it says that it is unknown.

    Raises UserError where it means no class; `where` begins the message.
    """
    if _plain(value) in meanings.of:
        return meanings.of[_plain(value)]
    label = normalise(value)
    if means_unknown(label):
        return None
    fault = _fault(label, meanings.classes)
    if fault:
        raise UserError(
            f"{where}: label '{value}' {fault}; say what it means: --label_map '{value}=CLASS'"
        )
    return label


def _fault(label: str, classes: tuple[str, ...] | None) -> str:
    if classes and label not in classes:
        return f"is not one of {', '.join(classes)}"
    return fault_of(label)


def _plain(value: str) -> str:
    """Whole numbers without the '.0' that a column with gaps gives them."""
    plain = normalise(value)
    return re.sub(r"(?<=\d)\.0+$", "", plain)


def question_labels(found: Mapping[str, Iterable[str]]) -> None:
    """Raises UserError where a label looks misspelt, or where there are more of them than classes.

    They are classes only because nothing says what the classes are. `found` is label -> where each
    of its rows got it.
    """
    counts = {label: len(list(places)) for label, places in found.items()}
    names = ",".join(classes_of(counts).names)
    if len(counts) > MOST_CLASSES:
        raise UserError(
            f"{len(counts)} different labels are found; is it the column of the classes? If all "
            "are classes, list them: --classes A,B,..."
        )
    alike = misspelt(counts)
    if alike:
        label, other = alike
        raise UserError(
            f"{next(iter(found[label]))}: label '{label}' looks like '{other}' misspelt "
            f"({counts[label]}x); say so: --label_map '{label}={other}', or list the classes: "
            f"--classes {names}"
        )


def read_table(path: Path) -> LabelTable:
    """Reads a label table.

    It has a header with `label` and one of `KEYS`, or other words for these, perhaps under a title;
    or two columns, a name and a label, with a header or without. A UserError names table and row.
    """
    rows = read_rows(path)
    if not rows:
        raise UserError(f"{path}: is empty")
    key, places, rows = _columns(path, rows)
    entries: dict[str, tuple[int, str]] = {}
    incomplete = 0
    for number, cells in rows:
        name, value = (cells[place] if place < len(cells) else "" for place in places)
        if means_unknown(name) or not value:
            incomplete += 1
            continue
        # Tables made under Windows have backslashes between folders.
        plain = name.replace("\\", "/").removeprefix("./") if key == "path" else name
        first, known = entries.setdefault(_composed(plain), (number, value))
        if _plain(known) != _plain(value):
            raise UserError(
                f"{path}: row {number}: {key or 'name'} '{name}' has another label in row {first}"
            )
    return LabelTable(path, key, entries, incomplete)


def _columns(path: Path, rows: Rows) -> tuple[str, tuple[int, int], Rows]:
    """The key, the places of name and label in a row, and the rows below the header."""
    for n, (_, cells) in enumerate(rows[:_MOST_ROWS_ABOVE_HEADER]):
        label = _place(cells, "label")
        places = ((key, _place(cells, key)) for key in KEYS)
        key, name = next((found for found in places if found[1] is not None), ("", None))
        if name is not None and label is not None:
            return key, (name, label), rows[n + 1 :]
    if all(not any(cells[2:]) for _, cells in rows):
        return "", (0, 1), rows
    number, cells = rows[0]
    raise UserError(
        f"{path}: row {number}: needs a header with 'label' and one of {', '.join(KEYS)}, or two "
        f"columns alone, name and label; present are {', '.join(filter(None, cells))}"
    )


def _place(header: Sequence[str], name: str) -> int | None:
    """Where a column stands: under its own name first, then under another word for it."""
    plain = [re.sub(r"[\W_]+", "", cell.casefold()) for cell in header]
    words = (name.replace("_", ""), *_HEADINGS[name])
    return next((plain.index(word) for word in words if word in plain), None)


def join(files: Sequence[Keys], tables: Sequence[LabelTable], meanings: Meanings) -> Joined:
    """Gives files the labels that tables have for them.

    A table that is named like a folder (wholeBodyANT.txt) and goes by file name is about the files
    in the folders of that name alone. File names may lack their suffix in a table, and numbers the
    zeros before them, where that leaves no doubt which is meant. Raises UserError on a value that
    means no label, and on two tables that contradict each other.
    """
    labels: list[str | None] = [None] * len(files)
    sources: list[str] = [""] * len(files)
    remarks = []
    for table in tables:
        key, places = _key_and_places(files, table)
        by_number = _by_number(places)
        found: Counter[str] = Counter(incomplete=table.incomplete)
        for n, (name, (row, value)) in enumerate(table.entries.items()):
            where = f"{table.path}: row {row}"
            own = places.get(name) or by_number.get(number_of(name))
            if not own:
                found["header" if n == 0 and not table.key else "unused"] += 1
                continue
            found["without zeros"] += name not in places
            label = resolve(value, meanings, where)
            found["unknown"] += label is None
            for place in own:
                if None not in (label, labels[place]) and labels[place] != label:
                    raise UserError(
                        f"{where}: {key} '{name}' is labelled otherwise in {sources[place]}"
                    )
                if label is not None:
                    labels[place], sources[place] = label, where
        remarks += [f"{table.path}: {text}" for text in _remarks(table, found)]
    return Joined(tuple(labels), tuple(sources), tuple(remarks))


def _remarks(table: LabelTable, found: Counter[str]) -> Iterator[str]:
    entries = len(table.entries)
    by = table.key or f"{', '.join(KEYS[:-1])} or {KEYS[-1]}"
    if found["unused"] + found["header"] == entries:
        yield f"none of its {entries} entries names one of these files by {by}"
    else:
        if found["header"]:
            row, _ = next(iter(table.entries.values()))
            yield f"row {row} names no file, so it is taken for a header"
        if found["unused"]:
            yield f"{found['unused']} entries name none of these files"
    if found["without zeros"]:
        yield (
            f"{found['without zeros']} entries match only without the zeros before their number; "
            "a spreadsheet may have dropped them"
        )
    if found["unknown"]:
        yield f"{found['unknown']} labels say that they are unknown"
    if found["incomplete"]:
        yield f"{found['incomplete']} rows lack a name or a label"


def _key_and_places(files: Sequence[Keys], table: LabelTable) -> tuple[str, dict[str, list[int]]]:
    """What the entries are named by, and name -> which files it means.

    Where no header says it, it is the key by which most of the entries name a file.
    """
    keys = (table.key,) if table.key else KEYS
    places = {key: _places(files, table, key) for key in keys}

    def named(key: str) -> int:
        by_number = _by_number(places[key])
        return sum(name in places[key] or number_of(name) in by_number for name in table.entries)

    best = max(keys, key=named)
    return best, places[best]


def _places(files: Sequence[Keys], table: LabelTable, key: str) -> dict[str, list[int]]:
    if key != "file":
        return _index((str(getattr(file, key)), n) for n, file in enumerate(files))
    stem = _composed(table.path.stem)
    own = [n for n, file in enumerate(files) if stem in map(_composed, file.path.parent.parts)]
    numbers = own or range(len(files))
    by_stem = _index((files[n].path.stem, n) for n in numbers)
    return by_stem | _index((files[n].path.name, n) for n in numbers)


def _index(pairs: Iterable[tuple[str, int]]) -> dict[str, list[int]]:
    index = defaultdict(list)
    for name, number in pairs:
        if name:
            index[_composed(name)].append(number)
    return dict(index)


def _by_number(places: Mapping[str, list[int]]) -> dict[str, list[int]]:
    """Number without zeros before it -> the files of the one name that is this number."""
    names: dict[str, list[str]] = defaultdict(list)
    for name in places:
        number = number_of(name)
        if number:
            names[number].append(name)
    return {number: places[own[0]] for number, own in names.items() if len(own) == 1}


def _composed(text: str) -> str:
    """File systems and spreadsheets write accents in two ways (Unicode's NFC and NFD)."""
    return unicodedata.normalize("NFC", text)
