"""Command line: python -m tests.phantom_checks [--patients N] [--seed S] [--out DIR].

Measures phantoms as clinical scans were measured, prints how they compare, and fails where they
differ.
"""

import functools
import sys
from pathlib import Path

from tests.phantom_checks import check
from tests.phantom_checks.measure import Measured, measure_patient
from tfds_builder.commandline.command import CommandParser, available_cores
from tfds_builder.commandline.errors import run_command
from tfds_builder.commandline.progress import ProgressBar
from tfds_builder.phantom.cohort import check_values
from tfds_builder.workers import WorkerPool

_STEP_SECONDS, _MEMORY_BYTES = 600.0, 2**33


def main(argv: list[str] | None = None) -> None:
    """Ends the process with status 1 where the phantoms differ from clinical scans.

    Raises:
      UserError: wrong options, a scan without a body, or files that cannot be written.
    """
    parser = CommandParser(
        prog="python -m tests.phantom_checks",
        description="Measures synthetic patients as clinical scans were measured and prints how "
        "they compare.",
        epilog="Exit status: 1 where a clinical median lies outside, or more than 5 % of the "
        "statistics spread more than 6 times as far as the clinical ones; 2 a wrong option.",
    )
    add = parser.add_argument
    add("--patients", type=int, default=200, metavar="N", help="how many (default: 200)")
    add("--seed", type=int, default=0, metavar="S",
        help="another seed, other patients (default: 0)")  # fmt: skip
    add("--workers", type=int, default=available_cores(), metavar="W",
        help="processes (default: one a core)")  # fmt: skip
    add("--out", type=Path, metavar="DIR",
        help="where check.csv and check.png go (default: neither is written)")  # fmt: skip
    asked = parser.parse_args(argv)
    check_values(asked.patients, asked.seed, asked.workers)
    rows = check.compare(measure_cohort(asked.patients, asked.seed, asked.workers))
    print(check.table(rows))
    if asked.out is not None:
        heading = f"{asked.patients} synthetic patients, seed {asked.seed}: {check.summary(rows)}"
        check.write(asked.out, rows, heading)
    if not check.holds(rows):
        sys.exit(1)


def measure_cohort(patients: int, seed: int, workers: int) -> list[Measured]:
    """Measures the first study of patients 0 to `patients` - 1, in that order."""
    measured = []
    with (
        WorkerPool(
            workers,
            step_seconds=_STEP_SECONDS,
            memory_bytes=_MEMORY_BYTES,
            preload=(measure_patient.__module__,),
        ) as pool,
        ProgressBar("patients", total=patients, noun="patients") as bar,
    ):
        measure = functools.partial(measure_patient, seed)
        for one in pool.map(measure, range(patients), lambda patient, lost: None):
            measured.append(one)
            bar.update(len(measured))
    return measured


if __name__ == "__main__":
    run_command(main)
