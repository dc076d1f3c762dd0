"""Optimisers and learning rates: from the names in a config to optax transformations."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int

from dscint_jax.config import Optimizer


def make_optimizer(config: Optimizer, schedule: optax.Schedule) -> optax.GradientTransformation:
    """An optimiser after clipping by the global norm; what has one axis does not decay.

    So biases and scales of normalisation stay as they are; kernels and embeddings decay.
    `schedule` is the learning rate by step.
    """

    def decays(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    if config.name == "adamw":
        rule = optax.adamw(schedule, weight_decay=config.weight_decay, mask=decays)
    else:
        rule = optax.chain(
            optax.add_decayed_weights(config.weight_decay, decays),
            optax.sgd(schedule, momentum=config.momentum, nesterov=True),
        )
    return optax.chain(optax.clip_by_global_norm(config.clip_norm), rule)


def make_schedule(config: Optimizer, *, steps: int) -> optax.Schedule:
    """Learning rate: linear from 0 to the peak over the warm-up, then as `config.schedule` says.

    The warm-up, in steps, is at most all of the training's but one.
    """
    peak, warmup_steps = config.learning_rate, min(int(config.warmup_steps), steps - 1)
    if config.schedule == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, steps)
    rest = steps - warmup_steps
    after = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "constant": optax.constant_schedule(peak),
    }[config.schedule]
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps]
    )


def update_ema(ema: nnx.State, current: nnx.State, step: Int[Array, ""], decay: float) -> nnx.State:
    """The running mean of a network's parameters, or statistics, after a step.

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
    return jax.tree.map(lambda old, new: kept * old + (1.0 - kept) * new, ema, current)
