"""Joins label tables of any common shape to files.

In: tables with a header, or of two columns without one. Out: a label for each file that an entry
names, and how much on either side found no partner.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tfds_builder.classes import fault_of, means_unknown, normalise
from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import number_of
from tfds_builder.scan.path_names import without_suffix
from tfds_builder.tables import Rows, composed, read_rows

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
class Entry:
    """A row of a table that has a name and a label.

    Attributes:
      row: its number.
      names: for each of the table's keys, in their order; empty text where the row is silent.
      value: the label as written.
    """

    row: int
    names: tuple[str, ...]
    value: str


@dataclass(frozen=True)
class LabelTable:
    """One table.

    Attributes:
      path: where it was read.
      keys: those of `KEYS` that its header names; none where the files must tell, by one name.
      entries: its rows, those that say the same once.
      incomplete: how many rows lack a name or a label.
    """

    path: Path
    keys: tuple[str, ...]
    entries: tuple[Entry, ...]
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


def unused_meanings(meanings: Meanings, written: Iterable[str]) -> list[str]:
    """A remark on each of `--label_map`'s pairs that none of the written labels needs."""
    plain = set(map(_plain, written))
    unused = [pair for pair in meanings.of.items() if pair[0] not in plain]
    return [f"--label_map '{value}={label}' matches no label" for value, label in unused]


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


def read_table(path: Path) -> LabelTable:
    """Reads a label table.

    It has a header with `label` and some of `KEYS`, or other words for these, perhaps under a
    title; or two columns, a name and a label, with a header or without. A UserError names table and
    row.
    """
    rows = read_rows(path)
    if not rows:
        raise UserError(f"{path}: is empty")
    keys, places, rows = _columns(path, rows)
    entries: dict[tuple[str, ...], Entry] = {}
    incomplete = 0
    for number, cells in rows:
        *written, value = (cells[place] if place < len(cells) else "" for place in places)
        names = tuple(_name(*pair) for pair in zip(keys or ("",), written, strict=True))
        if not any(names) or not value:
            incomplete += 1
            continue
        first = entries.setdefault(names, Entry(number, names, value))
        if _plain(first.value) != _plain(value):
            raise UserError(
                f"{path}: row {number}: the same {' and '.join(keys) or 'name'} has another label "
                f"in row {first.row}; keep one"
            )
    return LabelTable(path, keys, tuple(entries.values()), incomplete)


def _name(key: str, written: str) -> str:
    if means_unknown(written):
        return ""
    # Tables made under Windows have backslashes between folders.
    return composed(written.replace("\\", "/").removeprefix("./") if key == "path" else written)


def _columns(path: Path, rows: Rows) -> tuple[tuple[str, ...], tuple[int, ...], Rows]:
    """The keys, the places of their names and of the label in a row, the rows below the header."""
    for n, (number, cells) in enumerate(rows[:_MOST_ROWS_ABOVE_HEADER]):
        places = {word: found for word in (*KEYS, "label") if (found := _places(cells, word))}
        if len(places) > 1 and "label" in places:
            for word, (one, *others) in places.items():
                if others:
                    raise UserError(
                        f"{path}: row {number}: columns {one + 1} ('{cells[one]}') and "
                        f"{others[0] + 1} ('{cells[others[0]]}') may both be {word}; head the "
                        f"right one '{word}' and the other otherwise"
                    )
            keys = tuple(word for word in places if word != "label")
            return keys, tuple(found[0] for found in places.values()), rows[n + 1 :]
    if all(not any(cells[2:]) for _, cells in rows):
        return (), (0, 1), rows
    number, cells = rows[0]
    raise UserError(
        f"{path}: row {number}: needs a header with 'label' and one of {', '.join(KEYS)}, or two "
        f"columns alone, name and label; present are {', '.join(filter(None, cells))}"
    )


def _places(header: Sequence[str], name: str) -> list[int]:
    """Which columns may be meant: those under its own name, else those under other words for it."""
    plain = [re.sub(r"[\W_]+", "", cell.casefold()) for cell in header]
    own = [n for n, cell in enumerate(plain) if cell == name.replace("_", "")]
    return own or [n for n, cell in enumerate(plain) if cell in _HEADINGS[name]]


class _Named:
    """Which files a name means, under one key; numbers may lack the zeros before them."""

    def __init__(self, files: Sequence[Keys], table: LabelTable, key: str):
        if key == "file":
            own = _files_of(files, table)
            self._exact = _index((without_suffix(files[n].path.name), n) for n in own)
            self._exact |= _index((files[n].path.name, n) for n in own)
        else:
            self._exact = _index((str(getattr(file, key)), n) for n, file in enumerate(files))
        spellings: dict[str, list[str]] = defaultdict(list)
        for name in self._exact:
            spellings[number_of(name)].append(name)
        self._by_number = {
            number: self._exact[own[0]]
            for number, own in spellings.items()
            if number and len(own) == 1
        }

    def files(self, name: str) -> set[int]:
        return self._exact.get(name) or self._by_number.get(number_of(name)) or set()

    def __contains__(self, name: str) -> bool:
        """Whether it means files as it is written."""
        return name in self._exact


def _files_of(files: Sequence[Keys], table: LabelTable) -> Sequence[int]:
    """Those in the folders that the table is named like; all where there are none."""
    stem = composed(table.path.stem)
    own = [n for n, file in enumerate(files) if stem in map(composed, file.path.parent.parts)]
    return own or range(len(files))


def _index(pairs: Iterable[tuple[str, int]]) -> dict[str, set[int]]:
    index: dict[str, set[int]] = defaultdict(set)
    for name, number in pairs:
        if name:
            index[composed(name)].add(number)
    return dict(index)


def join(files: Sequence[Keys], tables: Sequence[LabelTable], meanings: Meanings) -> Joined:
    """Gives files the labels that tables have for them.

    An entry is about the files that all its names agree on; a column that names no file at all is
    left aside. A table that is named like a folder (wholeBodyANT.txt) and goes by file name is
    about the files in the folders of that name alone. File names may lack their suffix in a table,
    and numbers the zeros before them, where that leaves no doubt which is meant.

    Raises:
      UserError: a value that means no label; entries that contradict each other; an entry about
        several patients; a table without a header whose names may mean other files as well.
    """
    labels: list[str | None] = [None] * len(files)
    sources: list[str] = [""] * len(files)
    remarks = []
    for table in tables:
        named = {key: _Named(files, table, key) for key in table.keys or KEYS}
        keys = table.keys or (_likely_key(table, named, meanings),)
        used = [key for n, key in enumerate(keys) if _matched(table, named[key], n)]
        by = " and ".join(used)
        found: Counter[str] = Counter(incomplete=table.incomplete)
        for entry in table.entries:
            where = f"{table.path}: row {entry.row}"
            names = [
                (named[key], name)
                for key, name in zip(keys, entry.names, strict=True)
                if name and key in used
            ]
            meant = [index.files(name) for index, name in names]
            own = set.intersection(*meant) if meant else set()
            if not own:
                is_header = entry is table.entries[0] and not table.keys
                is_torn = meant and all(meant)
                found["header" if is_header else "torn" if is_torn else "unused"] += 1
                continue
            found["matched"] += 1
            found["without zeros"] += any(name not in index for index, name in names)
            if len({files[n].patient_id or files[n].study_id or files[n].path for n in own}) > 1:
                raise UserError(
                    f"{where}: its {by} stands for files of several patients; add a column path "
                    "or patient_id"
                )
            label = resolve(entry.value, meanings, where)
            found["unknown"] += label is None
            for place in own:
                if None not in (label, labels[place]) and labels[place] != label:
                    raise UserError(
                        f"{where}: its {by} is labelled otherwise in {sources[place]}; correct "
                        "one, or add a column path"
                    )
                if label is not None:
                    labels[place], sources[place] = label, where
        remarks += [f"{table.path}: {text}" for text in _remarks(table, keys, used, found)]
    return Joined(tuple(labels), tuple(sources), tuple(remarks))


def _matched(table: LabelTable, named: _Named, column: int = 0) -> int:
    return sum(bool(named.files(entry.names[column])) for entry in table.entries)


def _remarks(
    table: LabelTable, keys: Sequence[str], used: Sequence[str], found: Counter[str]
) -> Iterator[str]:
    entries = len(table.entries)
    if not used:
        *others, last = table.keys or KEYS
        by = f"{', '.join(others)} or {last}" if others else last
        yield f"none of its {entries} entries names one of these files by {by}"
    else:
        for key in (key for key in keys if key not in used):
            by = " and ".join(used)
            yield f"its column {key} names none of these files; {by} alone counts"
        if not table.keys:
            yield f"{found['matched']} entries matched by {used[0]}"
        if found["header"]:
            yield f"row {table.entries[0].row} names no file, so it is taken for a header"
        if found["unused"]:
            yield f"{found['unused']} entries name none of these files"
        if found["torn"]:
            yield f"{found['torn']} entries name no file by all of {', '.join(used)} together"
    if found["without zeros"]:
        yield (
            f"{found['without zeros']} entries match only without the zeros before their number; "
            "a spreadsheet may have dropped them"
        )
    if found["unknown"]:
        yield f"{found['unknown']} labels say that they are unknown"
    if found["incomplete"]:
        yield f"{found['incomplete']} rows lack a name or a label"


def _likely_key(table: LabelTable, named: Mapping[str, _Named], meanings: Meanings) -> str:
    """The key by which most of the entries name a file, where no header says it."""

    def labels_by(key: str) -> dict[int, str]:
        return {
            n: meanings.of.get(_plain(entry.value), _plain(entry.value))
            for entry in table.entries
            for n in named[key].files(entry.names[0])
        }

    best = max(KEYS, key=lambda key: _matched(table, named[key]))
    labels = labels_by(best)
    for other in KEYS:
        if any(labels.get(n, label) != label for n, label in labels_by(other).items()):
            raise UserError(
                f"{table.path}: its names may be {best} or {other}, which gives files different "
                f"labels; head the column '{best}' or '{other}', and that of the labels 'label'"
            )
    return best
