"""A trained checkpoint as a file that PyTorch can load, and `config.init_from` too.

    python -m dscint_jax.export --workdir runs/resnet18 --out resnet18.safetensors

In: a work directory that training filled; its data set is not needed. Out: one .safetensors file
with PyTorch's names and order of axes (`models.export_torch` shows how to load it), and metadata:
network, classes, step, and how an image becomes the network's input.
"""

import importlib.metadata
import json
from pathlib import Path

from dscint_jax.command import run_command
from dscint_jax.evaluate.restored import TrainedWeights, load_weights
from dscint_jax.run.provenance import attempts_of, classes_of
from dscint_jax.run.workdir import config_of
from dscint_jax.weights.export_torch import torch_state_dict, write_safetensors
from dscint_jax.weights.import_torch import SAFETENSORS
from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.errors import UserError


def export(workdir: Path, out: Path, *, checkpoint: str, overwrite: bool = False) -> str:
    """Writes one checkpoint (best, latest, or a step) as a file; says what was written in one line.

    Raises:
      UserError: no run, no such checkpoint, or a file that cannot be written.
    """
    _check_out(out, overwrite)
    config_of(workdir)
    classes = classes_of(workdir)
    fingerprint = attempts_of(workdir)[-1]["dataset_fingerprint"]
    trained = load_weights(workdir, checkpoint=checkpoint, num_classes=len(classes))
    tensors = torch_state_dict(trained.params, trained.batch_stats)
    write_safetensors(out, tensors, _metadata(trained, classes, fingerprint))
    return f"{out}: {len(tensors)} tensors of {trained.config.model} at step {trained.step}"


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix != SAFETENSORS:
        raise UserError(f"--out {out} must end in {SAFETENSORS}")
    try:
        exists, is_folder = out.exists(), out.is_dir()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from error
    if is_folder:
        raise UserError(f"--out {out} is a folder; name a file")
    if exists and not overwrite:
        raise UserError(f"--out {out} exists; choose another name, or replace it by --overwrite")


def _metadata(
    trained: TrainedWeights, classes: tuple[str, ...], fingerprint: str
) -> dict[str, str]:
    config = trained.config
    return {
        # Loaders of other libraries ask for it.
        "format": "pt",
        "network": config.model,
        "model_options": json.dumps(config.model_options, sort_keys=True),
        "classes": json.dumps(classes),
        "step": str(trained.step),
        "records": config.data.records,
        "pool": str(config.data.pool),
        "clip": str(config.data.clip),
        "input": (
            f"min(sqrt(counts / scale), {config.data.clip}), counts summed over blocks of "
            f"{config.data.pool}x{config.data.pool} pixels, scale in counts a block"
        ),
        "dataset_fingerprint": fingerprint,
        "dscint_jax": importlib.metadata.version("dscint-jax"),
    }


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.export",
        description="Write a trained checkpoint as a .safetensors file that PyTorch can load.",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="directory of the training")
    parser.add_argument("--out", type=Path, required=True, help="file to write, NAME.safetensors")
    parser.add_argument(
        "--checkpoint", default="best", help="best (by validation F-1), latest, or a step"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    arguments = parser.parse_args()
    print(export(**vars(arguments)))


if __name__ == "__main__":
    run_command(main)
