"""The command line of exports.

    python -m dscint_jax.export --workdir runs/resnet18 --out resnet18.safetensors
    python -m dscint_jax.export --workdir runs/dscint --format onnx --out dscint.onnx

In: a trained run. Out: one file for other programs.
"""

from pathlib import Path

from dscint_jax.command import run_command
from tfds_builder.commandline.command import CommandParser


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.export",
        description="Write a trained checkpoint as one file: weights that PyTorch can load, or the "
        "whole function from counts to probabilities as StableHLO or ONNX.",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="directory of the training")
    parser.add_argument("--out", type=Path, required=True, help="file to write, NAME.FORMAT")
    parser.add_argument(
        "--format",
        default="safetensors",
        metavar="FORMAT",
        help="safetensors (weights; default), stablehlo or onnx (counts to probabilities; onnx "
        "needs the extra `onnx`)",
    )
    parser.add_argument(
        "--checkpoint", default="best", help="best (by validation F-1), latest, or a step"
    )
    parser.add_argument(
        "--licence",
        metavar="SPDX",
        help="of the weights, such as CC-BY-NC-4.0 (default: the file says that none is stated)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    arguments = parser.parse_args()
    # After the arguments are known to be right: what follows takes seconds to import.
    from dscint_jax.export.model_file import export

    print(export(**vars(arguments)))


if __name__ == "__main__":
    run_command(main)
