"""The command line of the throughput.

    python -m dscint_jax.throughput --network dscint --peer torch

In: names of networks, a size and a batch. Out: images a second, beside PyTorch's where asked, as a
table and as JSON.
"""

import sys
from pathlib import Path

from dscint_jax.command import run_command
from dscint_jax.throughput.workload import MEASURED, PEERS, TOLERANCE
from tfds_builder.commandline.command import CommandParser, height_and_width, positive_number


def main() -> None:
    """The command line."""
    arguments = _parser().parse_args()

    # Shapes need no accelerator, which belongs to the processes that measure.
    import jax

    jax.config.update("jax_platforms", "cpu")
    from dscint_jax.throughput.report import measure_all

    failed = measure_all(
        [*dict.fromkeys(arguments.network or MEASURED)],
        size=arguments.size,
        batches=arguments.batch,
        dtype=arguments.dtype,
        train=not arguments.forward,
        seconds=arguments.seconds,
        peers=[*dict.fromkeys(arguments.peer or ())],
        rounds=arguments.rounds,
        out=arguments.out,
    )
    sys.exit(1 if failed else 0)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="python -m dscint_jax.throughput",
        description="How many images a second networks train on here, on one device, each in a "
        "process of its own; with --peer beside the same network, weights and images elsewhere.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add(
        "--network",
        action="append",
        metavar="NAME",
        help=f"one of them; repeat it for more (default: {', '.join(MEASURED)})",
    )
    add(
        "--size",
        type=height_and_width,
        default=(512, 128),
        metavar="HxW",
        help="height and width of an image (default: 512x128)",
    )
    add(
        "--batch",
        type=_batches,
        default=[8],
        metavar="N,...",
        help="images a step, one number or several, such as 1,8,32 (default: 8)",
    )
    add(
        "--dtype",
        choices=tuple(TOLERANCE),
        default="float32",
        help="of the computation (default: float32)",
    )
    add("--forward", action="store_true", help="predictions instead of training steps")
    add(
        "--peer",
        action="append",
        choices=PEERS,
        help="measure PyTorch too, as it is or by torch.compile, or, of predictions, onnxruntime; "
        "repeat it for more (needs the extra 'peers', and of other networks than dscint PyTorch "
        "needs torchvision or timm)",
    )
    add(
        "--rounds",
        type=positive_number,
        default=3,
        metavar="N",
        help="processes of each framework, in turn (default: 3)",
    )
    add(
        "--seconds",
        type=positive_number,
        default=5,
        metavar="S",
        help="how long each process times steps, at least (default: 5)",
    )
    add("--out", type=Path, metavar="FILE.json", help="also write all that was measured")
    return parser


def _batches(text: str) -> list[int]:
    return [positive_number(part) for part in text.split(",")]


if __name__ == "__main__":
    run_command(main)
