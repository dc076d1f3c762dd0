"""The command line of the evaluation."""

from pathlib import Path

from dscint_jax.command import run_command
from tfds_builder.commandline.command import CommandParser


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.evaluate",
        description="Evaluate a trained checkpoint: metrics.json, predictions.csv, a table.",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="directory of the training")
    parser.add_argument(
        "--split",
        nargs="+",
        default=["test"],
        dest="splits",
        metavar="SPLIT",
        help="train, validation, test, or several of them (default: test)",
    )
    parser.add_argument(
        "--checkpoint", default="best", help="best (by validation F-1), latest, or a step"
    )
    parser.add_argument("--data_dir", type=Path, help="data set, if not the one the config names")
    parser.add_argument(
        "--name", help="of another data set than the one trained on (default: its folder's)"
    )
    parser.add_argument(
        "--external",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="other data sets to evaluate as well, each under the name of its folder",
    )
    parser.add_argument("--out", type=Path, help="folder of the results, if not the work directory")
    parser.add_argument(
        "--mirror",
        action="store_true",
        help="read each image as it is and mirrored, and average the probabilities",
    )
    parser.add_argument(
        "--watch",
        action="store_true",
        help="evaluate every checkpoint of a training as it is saved, until training is complete",
    )
    arguments = vars(parser.parse_args())
    # What follows takes seconds to import, which a wrong option need not wait for.
    from dscint_jax.evaluate.evaluate import evaluate_all, print_table
    from dscint_jax.evaluate.watch import watch

    run = watch if arguments.pop("watch") else evaluate_all
    run(**arguments, told=print_table)


if __name__ == "__main__":
    run_command(main)
