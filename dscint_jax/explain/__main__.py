"""The command line of the explanations."""

from pathlib import Path

from dscint_jax.command import run_command
from dscint_jax.explain import TOLERANCE_MM
from tfds_builder.commandline.command import CommandParser


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.explain",
        description="Show what a trained network looks at, and score it where the data set has "
        "lesion masks: explanations.json, a table.",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="directory of the training")
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.add_argument(
        "--checkpoint", default="best", help="best (by validation F-1), latest, or a step"
    )
    parser.add_argument("--limit", type=int, help="explain no more images, spread over the split")
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE_MM,
        dest="tolerance_mm",
        metavar="MM",
        help=f"how far from a lesion a map may point (default: {TOLERANCE_MM:g} mm)",
    )
    parser.add_argument("--data_dir", type=Path, help="data set, if not the one the config names")
    parser.add_argument(
        "--name", help="of another data set than the one trained on (default: its folder's)"
    )
    parser.add_argument("--out", type=Path, help="folder of the results, if not the work directory")
    arguments = vars(parser.parse_args())
    # After the arguments are known to be right: what follows takes seconds to import.
    from dscint_jax.explain.explanations import print_tables, write_explanations

    write_explanations(**arguments, told=print_tables)


if __name__ == "__main__":
    run_command(main)
