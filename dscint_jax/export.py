"""A trained checkpoint as a file that PyTorch can load, and `config.init_from` too.

    python -m dscint_jax.export --workdir runs/resnet18 --out resnet18.safetensors

In: a work directory that training filled; its data set is not needed. Out: one .safetensors file
with PyTorch's names and order of axes (`models.export_torch` shows how to load it), and metadata:
network, classes, step, and how an image becomes the network's input.
"""

import importlib.metadata
import json
from pathlib import Path

from ml_collections import ConfigDict

from dscint_jax.errors import CommandParser, DscintError, run_command
from dscint_jax.input_pipeline import open_dataset
from dscint_jax.models.export_torch import torch_state_dict, write_safetensors
from dscint_jax.models.import_torch import SAFETENSORS
from dscint_jax.trained import TrainedWeights, load_weights
from dscint_jax.workdir import attempts_of, check_data, config_of


def export(workdir: Path, out: Path, *, checkpoint: str, overwrite: bool = False) -> str:
    """Writes one checkpoint as a .safetensors file.

    Args:
      workdir: of the training.
      out: the file.
      checkpoint: 'best' (by validation F-1), 'last', or a step.
      overwrite: whether a file that is there is replaced.

    Returns:
      What was written, in one line.

    Raises:
      DscintError: no run, no such checkpoint, or a file that cannot be written.
    """
    _check_out(out, overwrite)
    classes, fingerprint = _trained_on(workdir)
    trained = load_weights(workdir, checkpoint=checkpoint, num_classes=len(classes))
    tensors = torch_state_dict(trained.params, trained.statistics)
    write_safetensors(out, tensors, _metadata(trained, classes, fingerprint))
    return f"{out}: {len(tensors)} tensors of {trained.config.model} at step {trained.step}"


def _check_out(out: Path, overwrite: bool) -> None:
    if out.suffix != SAFETENSORS:
        raise DscintError(f"--out {out} must end in {SAFETENSORS}")
    try:
        exists, is_folder = out.exists(), out.is_dir()
    except OSError as error:
        raise DscintError(f"--out {out} cannot be written: {error.strerror}") from error
    if is_folder:
        raise DscintError(f"--out {out} is a folder; name a file")
    if exists and not overwrite:
        raise DscintError(f"--out {out} exists; choose another name, or replace it by --overwrite")


def _trained_on(workdir: Path) -> tuple[list[str], str]:
    """Names of the classes, in the order of the outputs, and the data set's fingerprint."""
    config = ConfigDict(config_of(workdir))
    attempts = attempts_of(workdir)
    if not attempts:
        raise DscintError(f"{workdir / 'provenance.json'} is missing or empty; restore it")
    attempt = attempts[-1]
    fingerprint = attempt["dataset_fingerprint"]
    if "classes" in attempt:
        return attempt["classes"], fingerprint
    # Earlier versions did not record them.
    info = open_dataset(Path(config.data.dir), config.data.records).info
    check_data(workdir, info.metadata["fingerprint"])
    return list(info.features["label"].names), fingerprint


def _metadata(trained: TrainedWeights, classes: list[str], fingerprint: str) -> dict[str, str]:
    config = trained.config
    return {
        # Loaders of other libraries ask for it.
        "format": "pt",
        "network": config.model,
        "model_options": config.model_options.to_json(sort_keys=True),
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
        "--checkpoint", default="best", help="best (by validation F-1), last, or a step"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    arguments = parser.parse_args()
    print(
        export(
            arguments.workdir,
            arguments.out,
            checkpoint=arguments.checkpoint,
            overwrite=arguments.overwrite,
        )
    )


if __name__ == "__main__":
    run_command(main)
