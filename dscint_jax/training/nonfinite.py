"""Ends a run at a step that was not finite, and keeps that step for `dscint_jax.replay`.

In: how many steps were taken, as the step itself tells. Out: an error, and nonfinite/STEP in
the work directory: state.safetensors before the step, batch.safetensors and step.json.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import numpy as np
import safetensors.numpy

from dscint_jax.cluster import Cluster, barrier
from dscint_jax.input_pipeline import IDENTITY_FIELDS, HostBatch, Scintigrams, device_fields
from dscint_jax.pytree import named_leaves
from dscint_jax.training.finite import bad_step, rewound
from dscint_jax.training.state import TrainState
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import remove_parts, write_bytes, write_json

WRITING_TIMEOUT_S = 3600.0
"""How long the other processes wait for the one that writes."""

FOLDER = "nonfinite"
STATE_FILE, BATCH_FILE, STEP_FILE = "state.safetensors", "batch.safetensors", "step.json"
NAMED_IMAGES = 8
"""How many images a message names before it counts the others."""


def check_finite(
    steps_taken: float,
    state: TrainState,
    *,
    workdir: Path,
    cluster: Cluster,
    images: Scintigrams,
    order: grain.MapDataset,
    seed: int,
) -> None:
    """Looks at a step that is logged.

    Args:
      steps_taken: the metric `finite.STEPS_TAKEN`.
      state: after that step or a later one.
      cluster: the processes; the first writes.
      images, order: the training split, and its images by step.

    Raises:
      UserError: it was not finite; it is kept then.
    """
    step = bad_step(steps_taken)
    if step is None:
        return
    batch = images.read(np.asarray(order[step - 1]))
    if cluster.is_first:
        facts = {"step": step, "seed": seed, "class_counts": images.class_counts}
        _keep(workdir / FOLDER / str(step), facts, rewound(state), batch)
    # A process that ends in an error ends the others, whatever they are writing.
    barrier(cluster, "non-finite step", WRITING_TIMEOUT_S)
    raise _failure(workdir, step, batch)


def _keep(folder: Path, facts: Mapping[str, Any], state: TrainState, batch: HostBatch) -> None:
    """Keeps a step that was not finite; one kept before at the same step is replaced."""
    remove_parts(folder)
    # Written last, it says that the others are whole.
    (folder / STEP_FILE).unlink(missing_ok=True)
    for file, fields in ((STATE_FILE, named_leaves(state)), (BATCH_FILE, device_fields(batch))):
        arrays = {name: np.array(value, order="C") for name, value in fields.items()}
        write_bytes(folder / file, safetensors.numpy.save(arrays))
    devices = jax.devices()
    told = {
        **facts,
        "devices": f"{len(devices)} x {devices[0].device_kind}",
        **{name: batch[name].tolist() for name in IDENTITY_FIELDS},
    }
    write_json(folder / STEP_FILE, told)


def _failure(workdir: Path, step: int, batch: HostBatch) -> UserError:
    """The one line that training ends with when a step was not finite."""
    odd = no_divisor(batch["scale"])
    # What no counts can be divided by is named first, and said to be so.
    cause = (
        f"its batch holds images whose scale is no positive number "
        f"({image_names(odd, batch['image_id'])}): mend them and build the data set again"
        if odd.any()
        else f"its batch: {image_names(~odd, batch['image_id'])}; lower "
        f"config.optimizer.learning_rate"
    )
    return UserError(
        f"the loss is not finite at step {step}, {cause}, and use a new --workdir; to see what "
        f"fails first: python -m dscint_jax.replay --workdir {workdir} --step {step}"
    )


def no_divisor(scale: np.ndarray) -> np.ndarray:
    """Where counts cannot be divided by it."""
    return ~(np.isfinite(scale) & (scale > 0))


def image_names(odd: np.ndarray, images: Sequence[str] | np.ndarray) -> str:
    """The names of the images with an odd value."""
    names = [str(images[int(row)]) for row in np.flatnonzero(odd.reshape(len(odd), -1).any(1))]
    more = f" and {len(names) - NAMED_IMAGES} more" if len(names) > NAMED_IMAGES else ""
    return ", ".join(names[:NAMED_IMAGES]) + more
