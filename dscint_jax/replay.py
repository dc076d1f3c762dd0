"""A step whose loss was not finite, kept by `training.nonfinite`, is taken again to see why.

    python -m dscint_jax.replay --workdir runs/dscint

In: nonfinite/STEP in the work directory, with state.safetensors, batch.safetensors and step.json.
Out: a table of what is not finite in that step, the first operation first.
"""

import dataclasses
import functools
import sys
import sysconfig
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import safetensors.numpy
from rich.table import Table

from dscint_jax.command import run_command
from dscint_jax.input_pipeline import HostBatch
from dscint_jax.pytree import named_leaves
from dscint_jax.run.workdir import config_of
from dscint_jax.training.experiment import make_experiment
from dscint_jax.training.nonfinite import (
    BATCH_FILE,
    FOLDER,
    STATE_FILE,
    STEP_FILE,
    image_names,
    no_divisor,
)
from dscint_jax.training.state import TrainState
from dscint_jax.training.step import Batch, StepSpec, eval_step, train_step
from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import read_json
from tfds_builder.commandline.progress import show

NOT_REPRODUCED = 1
"""Exit status where all is finite when the step is taken again."""
PACKAGE = Path(__file__).parent
LIBRARIES = tuple(Path(sysconfig.get_path(name)) for name in ("purelib", "platlib", "stdlib"))


@dataclasses.dataclass(frozen=True)
class Dump:
    """A kept step: its number from 1, the state before it, all rows of its batch and their names.

    The spec is that of the run, on one device; `devices` tells what the step was taken on.
    """

    step: int
    state: TrainState
    batch: HostBatch
    images: Sequence[str]
    devices: str
    spec: StepSpec


class Finding(NamedTuple):
    """One line of the table; an operation has neither shape nor values."""

    what: str
    shape: str = ""
    values: str = ""
    note: str = ""


def read_dump(workdir: Path, step: int | None = None) -> Dump:
    """Reads a kept step, the newest if `step` is None.

    Raises:
      UserError: there is none, or it is damaged or of another network.
    """
    names = [file.parent.name for file in (workdir / FOLDER).glob(f"*/{STEP_FILE}")]
    kept = sorted(int(name) for name in names if name.isdecimal())
    if not kept:
        raise UserError(f"{workdir} holds no step whose loss was not finite: no {FOLDER}/STEP")
    if step is not None and step not in kept:
        raise UserError(f"--step {step}: {workdir / FOLDER} holds {', '.join(map(str, kept))}")
    folder = workdir / FOLDER / str(kept[-1] if step is None else step)
    facts = read_json(folder / STEP_FILE)
    arrays, batch = (_read_arrays(folder / name) for name in (STATE_FILE, BATCH_FILE))
    config = config_of(workdir)
    try:
        experiment = make_experiment(config, tuple(facts["class_counts"]))
        like = experiment.state_shapes
        leaves = [arrays[name].astype(leaf.dtype) for name, leaf in named_leaves(like).items()]
        state = jax.tree.unflatten(jax.tree.structure(like), leaves)
        names, devices = facts["image_id"], facts["devices"]
        return Dump(facts["step"], state, batch, names, devices, experiment.spec)
    except (KeyError, TypeError) as error:
        raise UserError(f"{folder} does not fit the run's config: {error} is missing") from error


def replay(workdir: Path, step: int | None = None) -> tuple[Dump, list[Finding]]:
    """Takes a kept step again, on one device; one that is not finite operation by operation too.

    Returns:
      What was kept; and what is not finite, what comes first first, nothing if all is finite.

    Raises:
      UserError: as `read_dump`.
    """
    dump = read_dump(workdir, step)
    take_step = functools.partial(_metrics_and_gradients, spec=dump.spec)
    metrics, gradients = jax.jit(take_step)(dump.state, dump.batch)
    found = _not_finite("metric ", metrics) + _not_finite("gradient of ", gradients)
    # Of NumPy's arrays NumPy would do some operations, which JAX does not watch.
    arrays = jax.tree.map(jnp.asarray, (dump.state, dump.batch))
    first = _first_operation(lambda: take_step(*arrays)) if found else []
    return dump, [*_given(dump), *first, *_alone(dump), *found]


def _metrics_and_gradients(
    state: TrainState, batch: Batch, *, spec: StepSpec
) -> tuple[dict[str, jax.Array], Any]:
    """What a training step computes, with the gradients that it hands to the optimizer."""
    seen = []

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        seen.append(updates)
        # What becomes of them is of no interest here.
        return jax.tree.map(jnp.zeros_like, updates), state

    watched = optax.GradientTransformation(spec.optimizer.init, update)
    _, metrics = train_step(state, batch, spec=dataclasses.replace(spec, optimizer=watched))
    return {name: metrics[name] for name in ("loss", "gradient_norm")}, seen[-1]


def _first_operation(take_step: Callable[[], Any]) -> list[Finding]:
    """The first that gives a NaN; where none does, an infinity."""
    for watch, note in (
        (jax.debug_nans, "the first result with a nan in it"),
        (jax.debug_infs, "no nan; the first infinite result, unless it is meant, as padding is"),
    ):
        try:
            with jax.disable_jit(), watch(True):
                take_step()
        except FloatingPointError as error:
            operation = str(error).rpartition(" encountered in ")[2]
            return [Finding(f"{operation} at {_place(error)}", note=note)]
    return []


def _place(error: BaseException) -> str:
    """Such as 'augment.py:57 (normalise)': the innermost line that is no library's.

    Of an operation of back-propagation also the line whose gradient it is, which JAX has as cause.
    """
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(PACKAGE)
        or not any(Path(frame.filename).is_relative_to(place) for place in LIBRARIES)
    ]
    place = f"{Path(frames[-1].filename).name}:{frames[-1].lineno} ({frames[-1].name})"
    return f"{place}, gradient of {_place(error.__cause__)}" if error.__cause__ else place


def _given(dump: Dump) -> list[Finding]:
    """What was not finite, or no scale, before the step began."""
    batch = dict(dump.batch)
    odd = no_divisor(batch.pop("scale"))
    found = _not_finite("before the step: ", dump.state) + _not_finite("batch ", batch)
    return found + _finding(
        "batch scale", odd, f"no positive number: {image_names(odd, dump.images)}"
    )


def _alone(dump: Dump) -> list[Finding]:
    """Images that the network, before the step, cannot classify even without the others."""
    evaluate = jax.jit(functools.partial(eval_step, spec=dump.spec))
    result = evaluate(dump.state.params, dump.state.batch_stats, dump.batch)
    odd = ~np.isfinite(result.probabilities)
    note = f"without augmentation, running statistics: {image_names(odd, dump.images)}"
    return _finding("probabilities", odd, note)


def _not_finite(prefix: str, tree: Any) -> list[Finding]:
    found: list[Finding] = []
    for name, leaf in named_leaves(tree).items():
        odd = ~np.isfinite(np.asarray(leaf, np.float64))
        found += _finding(prefix + name, np.asarray(odd))
    return found


def _finding(what: str, odd: np.ndarray, note: str = "") -> list[Finding]:
    """A line, if any value is odd."""
    shape = "x".join(map(str, odd.shape)) or "scalar"
    return [Finding(what, shape, f"{odd.sum()} of {odd.size}", note)] if odd.any() else []


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        return safetensors.numpy.load(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except safetensors.SafetensorError as error:
        raise UserError(f"{path} is damaged: {error}; train again to keep the step anew") from error


def _print_table(dump: Dump, found: list[Finding]) -> None:
    table = Table(title=f"step {dump.step}, taken on {dump.devices}: what is not finite")
    for column in ("what", "shape", "values", ""):
        table.add_column(column, overflow="fold")
    for finding in found:
        table.add_row(*finding)
    show(table)


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.replay",
        description="Take a step whose loss was not finite again: what fails first?",
        epilog=(
            "The step is taken on one device, and, if it is not finite, operation by operation. "
            f"Exit status: 0: not finite again; {NOT_REPRODUCED}: finite now; 2: bad input."
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
    _print_table(dump, found)


if __name__ == "__main__":
    run_command(main)
