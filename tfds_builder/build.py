"""python -m tfds_builder.build: images and a manifest on disk become the TFDS data set.

In: a manifest and the folder for the data set. Out: DATA_DIR/scintigraphy/CONFIG/VERSION, complete
or not there at all, and DATA_DIR/splits.csv, which keeps patients in their split at later builds.
"""

import argparse
import math
import shlex
import time
from collections import Counter
from pathlib import Path

from rich.table import Table

from tfds_builder import splits
from tfds_builder.classes import read_classes
from tfds_builder.commandline.command import CommandParser, available_cores, positive_number
from tfds_builder.commandline.errors import UserError, run_command
from tfds_builder.commandline.progress import say, show
from tfds_builder.scintigraphy.conductor import Request, build_data_set
from tfds_builder.scintigraphy.data_set import metadata_of
from tfds_builder.shards.findings import QUALITY
from tfds_builder.shards.ingest import Ingested
from tfds_builder.shards.plan import Options
from tfds_builder.shards.records import CONFIGS, STUDIES_CONFIG, VIEWS_CONFIG
from tfds_builder.shards.shard import FILE_SECONDS


def main(argv: list[str] | None = None) -> None:
    """Builds the data set that the command line asks for; raises UserError."""
    settings = _parser().parse_args(argv)
    options = _options(settings)
    request = Request(
        manifest=settings.manifest,
        data_dir=settings.data_dir,
        options=options,
        key_file=settings.pseudonym_key,
        overwrite=settings.overwrite,
        workers=settings.workers,
        file_seconds=settings.file_seconds,
        beam_runner=settings.beam_runner,
        beam_options=_words(settings.beam_options),
    )
    started = time.monotonic()
    ingested = build_data_set(request)
    final = request.data_dir / request.place
    if ingested is None:
        say(f"{final}: already built from these sources, nothing to do")
    else:
        _report(ingested, final, time.monotonic() - started)


def _words(options: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(options))
    except ValueError as error:
        raise UserError(f"--beam_options {options}: {str(error).lower()}; mend it") from None


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m tfds_builder.build",
        description="Builds the TFDS data set scintigraphy from images (DICOM, PNG, TIFF, JPEG) "
        "and a manifest on disk. A file that cannot be used is left out, and listed in "
        "quarantine.csv.",
        epilog="The manifest's columns: path, patient_id, label (the name of a class); optional "
        "study_id, view, frame, split, site, sex, age, lesion_mask, accept, "
        "comment. `python -m tfds_builder.scan` proposes one. "
        "Exit status: 0 the data set is there, 2 something is to be mended.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--manifest",
        type=Path,
        required=True,
        help="table, CSV or .xlsx, that names the images, relative to its own folder",
    )
    add("--data_dir", type=Path, required=True, help="TFDS data directory to write to")
    add(
        "--config",
        choices=CONFIGS,
        default=VIEWS_CONFIG,
        help="views: one record an image (default); studies: one record a study, both views",
    )
    add(
        "--classes",
        metavar="A,B,...",
        help="the classes, in the order of severity of a study whose views have several labels, "
        "least severe first; any other label is an error (default: the labels of the manifest)",
    )
    add(
        "--one_view_studies",
        choices=("drop", "keep"),
        default="drop",
        help="under --config studies, what becomes of a study with one view: left out (default), "
        "or kept with zeros in the other's place; counted either way",
    )
    add(
        "--pseudonym_key",
        type=Path,
        help="file with the site's secret, made where missing; keep it, and keep it private "
        "(default: pseudonym.key beside the manifest)",
    )
    add(
        "--split_fractions",
        type=float,
        nargs=3,
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="shares of patients; they add up to 1 (default: 0.7 0.15 0.15)",
    )
    add(
        "--folds",
        type=int,
        metavar="K",
        help="divide into K folds (splits fold_0 ...) instead of train, validation and test",
    )
    add(
        "--seed",
        type=int,
        default=0,
        help="another seed divides the patients differently (default: 0)",
    )
    add(
        "--max_rejected",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="the build fails where more of the rows than this cannot be used (default: 0.05)",
    )
    add(
        "--strict",
        action="store_true",
        help="the build fails on any unusable row and any finding of the quality checks",
    )
    add(
        "--overwrite",
        action="store_true",
        help="replace a data set that was built from other sources",
    )
    add(
        "--workers",
        type=positive_number,
        default=available_cores(),
        help="processes that decode images (default: one a core)",
    )
    add(
        "--file_seconds",
        type=float,
        default=FILE_SECONDS,
        metavar="S",
        help="a file that takes longer than this is given up (default: 30)",
    )
    add(
        "--beam_runner",
        metavar="RUNNER",
        help="decode on an Apache Beam runner (DirectRunner, FlinkRunner, DataflowRunner ...) "
        "instead of processes of this machine",
    )
    add(
        "--beam_options",
        default="",
        metavar="OPTIONS",
        help="options of the Beam pipeline, in one quoted argument",
    )
    return parser


def _options(settings: argparse.Namespace) -> Options:
    if settings.folds is not None and settings.split_fractions is not None:
        raise UserError("--folds makes equal folds: leave out --split_fractions")
    if not 0 <= settings.max_rejected <= 1:
        raise UserError(f"--max_rejected {settings.max_rejected}: a share from 0 to 1 is needed")
    if not settings.file_seconds > 0:
        raise UserError(f"--file_seconds {settings.file_seconds}: must be more than 0")
    if settings.beam_options and not settings.beam_runner:
        raise UserError("--beam_options needs --beam_runner")
    train, validation, test = settings.split_fractions or splits.FRACTIONS
    total_is_one = math.isclose(train + validation + test, 1, abs_tol=1e-6)
    if not total_is_one or min(train, validation, test) < 0:
        raise UserError(
            f"--split_fractions {train} {validation} {test}: three shares from 0 to 1 are needed "
            "that add up to 1, such as 0.7 0.15 0.15"
        )
    return Options(
        config=settings.config,
        keep_one_view=settings.one_view_studies == "keep",
        fractions=splits.shares_of(settings.folds, (train, validation, test)),
        seed=settings.seed,
        max_rejected=settings.max_rejected,
        strict=settings.strict,
        classes=read_classes(settings.classes),
    )


def _report(ingested: Ingested, final: Path, seconds: float) -> None:
    table = Table(title="images (patients)")
    table.add_column("split")
    names = ingested.plan.classes.names
    for label in (*names, "all"):
        table.add_column(label, justify="right")
    for split, found in ingested.proof["splits"].items():
        cells = [
            f"{found['images_by_class'][label]} ({found['patients_by_class'][label]})"
            for label in names
        ]
        table.add_row(split, *cells, f"{found['images']} ({found['patients']})")
    show(table)
    _report_splits(ingested)
    metadata = metadata_of(ingested)
    for rule, times in metadata["view_rules"].items():
        say(f"view by {rule} ({times}x)")
    for note, times in metadata["notes"].items():
        say(f"note: {note} ({times}x)")
    if metadata["notes"]:
        say(f"which images: {final / QUALITY}")
    _report_left_out(ingested)
    images = len(ingested.images)
    say(f"{final}: {images} images in {seconds:.1f} s ({images / seconds:.0f} a second)")


def _report_splits(ingested: Ingested) -> None:
    plan = ingested.plan
    kept = sum(patient in plan.known for patient in plan.labels)
    if kept:
        say(f"{kept} patients keep the split of an earlier build")
    elif plan.known:
        say(
            f"note: no patient of the earlier {splits.FILE_NAME} is in this manifest; "
            "if they are the same people, the pseudonym key has changed",
        )
    for split in plan.options.fractions:
        if plan.options.fractions[split] and not ingested.shards[split]:
            use = "evaluated" if split == "test" else "trained"
            say(
                f"note: split {split} is empty, so no network can be {use} on this data set; add "
                "patients, or give some this split in the manifest's column split",
            )
    for split, found in ingested.proof["splits"].items():
        missing = [n for n, images in found["images_by_class"].items() if not images]
        if missing and found["images"]:
            say(f"note: split {split} holds no {', no '.join(missing)}")


def _report_left_out(ingested: Ingested) -> None:
    if ingested.rejected:
        rows = len(ingested.plan.rows)
        say(f"quarantine.csv: {len(ingested.rejected)} of {rows} rows cannot be used")
        for reason, times in Counter(reason for _, reason in ingested.rejected).most_common():
            say(f"  {reason} ({times}x)")
    if ingested.plan.options.config != STUDIES_CONFIG:
        return
    shards = [shard for own in ingested.shards.values() for shard in own]
    studies = [record for shard in shards for record in shard.records]
    one_view = sum(len(record) == 1 for record in studies)
    mixed = sum(len({facts.label for facts in record}) > 1 for record in studies)
    say(
        f"{len(studies)} studies, {one_view} of them with one view; "
        f"{len(ingested.left_out)} images in no study (no certain opposite view, or view unknown)",
    )
    if mixed:
        say(f"note: views with different labels, the most serious taken ({mixed}x)")


if __name__ == "__main__":
    run_command(main)
