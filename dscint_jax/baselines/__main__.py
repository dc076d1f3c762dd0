"""The command line of the shortcut baselines.

python -m dscint_jax.baselines --data_dir data
"""

import sys
from pathlib import Path

from dscint_jax.baselines import NECK_STEPS
from dscint_jax.command import run_command
from dscint_jax.config import NO_FOLD
from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import write_json


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.baselines",
        description="Measure how far trivial classifiers go on a data set: on thumbnails, on the "
        "neck alone, on the facts of the acquisition alone.",
    )
    parser.add_argument("--data_dir", type=Path, required=True, help="where the data set lies")
    parser.add_argument("--split", default="test", help="the split to score (default: test)")
    parser.add_argument(
        "--fold", type=int, default=NO_FOLD, help="of a data set in folds, the one to test on"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the neck's network (default: 0)")
    parser.add_argument(
        "--steps",
        type=int,
        default=NECK_STEPS,
        help=f"of the neck's network (default: {NECK_STEPS})",
    )
    parser.add_argument("--out", type=Path, help="JSON file to write the scores to")
    parser.add_argument(
        "--limit",
        type=float,
        help="exit with status 1 if thumbnail or neck has this accuracy or more",
    )
    arguments = parser.parse_args()
    if arguments.limit is not None and not 0 < arguments.limit <= 1:
        raise UserError(f"--limit {arguments.limit} is not an accuracy; give one up to 1")
    if arguments.steps < 2:
        raise UserError(f"--steps {arguments.steps} is too few; give 2 or more")
    if arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed} is negative; give 0 or more")
    if arguments.out and arguments.out.is_dir():
        raise UserError(f"--out {arguments.out} is a folder; name a file in it")
    # After the arguments are known to be right: what follows takes seconds to import.
    from dscint_jax.baselines.shortcuts import print_table, reaching, report_of

    fitted = {name: getattr(arguments, name) for name in ("fold", "steps", "seed")}
    report = report_of(arguments.data_dir, arguments.split, **fitted)
    print_table(report)
    if arguments.out:
        write_json(arguments.out, report)
    if arguments.limit is not None and (names := reaching(report, arguments.limit)):
        print(f"limit {arguments.limit} reached by: {', '.join(names)}")
        sys.exit(1)


if __name__ == "__main__":
    run_command(main)
