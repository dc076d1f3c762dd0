"""Proposes the rows of a manifest, each with what was assumed of it.

In: what the headers, the paths and the label tables of a folder say. Out: rows for
`tfds_builder.build`, and what is in none of them.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from tfds_builder.classes import question_labels
from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.views import UNKNOWN
from tfds_builder.scan.inventory import Files, InspectedFile
from tfds_builder.scan.label_tables import (
    LEFT_OUT,
    Keys,
    LabelTable,
    Meanings,
    join,
    resolve,
    unused_meanings,
)
from tfds_builder.scan.path_names import BY_PATTERN, PathName, printable

BY_HEADER = "PatientID"
RECURRING = "its name recurs in several folders: fill in patient_id"

_CERTAIN = (BY_HEADER, BY_PATTERN)
_NO_PATIENT = "patient unknown: fill in patient_id"
_NO_VIEW = "view unknown: fill in view"
_BOTH_VIEWS = "its path names both views: fill in view"


@dataclass(frozen=True)
class ProposedRow:
    """A manifest row to be.

    Attributes:
      path: relative to the folder that is scanned.
      patient_id, study_id, view, site: empty where unknown, or for the file to say.
      patient_by: what the patient was taken from.
      rules: what names each view of the file.
      frame: where a file needs several rows.
      label: the name of a class, `LEFT_OUT`, or None where nothing gives one.
      comments: what was assumed or is unclear.
      accept: whether a person must take the file, as only a rule of thumb is against it.
    """

    path: PurePosixPath
    patient_id: str
    patient_by: str
    study_id: str
    view: str
    rules: tuple[str, ...]
    comments: tuple[str, ...]
    frame: int | None = None
    site: str = ""
    label: str | None = None
    accept: bool = False


@dataclass(frozen=True)
class Proposal:
    """What becomes of a folder.

    Attributes:
      rows: of the manifest, in the order of the paths.
      unread: path -> why it is in no row.
      left_out: why -> how many files are in no row although they may be scans.
      remarks: what is odd about the label tables, each a line.
    """

    rows: tuple[ProposedRow, ...]
    unread: dict[PurePosixPath, str]
    left_out: Counter[str]
    remarks: tuple[str, ...]


def propose(
    files: Files,
    names: Mapping[PurePosixPath, PathName],
    inspected: Iterable[InspectedFile],
    tables: Sequence[LabelTable],
    meanings: Meanings,
) -> Proposal:
    """Puts together what is known of the files.

    `names` is what the paths say; these files alone were inspected, in the order of the rows.
    Raises UserError on labels that mean nothing, or that contradict each other.
    """
    unread, found = dict(files.unusable), []
    for file in inspected:
        if file.reason:
            unread[file.path] = file.reason
        else:
            found += [(file.study, row) for row in _rows_of(file, names[file.path])]
    rows = _without_recurring(_one_patient_a_study(found))
    rows, remarks = _labelled(rows, tables, meanings, names)
    kept = tuple(row for row in rows if row.label != LEFT_OUT)
    left_out = Counter(
        {
            "--pattern does not match them": len(files.paths) - len(names),
            "--label_map says so": len({row.path for row in rows} - {row.path for row in kept}),
        }
    )
    return Proposal(kept, unread, +left_out, remarks)


def _rows_of(file: InspectedFile, name: PathName) -> list[ProposedRow]:
    """One row for a file, or one for each page of a picture."""
    if file.patient_id and name.patient_by != BY_PATTERN:
        patient, patient_by = file.patient_id, BY_HEADER
    else:
        patient, patient_by = name.patient.strip(), name.patient_by
    study = name.study if name.study_by or not file.study else file.study
    view, rules, comments = _view_of(file, name)
    comments = file.notes + comments
    if not patient:
        comments = (_NO_PATIENT, *comments)
    elif patient_by not in _CERTAIN:
        comments = (f"patient from {patient_by}", *comments)
    row = ProposedRow(
        path=file.path,
        patient_id=patient,
        patient_by=patient_by,
        study_id=study,
        view=view,
        rules=rules,
        comments=comments,
        site=name.site,
        accept=file.needs_accept,
    )
    if file.is_dicom or len(file.views) == 1:
        return [row]
    pages = len(file.views)
    return [
        replace(row, frame=view.frame, comments=(*comments, f"page {view.frame} of {pages}"))
        for view in file.views
    ]


def _view_of(file: InspectedFile, name: PathName) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    """The manifest's view, what names each view of the file, and comments."""
    if len(file.views) != 1:
        comments = [note for view in file.views for note in view.notes]
        if not file.is_dicom:
            comments.append(_NO_VIEW)
        return "", tuple(view.rule for view in file.views), tuple(dict.fromkeys(comments))
    only = file.views[0]
    if only.name != UNKNOWN:
        comments = only.notes
        if name.view not in ("", only.name):
            comments += (f"its path says {name.view}, its header {only.name}",)
        if name.view_by == BY_PATTERN:
            return name.view, (BY_PATTERN,), comments
        return "", (only.rule,), comments
    if not name.view:
        return "", ("none",), (_BOTH_VIEWS if name.contradiction else _NO_VIEW,)
    comments = () if name.view_by == BY_PATTERN else (f"view from {name.view_by}",)
    return name.view, (name.view_by,), comments


def _one_patient_a_study(found: Iterable[tuple[str, ProposedRow]]) -> list[ProposedRow]:
    """Gives the files of one StudyInstanceUID one patient: the one that is certain, or else guessed
    first. `found` is the study of the header, which may be empty, and the row.
    """
    found = list(found)
    owners: dict[str, ProposedRow] = {}
    for study, row in sorted(found, key=lambda one: one[1].patient_by not in _CERTAIN):
        if study and row.patient_id:
            owners.setdefault(study, row)
    rows = []
    for study, row in found:
        owner = owners.get(study, row)
        if row.patient_by not in _CERTAIN and row.patient_id != owner.patient_id:
            comments = ("patient from another file of its study", *row.comments[1:])
            row = replace(
                row, patient_id=owner.patient_id, patient_by=owner.patient_by, comments=comments
            )
        rows.append(row)
    return rows


def _without_recurring(rows: list[ProposedRow]) -> list[ProposedRow]:
    """Takes back patients whom names do not tell apart.

    Where one name stands for one view of several studies, it may be the same patient again
    (2019/P17, 2020/P17), or another one (normal/1, metastasis/1), or not name a patient at all
    (P17/scan, P18/scan). A wrong guess would put one patient into two splits.
    """
    studies: dict[tuple[str, str, int | None], set[str]] = defaultdict(set)
    guessed = [row for row in rows if row.patient_by not in _CERTAIN]
    for row in guessed:
        studies[row.patient_id, row.view, row.frame].add(row.study_id)
    recurring = {patient for (patient, _, _), found in studies.items() if len(found) > 1} - {""}
    return [
        replace(row, patient_id="", patient_by="", comments=(RECURRING, *row.comments[1:]))
        if row.patient_by not in _CERTAIN and row.patient_id in recurring
        else row
        for row in rows
    ]


def _labelled(
    rows: Sequence[ProposedRow],
    tables: Sequence[LabelTable],
    meanings: Meanings,
    names: Mapping[PurePosixPath, PathName],
) -> tuple[list[ProposedRow], tuple[str, ...]]:
    keys = [Keys(row.path, row.patient_id, row.study_id) for row in rows]
    joined = join(keys, tables, meanings)
    labelled = []
    found: dict[str, list[str]] = defaultdict(list)
    for row, label, source in zip(rows, joined.labels, joined.sources, strict=True):
        written = names[row.path].label
        if written:
            where = f"--pattern: {printable(row.path)}"
            meant = resolve(written, meanings, where)
            if None not in (label, meant) and label != meant:
                raise UserError(f"{where}: label '{written}', but a table says otherwise")
            label, source = (label, source) if meant is None else (meant, where)
        if label not in (None, LEFT_OUT):
            found[label].append(source)
        labelled.append(replace(row, label=label))
    if not meanings.classes:
        many = f"{len(found)} different labels are found; is it the column of the classes? If all"
        question_labels(found, many, "say so: --label_map '{}={}'")
    written = {entry.value for table in tables for entry in table.entries}
    unused = unused_meanings(meanings, written | {name.label for name in names.values()})
    return labelled, (*joined.remarks, *unused)
