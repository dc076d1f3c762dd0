"""python -m tfds_builder.scan: a folder of images becomes a manifest, for a human to check.

In: a folder, and label tables where there are any. Out: a manifest for `tfds_builder.build`, with
all that was assumed in its column `comment`. No pixel is decoded.
"""

import argparse
import itertools
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from tfds_builder.classes import classes_of, read_classes
from tfds_builder.commandline.command import CommandParser, available_cores, positive_number
from tfds_builder.commandline.errors import UserError, run_command
from tfds_builder.commandline.files import write_text
from tfds_builder.commandline.progress import counted, say
from tfds_builder.scan.inventory import Files, InspectedFile, inspected, list_files
from tfds_builder.scan.label_tables import read_meanings, read_table
from tfds_builder.scan.path_names import PathName, PathPattern, printable, read_words
from tfds_builder.scan.proposal import BY_HEADER, RECURRING, Proposal, ProposedRow, propose
from tfds_builder.tables import csv_text
from tfds_builder.workers import WorkerPool

_FILE_SECONDS = 30.0
_WORKER_MEMORY = 2**30
_MOST_LINES = 20


def main(argv: list[str] | None = None) -> None:
    """Proposes the manifest that the command line asks for; raises UserError."""
    settings = _parser().parse_args(argv)
    try:
        _check_places(settings)
        pattern = PathPattern(settings.pattern) if settings.pattern else None
        meanings = read_meanings(settings.label_map, read_classes(settings.classes))
        tables = [read_table(path) for path in settings.labels]
        files = list_files(settings.folder)
        names = _names(settings, files, pattern)
        inspected = _inspected(settings, tuple(names))
        proposal = propose(files, names, inspected, tables, meanings)
        _write(settings, proposal)
    except OSError as error:
        where = error.filename or settings.folder
        raise UserError(f"{where}: {error.strerror or error}") from None
    _report(settings, files, proposal)
    if not proposal.rows:
        raise UserError(f"{settings.folder}: none of its files can be used; no manifest is written")


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m tfds_builder.scan",
        description="Proposes a manifest for python -m tfds_builder.build from a folder of images "
        "(DICOM, PNG, TIFF, JPEG). No pixel is decoded. What was assumed or is unclear stands in "
        "the column comment: look through it before building.",
        epilog="Exit status: 0 the manifest is there, 2 something is to be mended. "
        "Example: python -m tfds_builder.scan BS-80K --out BS-80K/manifest.csv "
        "--labels BS-80K/wholeBodyANT.txt --labels BS-80K/wholeBodyPOST.txt "
        "--label_map 0=normal 1=abnormal",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="the folder, searched with its subfolders")
    add(
        "--out",
        type=Path,
        required=True,
        help="the manifest to write, in DIR or in a folder above it",
    )
    add(
        "--labels",
        type=Path,
        action="append",
        default=[],
        metavar="TABLE",
        help="a table of labels, CSV or .xlsx; may be repeated. With a header: label, and any of "
        "path (relative to DIR), file (its name), study_id, patient_id; a row is about the files "
        "that all of these name. Or two columns alone, a "
        "name and a label; a table of file names that is named like a folder is about the files in "
        "that folder alone",
    )
    add(
        "--label_map",
        nargs="+",
        action="extend",
        default=[],
        metavar="FROM=TO",
        help="which class a value of the tables or of the pattern means; FROM= leaves such files "
        "out. A value that is not mapped is the name of a class itself",
    )
    add(
        "--classes",
        metavar="A,B,...",
        help="the classes; any other label is an error (default: those that the labels name)",
    )
    add(
        "--pattern",
        metavar="REGEX",
        help="a regular expression, searched for in the path relative to DIR, whose groups "
        "(?P<patient>...), (?P<study>...), (?P<view>...), (?P<label>...), (?P<site>...) say what "
        "it means; patient_1, patient_2 ... are joined. Files that it does not match are left out",
    )
    add(
        "--unread",
        type=Path,
        metavar="TABLE",
        help="a CSV file for the list of files that cannot be used, and why",
    )
    add(
        "--accept",
        action="store_true",
        help="take files that only a rule of thumb is against (a matrix, a kind of image), with "
        "'yes' in the manifest's column accept: remove the rows that are no whole-body scans",
    )
    add("--overwrite", action="store_true", help="replace --out and --unread where they are there")
    add(
        "--workers",
        type=positive_number,
        default=available_cores(),
        help="processes that read headers (default: one a core)",
    )
    return parser


def _check_places(settings: argparse.Namespace) -> None:
    folder = settings.folder
    if not folder.is_dir():
        what = "is a file, not a folder" if folder.exists() else "no such folder"
        raise UserError(f"{folder}: {what}; give the folder of the images")
    places = (("--out", settings.out), ("--unread", settings.unread))
    written = [(option, path) for option, path in places if path]
    for option, path in written:
        if path.is_dir() or not path.parent.is_dir():
            what = "is a folder" if path.is_dir() else "its folder is not there"
            raise UserError(f"{option} {path}: {what}; give the file to write")
        if path.exists() and not settings.overwrite:
            raise UserError(f"{option} {path}: is there already; use --overwrite to replace it")
    named = [*written, *(("--labels", path) for path in settings.labels)]
    for (one, first), (other, second) in itertools.combinations(named, 2):
        if one != other and first.resolve() == second.resolve():
            raise UserError(f"{one} and {other} are one file, {second}; give another {one}")
    if not folder.resolve().is_relative_to(settings.out.parent.resolve()):
        raise UserError(
            f"--out {settings.out}: a manifest's paths may not leave its folder; "
            f"put it into {folder}, or into a folder above that"
        )


def _names(
    settings: argparse.Namespace, files: Files, pattern: PathPattern | None
) -> dict[PurePosixPath, PathName]:
    """What the path says of each file, without those that the pattern leaves out."""
    if not files.paths and not files.unusable:
        raise UserError(f"{settings.folder}: holds no file that may be an image")
    read = pattern.read if pattern else read_words
    names = {path: name for path in files.paths if (name := read(path))}
    if files.paths and not names:
        raise UserError(
            f"--pattern '{settings.pattern}': matches none of {len(files.paths)} files; "
            f"the first is '{printable(files.paths[0])}'"
        )
    return names


def _inspected(
    settings: argparse.Namespace, paths: Sequence[PurePosixPath]
) -> Iterator[InspectedFile]:
    pool = WorkerPool(
        settings.workers,
        step_seconds=_FILE_SECONDS,
        memory_bytes=_WORKER_MEMORY,
        preload=("tfds_builder.scan.inventory",),
    )
    with pool:
        found = inspected(pool, settings.folder.resolve(), paths, accept=settings.accept)
        yield from counted(found, "reading headers", len(paths))


def _write(settings: argparse.Namespace, proposal: Proposal) -> None:
    if settings.unread:
        unread = [[printable(path), reason] for path, reason in sorted(proposal.unread.items())]
        write_text(settings.unread, csv_text(["path", "reason"], unread))
    if not proposal.rows:
        return
    manifest_folder = settings.out.parent.resolve()
    inside = PurePosixPath(settings.folder.resolve().relative_to(manifest_folder).as_posix())
    cells = [
        {
            "path": inside / row.path,
            "patient_id": row.patient_id,
            "label": row.label,
            "study_id": row.study_id,
            "view": row.view,
            "frame": row.frame,
            "site": row.site,
            "sex": None,
            "age": None,
            "accept": "yes" if row.accept else None,
            "comment": "; ".join(row.comments),
        }
        for row in proposal.rows
    ]
    unneeded = [n for n in ("frame", "site", "accept") if not any(row[n] for row in cells)]
    columns = [name for name in cells[0] if name not in unneeded]
    write_text(settings.out, csv_text(columns, ([row[n] for n in columns] for row in cells)))


def _report(settings: argparse.Namespace, files: Files, proposal: Proposal) -> None:
    rows = proposal.rows
    for why, times in files.skipped.most_common():
        say(f"passed over: {times} {why}")
    _list([f"  {printable(path)}" for path in files.leading_out])
    for why, times in proposal.left_out.items():
        say(f"left out: {times} files, {why}")
    if proposal.unread:
        say(f"cannot be used: {len(proposal.unread)} files")
        unread = sorted(proposal.unread.items())
        _list([f"  {printable(path)}: {reason}" for path, reason in unread])
    if not rows:
        return
    for rule, times in Counter(rule for row in rows for rule in row.rules).most_common():
        say(f"view by {rule} ({times}x)" if rule != "none" else f"no view ({times}x)")
    for comment, times in Counter(text for row in rows for text in row.comments).most_common():
        say(f"comment: {comment} ({times}x)")
    _report_patients(rows)
    _report_labels(rows, proposal.remarks)
    patients = len({row.patient_id for row in rows} - {""})
    scanned = len({row.path for row in rows})
    say(f"{settings.out}: {len(rows)} rows, {scanned} files, {patients} patients")
    _report_next(settings, rows)


def _report_patients(rows: Sequence[ProposedRow]) -> None:
    own = [row for row in rows if row.patient_by == BY_HEADER]
    if len({row.patient_id for row in own}) == 1 < len({row.study_id for row in own}):
        say(
            f"note: {len(own)} DICOM files of several studies carry the same PatientID: were they "
            "anonymised? Then name the patients with --pattern",
        )
    if any(RECURRING in row.comments for row in rows):
        say(
            "note: names recur in several folders; if the name is the patient, or the folder "
            r"is, say so: --pattern '(?P<patient>[^/]+)\.png$' or --pattern '^(?P<patient>[^/]+)/'",
        )


def _report_labels(rows: Sequence[ProposedRow], remarks: Sequence[str]) -> None:
    labels = Counter(row.label for row in rows if row.label)
    if labels:
        counts = ", ".join(f"{label} {labels[label]}" for label in classes_of(labels).names)
        say(f"labels: {counts}")
    for remark in remarks:
        say(f"note: {remark}")


def _report_next(settings: argparse.Namespace, rows: Sequence[ProposedRow]) -> None:
    missing = {
        "label": sum(row.label is None for row in rows),
        "patient_id": sum(not row.patient_id for row in rows),
    }
    gaps = [f"{column} ({times} rows)" for column, times in missing.items() if times]
    fill = f"fill in {' and '.join(gaps)}, " if gaps else ""
    manifest = shlex.quote(str(settings.out))
    say(f"next: {fill}look through its column comment, then")
    classes = f" --classes {shlex.quote(settings.classes)}" if settings.classes else ""
    say(f"  python -m tfds_builder.build --manifest {manifest} --data_dir data{classes}")


def _list(lines: Sequence[str]) -> None:
    for line in lines[:_MOST_LINES]:
        say(line)
    if len(lines) > _MOST_LINES:
        say(f"  ... and {len(lines) - _MOST_LINES} more")


if __name__ == "__main__":
    run_command(main)
