"""The command line of predictions.

    python -m dscint_jax.predict --workdir runs/dscint --out predictions IMAGES...

In: trained runs, and files or folders of images. Out: two tables, and a page a study.
"""

from pathlib import Path

from dscint_jax.command import run_command
from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.progress import say


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.predict",
        description="Read new studies with trained networks. For research: no finding for a "
        "patient's care.",
        epilog="Example: python -m dscint_jax.predict --workdir runs/quickstart/dscint "
        "--out runs/predictions incoming/",
    )
    parser.add_argument(
        "inputs",
        type=Path,
        nargs="+",
        metavar="IMAGES",
        help="files (DICOM, PNG, TIFF, JPEG), or folders that are searched",
    )
    network = parser.add_mutually_exclusive_group(required=True)
    network.add_argument(
        "--workdir",
        type=Path,
        nargs="+",
        default=[],
        dest="workdirs",
        metavar="DIR",
        help="directory of a training; of several, the probabilities are averaged",
    )
    network.add_argument(
        "--model",
        type=Path,
        nargs="+",
        default=[],
        dest="models",
        metavar="FILE",
        help="a .safetensors file of dscint_jax.export, in place of a directory",
    )
    parser.add_argument("--out", type=Path, required=True, help="new folder for the results")
    parser.add_argument(
        "--checkpoint", default="best", help="best (by validation F-1), latest, or a step"
    )
    least = parser.add_mutually_exclusive_group()
    least.add_argument(
        "--least_confidence",
        type=float,
        default=0.0,
        metavar="P",
        help="give no answer where the largest probability is below this (default: 0)",
    )
    least.add_argument(
        "--least_accuracy",
        type=float,
        metavar="A",
        help="the same at the probability that evaluation chose on validation studies, for answers "
        "to be right this often (0.9 or 0.95)",
    )
    parser.add_argument(
        "--accept", action="store_true", help="take files that only a rule of thumb is against"
    )
    parser.add_argument(
        "--deidentified",
        action="store_true",
        help="leave patients, studies and files' names out of what is written",
    )
    parser.add_argument(
        "--dicom",
        action="store_true",
        help="write a Structured Report and a picture as DICOM objects, too (extra `dicom`)",
    )
    parser.add_argument("--no_pages", action="store_false", dest="pages", help="write tables only")
    parser.add_argument(
        "--workers", type=int, default=1, metavar="N", help="processes that open files (default: 1)"
    )
    arguments = parser.parse_args()
    # After the arguments are known to be right: what follows takes seconds to import.
    from dscint_jax.predict.predict import INDEX_FILE, predict

    answers = predict(**vars(arguments))
    read = sum(answer.said is not None for answer in answers)
    say(f"{read} of {len(answers)} studies read: {arguments.out / INDEX_FILE}")


if __name__ == "__main__":
    run_command(main)
