"""A trained checkpoint as one file: weights for PyTorch, or the whole function for any program.

In: a work directory that training filled; its data set is not needed. Out: a file of one of
`FORMATS`, with metadata (`dscint_jax.export.metadata`).
"""

import hashlib
import io
import json
import zipfile
from pathlib import Path

import jax
import numpy as np

from dscint_jax.config import STUDIES
from dscint_jax.evaluate.restored import TrainedWeights, chosen_by, load_weights, result_of_test
from dscint_jax.export.from_counts import COLUMNS, ROWS, reading
from dscint_jax.export.metadata import (
    card,
    metadata_of,
    metadata_of_function,
    metadata_of_licence,
    weights_digest,
)
from dscint_jax.run.provenance import attempts_of, classes_of
from dscint_jax.run.workdir import config_of
from dscint_jax.training.experiment import make_experiment
from dscint_jax.weights.export_torch import torch_state_dict, write_safetensors
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import write_bytes

FORMATS = ("safetensors", "stablehlo", "onnx")
"""Ending of the file, too."""

PLATFORMS = ("cpu", "cuda", "rocm", "tpu")
"""What a StableHLO file runs on."""

COUNTS = np.int32
"""Type of the input of a function."""


def export(
    workdir: Path,
    out: Path,
    *,
    checkpoint: str = "best",
    format: str = "safetensors",
    licence: str | None = None,
    overwrite: bool = False,
) -> str:
    """Writes one checkpoint as a file; says what was written in one line.

    Args:
      workdir: of the training.
      out: file to write, with the ending of its format.
      checkpoint: 'best' (by validation F-1), 'latest', or a step.
      format: one of FORMATS.
      licence: of the weights, as an SPDX expression; None: not stated.
      overwrite: whether a file that exists is replaced.

    Raises:
      UserError: no run, no such checkpoint, a network that the format does not hold, no licence by
        SPDX, or a file that cannot be written.
    """
    _check_out(out, format, overwrite)
    licences = metadata_of_licence(licence)
    config_of(workdir)
    classes = classes_of(workdir)
    fingerprint = attempts_of(workdir)[-1]["dataset_fingerprint"]
    trained = load_weights(workdir, checkpoint=checkpoint, num_classes=len(classes))
    tensors = torch_state_dict(trained.params, trained.batch_stats)
    result = result_of_test(workdir, trained.step)
    chosen = chosen_by(result)
    metadata = {
        **metadata_of(trained, classes, fingerprint, chosen),
        **licences,
        "weights_sha256": weights_digest(tensors),
    }
    if format != "safetensors":
        metadata |= metadata_of_function(trained.config)
    metadata["card"] = card(metadata, result)
    if format == "safetensors":
        write_safetensors(out, tensors, metadata)
    else:
        temperature = chosen.temperature if chosen else 1.0
        write_bytes(out, _function(format, trained, len(classes), temperature, metadata))
    said = (
        f"{out}: {len(tensors)} tensors of {trained.config.model} at step {trained.step}, SHA-256 "
        f"{hashlib.sha256(out.read_bytes()).hexdigest()[:16]}"
    )
    return said if chosen else f"{said}; not calibrated: evaluate the checkpoint first"


def _function(
    format: str,
    trained: TrainedWeights,
    classes: int,
    temperature: float,
    metadata: dict[str, str],
) -> bytes:
    config = trained.config
    if "dtype" in config.model_options:
        # What other programs compute in; as JAX does here but for rounding.
        config = config.replaced({"model_options.dtype": "float32"})
    experiment = make_experiment(config, (1,) * classes)
    function = reading(
        experiment,
        trained.params,
        trained.batch_stats,
        pool=config.data.pool,
        temperature=temperature,
    )
    shape = (2, ROWS, COLUMNS) if config.data.records == STUDIES else (ROWS, COLUMNS)
    if format == "stablehlo":
        batch = jax.export.symbolic_shape("batch")
        example = jax.ShapeDtypeStruct((*batch, *shape), COUNTS)
        exported = jax.export.export(jax.jit(function), platforms=PLATFORMS)(example)
        return _zipped(bytes(exported.serialize()), metadata)
    try:
        from dscint_jax.export.onnx_graph import onnx_model
    except ModuleNotFoundError as error:
        raise UserError(
            "--format onnx needs the package onnx: pip install -c constraints.txt '.[onnx]'"
        ) from error
    model = onnx_model(function, shape, COUNTS, metadata)
    return model.SerializeToString(deterministic=True)


def _zipped(model: bytes, metadata: dict[str, str]) -> bytes:
    """A zip archive, not compressed; the same content gives the same bytes, as it has no time."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as zipped:
        zipped.writestr(zipfile.ZipInfo("model"), model)
        text = json.dumps(metadata, indent=2, sort_keys=True)
        zipped.writestr(zipfile.ZipInfo("metadata.json"), text)
    return archive.getvalue()


def _check_out(out: Path, format: str, overwrite: bool) -> None:
    if format not in FORMATS:
        raise UserError(f"--format {format} is none of {', '.join(FORMATS)}")
    if out.suffix != f".{format}":
        raise UserError(f"--out {out} must end in .{format}, or --format name another format")
    try:
        exists, is_folder = out.exists(), out.is_dir()
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from error
    if is_folder:
        raise UserError(f"--out {out} is a folder; name a file")
    if exists and not overwrite:
        raise UserError(f"--out {out} exists; choose another name, or replace it by --overwrite")
