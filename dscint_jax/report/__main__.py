"""The command line of the report."""

from pathlib import Path

from dscint_jax.command import run_command
from tfds_builder.commandline.command import CommandParser


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.report",
        description="Write one self-contained HTML page about an evaluated run.",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="directory of the training")
    parser.add_argument("--split", default="test", help="which evaluation (default: test)")
    parser.add_argument("--data_dir", type=Path, help="data set, if not the one the config names")
    parser.add_argument(
        "--name", help="of another data set than the one trained on (default: its folder's)"
    )
    parser.add_argument("--out", type=Path, help="folder of report/, if not the work directory")
    arguments = parser.parse_args()
    # What follows takes seconds to import, which a wrong option need not wait for.
    from dscint_jax.metrics.scores import in_words
    from dscint_jax.report.page import write_report

    path, baseline = write_report(**vars(arguments))
    if baseline:
        print(
            f"linear baseline ({baseline.side[0]}x{baseline.side[1]} logistic regression): "
            f"accuracy {in_words(baseline.scores['accuracy'])}, "
            f"F-1 {in_words(baseline.scores['f1'])}"
        )
    print(f"report: {path}")


if __name__ == "__main__":
    run_command(main)
