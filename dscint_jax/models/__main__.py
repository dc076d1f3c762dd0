"""What the networks cost, as a table.

    python -m dscint_jax.models
    python -m dscint_jax.models --network dscint --network my_package.my_module:build
    python -m dscint_jax.models --layers resnet18

In: names of networks and the size of their images. Out: parameters, layers, operations and
activation memory of each; or the layers of one. Nothing is computed but shapes, on the CPU.
"""

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import Any

import jax
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dscint_jax import models
from dscint_jax.command import run_command
from dscint_jax.models import cost
from tfds_builder.commandline.command import CommandParser, height_and_width, positive_number

NOTE = """\
parameters      trained numbers
kernels         of convolutions + of fully connected layers; shortcuts, parallel
                branches and the gates of attention have theirs too
GFLOPs          of one example's forward pass, as XLA counts them: two of a
                multiply-add, none of padding
activations     what back-propagation keeps of a training batch, before XLA
                merges and recomputes"""


def main(argv: list[str] | None = None) -> None:
    """The command line.

    Raises:
      UserError: a wrong option, no such network, or one that does not take such images.
    """
    settings = _parser().parse_args(argv)
    # Shapes need no accelerator, and JAX would take one's memory for itself.
    jax.config.update("jax_platforms", "cpu")
    common = {
        "num_classes": settings.classes,
        "size": settings.size,
        "channels": settings.channels,
        # Networks that know float32 only need not have the option.
        "options": {} if settings.dtype == "float32" else {"dtype": settings.dtype},
    }
    if settings.layers:
        layers = cost.network_layers(settings.layers, **common)
        report = {
            "network": settings.layers,
            "layers": [{**dataclasses.asdict(la), "parameters": la.parameters} for la in layers],
        }
        table = _layers_table(settings.layers, layers)
    else:
        costs = _count(
            [*dict.fromkeys(settings.network or models.NETWORKS)], batch=settings.batch, **common
        )
        report = {
            "batch": settings.batch,
            "networks": [{"network": n, **dataclasses.asdict(c)} for n, c in costs.items()],
        }
        table = _costs_table(settings, costs)
    if settings.json:
        asked = {name: getattr(settings, name) for name in ("size", "channels", "classes", "dtype")}
        print(json.dumps({**asked, **report}, indent=2))
        return
    console = Console(highlight=False)
    console.print(table)
    if not settings.layers:
        console.print(NOTE)


def _parser() -> CommandParser:
    parser = CommandParser(
        prog="python -m dscint_jax.models",
        description="Table of the networks: parameters, layers, operations and activation "
        "memory. Needs no GPU and makes no arrays.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--network",
        action="append",
        metavar="NAME",
        help="one of them, or 'module:function' of your own; repeat it for more (default: all)",
    )
    which.add_argument("--layers", metavar="NAME", help="the layers of one network instead")
    add(
        "--size",
        type=height_and_width,
        default=(1024, 256),
        metavar="HxW",
        help="height and width of an image (default: 1024x256)",
    )
    add(
        "--batch",
        type=positive_number,
        default=32,
        metavar="N",
        help="examples of a training step (default: 32)",
    )
    add("--classes", type=positive_number, default=4, metavar="N", help="outputs (default: 4)")
    add("--channels", type=positive_number, default=1, metavar="N", help="of an image (default: 1)")
    add(
        "--dtype",
        choices=models.DTYPES,
        default="float32",
        help="of the computation (default: float32)",
    )
    add("--json", action="store_true", help="print JSON instead of a table")
    return parser


def _count(names: Sequence[str], **settings: Any) -> dict[str, cost.Cost]:
    costs = {}
    # Where nobody watches it, a status is not shown.
    with Console(stderr=True).status("") as status:
        for number, name in enumerate(names, start=1):
            status.update(f"{escape(name)}, {number} of {len(names)}")
            costs[name] = cost.network_cost(name, **settings)
    return costs


def _table(title: str, **options: Any) -> Table:
    return Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, **options)


def _costs_table(settings: argparse.Namespace, costs: dict[str, cost.Cost]) -> Table:
    height, width = settings.size
    table = _table(
        f"Images of {height}x{width}, {settings.channels} channel(s); "
        f"{settings.classes} classes; {settings.dtype}"
    )
    table.add_column("network", overflow="fold")
    table.add_column("parameters", justify="right")
    table.add_column("kernels", justify="right", no_wrap=True)
    table.add_column("GFLOPs", justify="right")
    table.add_column(f"activations\nof {settings.batch}, GiB", justify="right")
    for name, found in costs.items():
        table.add_row(
            escape(name),
            f"{found.parameters:,}",
            f"{found.convolutions} + {found.fully_connected}",
            f"{found.flops / 1e9:.2f}",
            f"{found.activation_bytes / 2**30:.2f}",
        )
    return table


def _layers_table(name: str, layers: list[cost.Layer]) -> Table:
    table = _table(escape(name), show_footer=True)
    table.add_column("layer", "all", overflow="fold")
    table.add_column("kind", overflow="fold")
    table.add_column("shapes of its parameters", overflow="fold")
    total = sum(layer.parameters for layer in layers)
    table.add_column("parameters", f"{total:,}", justify="right", no_wrap=True)
    for layer in layers:
        shapes = (f"{key} {'x'.join(map(str, shape))}" for key, shape in layer.shapes.items())
        table.add_row(
            escape(layer.path or "(the network itself)"),
            layer.kind,
            ", ".join(shapes),
            f"{layer.parameters:,}",
        )
    return table


if __name__ == "__main__":
    run_command(main)
