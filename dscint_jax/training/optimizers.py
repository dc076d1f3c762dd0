"""Optimisers and learning rates: from the names in a config to optax transformations."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from jaxtyping import Array, Float, Int, PyTree

from dscint_jax.config import Optimizer

MUON_RMS = 0.2
"""Root mean square of Muon's update at a learning rate of 1, about AdamW's (Liu et al. 2025), so
that both take the same learning rates."""


def make_optimizer(
    config: Optimizer, schedule: optax.Schedule, *, head: str = ""
) -> optax.GradientTransformation:
    """An optimiser after clipping by the global norm; what has one axis does not decay.

    So biases and scales of normalisation stay as they are; kernels and embeddings decay. `head` is
    the path of the layer that makes the logits, with dots, which Muon leaves to AdamW.
    """

    def decays(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    if config.name == "adamw":
        rule = optax.adamw(schedule, weight_decay=config.weight_decay, mask=decays)
    elif config.name == "muon":
        rule = optax.contrib.muon(
            schedule,
            weight_decay=config.weight_decay,
            consistent_rms=MUON_RMS,
            muon_weight_dimension_numbers=functools.partial(_matrices, head=head),
        )
    else:
        rule = optax.chain(
            optax.add_decayed_weights(config.weight_decay, decays),
            optax.sgd(schedule, momentum=config.momentum, nesterov=True),
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)


def _matrices(params: Any, *, head: str) -> Any:
    """How kernels are matrices: all axes that are summed over, by outputs; None is no kernel."""
    layer = head.replace(".", "/") + "/"

    def one(path: tuple, leaf: jax.Array) -> optax.contrib.MuonDimensionNumbers | None:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if leaf.ndim < 2 or f"{name}/".startswith(layer):
            return None
        return optax.contrib.MuonDimensionNumbers(tuple(range(leaf.ndim - 1)), leaf.ndim - 1)

    return jax.tree_util.tree_map_with_path(one, params)


def make_schedule(config: Optimizer, *, steps: int) -> optax.Schedule:
    """Learning rate: linear from 0 to the peak over the warm-up, then as `config.schedule` says.

    The warm-up, in steps, is at most all of the training's but one.
    """
    peak, warmup_steps = config.learning_rate, min(int(config.warmup_steps), steps - 1)
    rest = steps - warmup_steps
    after = {
        "cosine": optax.cosine_decay_schedule(peak, rest),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps]
    )


def update_ema(ema: PyTree, current: PyTree, step: Int[Array, ""], decay: float) -> PyTree:
    """The running mean of a network's parameters and statistics after a step.

    The decay is min(decay, (1 + step) / (10 + step)), as TensorFlow's ExponentialMovingAverage has
    it: a short run is not held back by the random parameters it began with.

    Args:
      ema: before the step.
      current: the network's own, after it.
      step: how many were taken before.
      decay: what is kept of the average.
    """
    step = step.astype(jnp.float32)
    kept: Float[Array, ""] = jnp.minimum(decay, (1.0 + step) / (10.0 + step))

    def mean(old: jax.Array, new: jax.Array) -> jax.Array:
        # A count, say of batches seen, has no mean.
        counted = not jnp.issubdtype(new.dtype, jnp.floating)
        return new if counted else kept * old + (1.0 - kept) * new

    return jax.tree.map(mean, ema, current)
