"""A step whose loss is not finite is not taken, and none after it, until the loop looks.

In: the states before and after a step, and its metrics. Out: the state to go on with. The loop
reads metrics only now and then, and a state is gone once the next step has it. So the step itself
halts the state: it stays as it was before the first bad step, and its step number turns negative,
-k for step k.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from dscint_jax.training.state import TrainState

STEPS_TAKEN = "steps_taken"
"""The metric that tells of a halted state: the steps taken so far, or -k where step k was bad."""


def guarded(
    state: TrainState, new_state: TrainState, metrics: Mapping[str, jax.Array]
) -> tuple[TrainState, dict[str, jax.Array]]:
    """The last thing that a training step does; all devices must have the same metrics.

    Args:
      state, new_state: before the step and after it.
      metrics: of the step; `loss` and `gradient_norm` are looked at.

    Returns:
      `new_state`, if the loss, the gradients and the new statistics are finite; else, and ever
      after, `state` with a negative step number. And the metrics with `STEPS_TAKEN`.
    """
    halted = state.step < 0
    sound = jnp.isfinite(metrics["loss"]) & jnp.isfinite(metrics["gradient_norm"])
    for leaf in jax.tree.leaves(new_state.batch_stats):
        sound &= jnp.isfinite(leaf).all()
    # Before the update of the parameters is known, so that they are still written in place.
    goes_on = sound & ~halted
    kept = jax.lax.platform_dependent(goes_on, new_state, state, cpu=_branch, default=_select)
    step = jnp.where(goes_on, new_state.step, jnp.where(halted, state.step, -new_state.step))
    return dataclasses.replace(kept, step=step), {**metrics, STEPS_TAKEN: step}


def _branch(goes_on: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """On a CPU this leaves the compiler's order of rounding, and so the bits, as they were."""
    return jax.lax.cond(goes_on, lambda new, old: new, lambda new, old: old, new, old)


def _select(goes_on: jax.Array, new: TrainState, old: TrainState) -> TrainState:
    """On an accelerator a branch would have the host wait for the loss of every step."""
    return jax.tree.map(lambda new, old: jnp.where(goes_on, new, old), new, old)


def bad_step(steps_taken: float) -> int | None:
    """The first step that was not finite, told from `STEPS_TAKEN`; None if all were."""
    return -int(steps_taken) if steps_taken < 0 else None


def rewound(state: Any) -> Any:
    """A halted state as it was before the bad step."""
    return dataclasses.replace(state, step=-state.step - 1) if state.step < 0 else state
