"""A step whose loss was not finite: kept when training stops at it, and taken again to see why.

    python -m dscint_jax.replay --workdir runs/dscint

In: the state before the step and its batch. Out: nonfinite/STEP in the work directory, with
state.safetensors, batch.safetensors and step.json; and a table of what is not finite in that step,
the first operation first.
"""

import dataclasses
import functools
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from dscint_jax.atomic import write_bytes
from dscint_jax.config import check_config
from dscint_jax.errors import CommandParser, DscintError, run_command
from dscint_jax.experiment import make_experiment
from dscint_jax.input_pipeline import IDENTITY_FIELDS, HostBatch, device_fields
from dscint_jax.progress import ProgressBar
from dscint_jax.tracing import Origin, follow
from dscint_jax.train_step import Recipe, TrainState, eval_step, train_step
from dscint_jax.workdir import config_of, read_json, write_json

FOLDER = "nonfinite"
STATE_FILE, BATCH_FILE, STEP_FILE = "state.safetensors", "batch.safetensors", "step.json"

NAMED_IMAGES = 8
"""How many images a message names before it counts the others."""

NOT_REPRODUCED = 1
"""Exit status where all is finite when the step is taken again."""


@dataclasses.dataclass(frozen=True)
class Dump:
    """One kept step.

    Attributes:
      step: its number, from 1.
      state: before it.
      batch: device fields, all rows.
      identity: image_id, patient_key and view of every row.
      class_counts: of the training split.
      devices: that it was taken on.
    """

    step: int
    state: TrainState
    batch: HostBatch
    identity: Mapping[str, list[str]]
    class_counts: tuple[int, ...]
    devices: str


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
      tensor: which.
      shape: of it.
      bad: how many of its values are not finite.
      note: what else is known.
    """

    tensor: str
    shape: tuple[int, ...]
    bad: int
    note: str = ""


def write_dump(
    workdir: Path,
    *,
    step: int,
    state: TrainState,
    batch: HostBatch,
    class_counts: tuple[int, ...],
    seed: int,
) -> Path:
    """Keeps a step that was not finite; one kept before at the same step is replaced.

    Args:
      workdir: the run's directory.
      step: its number, from 1.
      state: before it; see `finite.rewound`.
      batch: all rows, with device fields and identity.
      class_counts: of the training split.
      seed: of the run.

    Returns:
      The folder.

    Raises:
      WriteError: it cannot be written.
    """
    folder = workdir / FOLDER / str(step)
    # Written last, it says that the others are whole.
    (folder / STEP_FILE).unlink(missing_ok=True)
    arrays = {name: np.asarray(leaf) for name, leaf in _named(state).items()}
    write_bytes(folder / STATE_FILE, safetensors.numpy.save(arrays))
    fields = {name: np.ascontiguousarray(v) for name, v in device_fields(batch).items()}
    write_bytes(folder / BATCH_FILE, safetensors.numpy.save(fields))
    devices = jax.devices()
    write_json(
        folder / STEP_FILE,
        {
            "step": step,
            "seed": seed,
            "class_counts": class_counts,
            "devices": f"{len(devices)} x {devices[0].device_kind}",
            **{name: batch[name].tolist() for name in IDENTITY_FIELDS},
        },
    )
    return folder


def failure(workdir: Path, step: int, batch: HostBatch) -> DscintError:
    """The one line that training ends with when a step was not finite."""
    scale = batch["scale"].reshape(len(batch["scale"]), -1)
    odd = ~(np.isfinite(scale) & (scale > 0)).all(1)
    # What no counts can be divided by is named first, and said to be so.
    names = [str(name) for name in batch["image_id"]]
    shown = [name for name, bad in zip(names, odd, strict=True) if bad] or names
    more = f" and {len(shown) - NAMED_IMAGES} more" if len(shown) > NAMED_IMAGES else ""
    images = ", ".join(shown[:NAMED_IMAGES]) + more
    cause = (
        f"its batch holds images whose scale is no positive number ({images}): mend them "
        "and build the data set again"
        if odd.any()
        else f"its batch: {images}; lower config.optimizer.learning_rate"
    )
    return DscintError(
        f"the loss is not finite at step {step}, {cause}, and use a new --workdir; to see what "
        f"fails first: python -m dscint_jax.replay --workdir {workdir} --step {step}"
    )


def read_dump(workdir: Path, step: int | None = None) -> Dump:
    """Reads a kept step.

    Args:
      workdir: the run's directory.
      step: its number; None for the newest.

    Raises:
      DscintError: there is none, or it is damaged or of another network.
    """
    kept = sorted(
        int(path.parent.name)
        for path in (workdir / FOLDER).glob(f"*/{STEP_FILE}")
        if path.parent.name.isdecimal()
    )
    if not kept:
        raise DscintError(f"{workdir} holds no step whose loss was not finite: no {FOLDER}/STEP")
    if step is not None and step not in kept:
        raise DscintError(f"--step {step}: {workdir / FOLDER} holds {', '.join(map(str, kept))}")
    folder = workdir / FOLDER / str(kept[-1] if step is None else step)
    facts = read_json(folder / STEP_FILE)
    arrays, batch = (_read_arrays(folder / name) for name in (STATE_FILE, BATCH_FILE))
    try:
        counts = tuple(facts["class_counts"])
        like = jax.eval_shape(make_experiment(_config(workdir), counts).initial_state)
        leaves = {name: arrays[name].astype(leaf.dtype) for name, leaf in _named(like).items()}
        state = jax.tree.unflatten(jax.tree.structure(like), leaves.values())
        return Dump(
            step=facts["step"],
            state=state,
            batch=batch,
            identity={name: facts[name] for name in IDENTITY_FIELDS},
            class_counts=counts,
            devices=facts["devices"],
        )
    except (KeyError, TypeError) as error:
        raise DscintError(f"{folder} does not fit the run's config: {error} is missing") from error


def replay(workdir: Path, step: int | None = None) -> tuple[Dump, list[Finding]]:
    """Takes a kept step again, on one device, operation by operation.

    Returns:
      What was kept; and what is not finite, in the order in which it arises, nothing if all is
      finite.

    Raises:
      DscintError: as `read_dump`.
    """
    dump = read_dump(workdir, step)
    recipe = make_experiment(_config(workdir), dump.class_counts).recipe
    with ProgressBar("taking the step again", noun="operations") as bar:
        (metrics, gradients), origins = follow(
            functools.partial(_metrics_and_gradients, recipe=recipe),
            {"state": dump.state, "batch": dump.batch},
            lambda done, total: bar.update(done, total=total),
        )
    found = _given(dump)
    firsts = {one.first(): None for one in origins if one}
    found += [_finding_of(first, dump) for first in firsts if first.operation != "given"]
    found += _alone(dump, recipe)
    found += _not_finite("metric ", metrics) + _not_finite("gradient of ", gradients)
    return dump, found


def _metrics_and_gradients(
    state: TrainState, batch: HostBatch, *, recipe: Recipe
) -> tuple[dict[str, jax.Array], Any]:
    """What a training step computes, with the gradients that it hands to the optimizer."""
    seen = []

    def update(gradients: Any, optimizer: Any, params: Any = None) -> tuple[Any, Any]:
        seen.append(gradients)
        # What becomes of them is of no interest here.
        return jax.tree.map(jnp.zeros_like, gradients), optimizer

    watched = optax.GradientTransformation(recipe.optimizer.init, update)
    _, metrics = train_step(state, batch, recipe=dataclasses.replace(recipe, optimizer=watched))
    return {name: metrics[name] for name in ("loss", "gradient_norm")}, seen[-1]


def _given(dump: Dump) -> list[Finding]:
    """What was not finite, or no scale, before the step began."""
    batch = dict(dump.batch)
    scale = batch.pop("scale")
    found = _not_finite("before the step: ", dump.state) + _not_finite("batch ", batch)
    odd = ~(np.isfinite(scale) & (scale > 0))
    if odd.any():
        rows = np.flatnonzero(odd.reshape(len(odd), -1).any(1))
        note = f"no positive number: {_images(dump, rows)}"
        found.append(Finding("batch scale", scale.shape, int(odd.sum()), note))
    return found


def _alone(dump: Dump, recipe: Recipe) -> list[Finding]:
    """Images that the network, before the step, cannot classify even without the others."""
    evaluate = jax.jit(functools.partial(eval_step, recipe=recipe))
    result = evaluate(dump.state.params, dump.state.statistics, dump.batch)
    probabilities = np.asarray(result.probabilities)
    rows = np.flatnonzero(~np.isfinite(probabilities).all(1))
    if not len(rows):
        return []
    note = f"without augmentation, running statistics: {_images(dump, rows)}"
    return [Finding("probabilities", probabilities.shape, int(rows.size), note)]


def _finding_of(origin: Origin, dump: Dump) -> Finding:
    of_images = origin.shape[:1] == (len(dump.batch["label"]),)
    note = f"first, {origin.nan} nan and {origin.infinite} infinite, of finite values"
    if of_images and len(origin.rows) < origin.shape[0]:
        note += f": {_images(dump, origin.rows)}"
    name = f"{origin.operation} at {origin.place}"
    return Finding(name, origin.shape, origin.nan + origin.infinite, note)


def _not_finite(prefix: str, tree: Any) -> list[Finding]:
    found = []
    for name, leaf in _named(tree).items():
        values = np.asarray(leaf, np.float64)
        if bad := int((~np.isfinite(values)).sum()):
            found.append(Finding(prefix + name, values.shape, bad))
    return found


def _images(dump: Dump, rows: Any) -> str:
    names = [dump.identity["image_id"][row] for row in rows]
    more = f" and {len(names) - NAMED_IMAGES} more" if len(names) > NAMED_IMAGES else ""
    return ", ".join(names[:NAMED_IMAGES]) + more


def _config(workdir: Path) -> ConfigDict:
    config = ConfigDict(config_of(workdir))
    check_config(config)
    return config


def _named(tree: Any) -> dict[str, Any]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(path.read_bytes())
    except OSError as error:
        raise DscintError(f"{path} cannot be read: {error.strerror}") from error
    # The library's own exception is of no public type.
    except Exception as error:
        raise DscintError(f"{path} is damaged: {error}; train again to keep the step anew") from (
            error
        )


def print_table(dump: Dump, found: list[Finding]) -> None:
    """Prints what is not finite, what comes first first."""
    console = Console(width=max(shutil.get_terminal_size().columns, 100), highlight=False)
    table = Table(title=f"step {dump.step}, taken on {dump.devices}: what is not finite")
    for column, justify in (("tensor", "left"), ("shape", "left"), ("values", "right")):
        table.add_column(column, justify=justify, overflow="fold")
    table.add_column("", overflow="fold")
    for one in found:
        shape = "x".join(map(str, one.shape)) or "scalar"
        size = int(np.prod(one.shape))
        table.add_row(one.tensor, shape, f"{one.bad} of {size}", one.note)
    console.print(table)


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.replay",
        description="Take a step whose loss was not finite again: what fails first?",
        epilog=(
            "The step is taken on one device, operation by operation. "
            f"Exit status: 0 if it is not finite again, {NOT_REPRODUCED} if it is, 2 bad input."
        ),
    )
    parser.add_argument("--workdir", type=Path, required=True, help="directory of the training")
    parser.add_argument("--step", type=int, help="which of nonfinite/STEP (default: the newest)")
    arguments = parser.parse_args()
    dump, found = replay(arguments.workdir, arguments.step)
    if not found:
        print(
            f"step {dump.step} is finite when it is taken again on {jax.devices()[0].device_kind}; "
            f"it was taken on {dump.devices}"
        )
        sys.exit(NOT_REPRODUCED)
    print_table(dump, found)


if __name__ == "__main__":
    run_command(main)
