"""Command line: python -m tfds_builder.phantom --out DIR --patients N --seed S, or --check.

Writes a cohort of synthetic patients as DICOM files with a manifest, ready for the builder; or
compares such patients with clinical scans.
"""

import argparse
import sys
import time
from pathlib import Path

from tfds_builder.commandline.command import CommandParser, available_cores, height_and_width
from tfds_builder.commandline.errors import UserError, run_command
from tfds_builder.commandline.progress import ProgressBar
from tfds_builder.phantom.camera.protocol import CAMERAS, COLLIMATORS, DIFFICULTIES, Protocol
from tfds_builder.phantom.cohort import make_cohort

CHECKED_PATIENTS, CHECKED_SEED = 200, 0

_DESCRIPTION = """
Makes synthetic patients of whole-body bone scintigraphy: two calibrated views each, as DICOM files,
with labels, lesion masks, a table of lesions and a manifest that `python -m tfds_builder.build`
reads. The same seed and protocol give the same bytes on any number of workers (with the same
versions of numpy, scipy and pydicom); patient 12 is the same in a cohort of 20 and of 2000. A run
that was ended goes on where it stopped when the same command is given again.
"""
_EPILOG = """
Output: images/*.dcm, for each study with lesions masks/*.tif and lesions/*.csv, lesions.csv of all,
manifest.csv, pseudonym.key, and phantom.json with all that was asked for. About 1.2 MB a patient.
"""
_PROTOCOL = """
How the scans are acquired. The defaults lie near what clinics do and publish (a Tc-99m bone scan
of 300 to 740 MBq, imaged 2 to 5 h after injection); what is said to be drawn differs from study to
study and not with the class.
"""


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m tfds_builder.phantom", description=_DESCRIPTION, epilog=_EPILOG
    )
    add = parser.add_argument
    add("--out", type=Path, metavar="DIR",
        help="folder for the cohort: new, empty, or begun by the same command; with --check, "
        "where check.csv and check.png go (default: neither is written)")  # fmt: skip
    add("--patients", type=int, metavar="N",
        help="number of patients; 15 %% of them give more than one scan "
        f"(with --check: {CHECKED_PATIENTS})")  # fmt: skip
    add("--seed", type=int, metavar="S",
        help="any number from 0: another seed, other patients "
        f"(with --check: {CHECKED_SEED})")  # fmt: skip
    add("--workers", type=int, default=available_cores(), metavar="W",
        help="processes (default: one for each core, here %(default)s)")  # fmt: skip
    add("--check", action="store_true",
        help="write no cohort: measure patients as clinical scans were measured, print how they "
        "compare, and end with status 1 where a clinical median lies outside, or more than 5 %% of "
        "the statistics spread more than 6 times as far as the clinical ones")  # fmt: skip
    _add_protocol(parser.add_argument_group("protocol", _PROTOCOL))
    return parser


def _add_protocol(group: argparse._ArgumentGroup) -> None:
    usual, add = Protocol(), group.add_argument
    factors = "; ".join(
        f"{name}: contrast of lesions x{one.contrast:g}, counts x{one.counts:g}"
        for name, one in DIFFICULTIES.items()
    )
    add("--difficulty", default=usual.difficulty, metavar="NAME",
        help=f"{factors} (default: %(default)s, as clinical scans)")  # fmt: skip
    add("--camera", default=usual.camera, metavar="MAKER",
        help=f"whose headers the files resemble: {' or '.join(CAMERAS)} "
        "(default: drawn for each patient)")  # fmt: skip
    add("--collimator", default=usual.collimator, metavar="NAME",
        help=f"{', '.join(COLLIMATORS)}: low-energy high-resolution, all-purpose, "
        "ultra-high-resolution (default: %(default)s)")  # fmt: skip
    add("--matrix", type=height_and_width, default=f"{usual.rows}x{usual.columns}",
        metavar="ROWSxCOLUMNS",
        help="pixels of a view (default: %(default)s)")  # fmt: skip
    add("--pixel_mm", type=float, default=usual.pixel_mm, metavar="MM",
        help="side of a pixel (default: %(default)s); with another matrix, another pixel: "
        "512x128 of 4.8 mm is the same field")  # fmt: skip
    add("--speed_mm_s", type=float, metavar="V",
        help="speed of the table; half the speed, twice the counts "
        "(default: drawn, most often 4.43)")  # fmt: skip
    add("--activity_mbq", type=float, metavar="A",
        help="injected activity (default: drawn from 560 to 780)")  # fmt: skip
    add("--uptake_hours", type=float, metavar="H",
        help="from injection to acquisition "
        "(default: drawn from 2 to 5, on average 3.3)")  # fmt: skip


def _protocol(arguments: argparse.Namespace) -> Protocol:
    rows, columns = arguments.matrix
    return Protocol(
        difficulty=arguments.difficulty,
        camera=arguments.camera,
        collimator=arguments.collimator,
        rows=rows,
        columns=columns,
        pixel_mm=arguments.pixel_mm,
        speed_mm_s=arguments.speed_mm_s,
        activity_mbq=arguments.activity_mbq,
        uptake_hours=arguments.uptake_hours,
    )


def _progress(patients: int) -> ProgressBar:
    # What an earlier run has made is no work of this one.
    return ProgressBar("patients", total=patients, done=None, noun="patients")


def _make(arguments: argparse.Namespace, protocol: Protocol) -> None:
    lacking = [n for n in ("out", "patients", "seed") if getattr(arguments, n) is None]
    if lacking:
        raise UserError(f"--{', --'.join(lacking)} must be given; see --help")
    out, patients = arguments.out, arguments.patients
    start = time.monotonic()
    with _progress(patients) as bar:
        made = make_cohort(out, patients, arguments.seed, arguments.workers, bar.reached, protocol)
    if made is None:
        print(f"{out} is complete: nothing to do")
        return
    shares = ", ".join(f"{count} {label}" for label, count in sorted(made.studies.items()))
    print(f"{out}: {patients} patients; scans: {shares}")
    _say_rate(made.patients, time.monotonic() - start)


def _check(arguments: argparse.Namespace, protocol: Protocol) -> bool:
    # Loads Matplotlib, for which a cohort and each of its workers need not wait.
    from tfds_builder.phantom.checks.check import run_check

    patients = CHECKED_PATIENTS if arguments.patients is None else arguments.patients
    seed = CHECKED_SEED if arguments.seed is None else arguments.seed
    start = time.monotonic()
    with _progress(patients) as bar:
        passed = run_check(patients, seed, protocol, arguments.workers, arguments.out, bar.reached)
    _say_rate(patients, time.monotonic() - start)
    return passed


def _say_rate(patients: int, seconds: float) -> None:
    print(f"{patients} patients in {seconds:.1f} s: {patients / seconds:.1f} patients/s")


def main() -> None:
    """Parses the command line, makes a cohort or checks one; raises UserError on bad input."""
    arguments = _parser().parse_args()
    protocol = _protocol(arguments)
    if not arguments.check:
        _make(arguments, protocol)
    elif not _check(arguments, protocol):
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
