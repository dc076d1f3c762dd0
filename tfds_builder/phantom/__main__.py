"""Command line: python -m tfds_builder.phantom --out DIR --patients N --seed S.

Writes a cohort of synthetic patients as DICOM files with a manifest, ready for the builder.
"""

import argparse
import time
from pathlib import Path

from tfds_builder.commandline.command import CommandParser, available_cores, height_and_width
from tfds_builder.commandline.errors import run_command
from tfds_builder.commandline.progress import ProgressBar
from tfds_builder.phantom.camera.protocol import CAMERAS, COLLIMATORS, DIFFICULTIES, Protocol
from tfds_builder.phantom.cohort import make_cohort

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
    add("--out", type=Path, required=True, metavar="DIR",
        help="folder for the cohort: new, empty, or begun by the same command")  # fmt: skip
    add("--patients", type=int, required=True, metavar="N",
        help="number of patients; 15 %% of them give more than one scan")  # fmt: skip
    add("--seed", type=int, required=True, metavar="S",
        help="any number from 0: another seed, other patients")  # fmt: skip
    add("--workers", type=int, default=available_cores(), metavar="W",
        help="processes (default: one for each core, here %(default)s)")  # fmt: skip
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


def main() -> None:
    """Parses the command line and makes a cohort; raises UserError on bad input."""
    options = vars(_parser().parse_args())
    out, patients, seed, workers = (
        options.pop(name) for name in ("out", "patients", "seed", "workers")
    )
    rows, columns = options.pop("matrix")
    protocol = Protocol(**options, rows=rows, columns=columns)
    start = time.monotonic()
    # What an earlier run has made is no work of this one.
    with ProgressBar("patients", total=patients, done=None, noun="patients") as bar:
        made = make_cohort(out, patients, seed, workers, bar.reached, protocol)
    if made is None:
        print(f"{out} is complete: nothing to do")
        return
    seconds = time.monotonic() - start
    shares = ", ".join(f"{count} {label}" for label, count in sorted(made.studies.items()))
    print(f"{out}: {patients} patients; scans: {shares}")
    print(f"{made.patients} patients in {seconds:.1f} s: {made.patients / seconds:.1f} patients/s")


if __name__ == "__main__":
    run_command(main)
