"""Command line: python -m tfds_builder.phantom --out DIR --patients N --seed S [--workers W].

Writes a cohort of synthetic patients as DICOM files with a manifest, ready for the builder.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tfds_builder.command import CommandParser, available_cores
from tfds_builder.errors import run_command
from tfds_builder.phantom.cohort import make_cohort

SECONDS_BETWEEN_LINES = 10.0


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m tfds_builder.phantom",
        description="Makes synthetic patients of whole-body bone scintigraphy: two calibrated "
        "views each, as DICOM files, with labels, lesion masks and a manifest that "
        "`python -m tfds_builder.build` reads. The same seed gives the same bytes on any number "
        "of workers (with the same versions of numpy, scipy and pydicom); patient 12 is the "
        "same in a cohort of 20 and of 2000. A run that was ended goes on where it stopped when "
        "the same command is given again.",
        epilog="Output: images/*.dcm, masks/*.tif, manifest.csv, pseudonym.key, phantom.json. "
        "About 1.2 MB a patient.",
    )
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR",
        help="folder for the cohort: new, empty, or begun by the same command")  # fmt: skip
    add("--patients", type=int, required=True, metavar="N",
        help="number of patients; 15 %% of them give more than one scan")  # fmt: skip
    add("--seed", type=int, required=True, metavar="S",
        help="any number from 0: another seed, other patients")  # fmt: skip
    add("--workers", type=int, default=available_cores(), metavar="W",
        help="processes (default: one for each core, here %(default)s)")  # fmt: skip
    return parser


class _Lines:
    """Progress as a plain line now and then, for logs."""

    def __init__(self) -> None:
        self.start = self.last = time.monotonic()
        self.first: int | None = None

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        self.first = done - 1 if self.first is None else self.first
        if now - self.last >= SECONDS_BETWEEN_LINES or done == total:
            self.last = now
            rate = (done - self.first) / max(now - self.start, 1e-6)
            print(f"{done} of {total} patients, {rate:.1f} a second", flush=True)


def _make(arguments: argparse.Namespace, report: Callable[[int, int], None]) -> None:
    classes = make_cohort(
        arguments.out, arguments.patients, arguments.seed, arguments.workers, report
    )
    if classes is None:
        print(f"{arguments.out} is complete: nothing to do")
    else:
        shares = ", ".join(f"{count} {label}" for label, count in sorted(classes.items()))
        print(f"{arguments.out}: {arguments.patients} patients; scans: {shares}")


def main() -> None:
    """Parses the command line and makes the cohort; raises DataError on bad input."""
    arguments = _parser().parse_args()
    if not sys.stdout.isatty():
        _make(arguments, _Lines())
        return
    columns = (TextColumn("patients"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("patients", total=arguments.patients)
        _make(arguments, lambda done, total: progress.update(task, completed=done))


if __name__ == "__main__":
    run_command(main)
