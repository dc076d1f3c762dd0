"""Optimisers and learning rates: from the names in a config to optax transformations."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Int


def make_optimizer(
    schedule: Callable[[Any], Any],
    *,
    name: str = "adamw",
    weight_decay: float,
    clip_norm: float,
    momentum: float = 0.9,
) -> optax.GradientTransformation:
    """An optimiser after clipping by the global norm; what has one axis does not decay.

    So biases and scales of normalisation stay as they are; kernels and embeddings decay.

    Args:
      schedule: learning rate by step.
      name: 'adamw' (Loshchilov and Hutter 2019) or 'sgd' with Nesterov's momentum, whose decay is
        added to the gradient.
      weight_decay: share of the parameters, by the learning rate, that a step takes away.
      clip_norm: largest norm of all gradients together.
      momentum: of 'sgd'.
    """

    def decays(params: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf.ndim > 1, params)

    transformations = {
        "adamw": lambda: [optax.adamw(schedule, weight_decay=weight_decay, mask=decays)],
        "sgd": lambda: [
            optax.add_decayed_weights(weight_decay, decays),
            optax.sgd(schedule, momentum=momentum, nesterov=True),
        ],
    }
    return optax.chain(optax.clip_by_global_norm(clip_norm), *transformations[name]())


def make_schedule(name: str, peak: float, *, steps: int, warmup_steps: int) -> optax.Schedule:
    """Learning rate: linear from 0 to `peak` over the warm-up, then as `name` says.

    Args:
      name: 'cosine' for half a cosine to 0, 'linear' for a straight way there, 'constant'.
      peak: the highest.
      steps: of the training.
      warmup_steps: at most all steps but one.
    """
    warmup_steps = min(warmup_steps, steps - 1)
    if name == "cosine":
        return optax.warmup_cosine_decay_schedule(0.0, peak, warmup_steps, steps)
    rest = steps - warmup_steps
    after = {
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "constant": optax.constant_schedule(peak),
    }[name]
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, warmup_steps), after], [warmup_steps]
    )


def update_average(
    average: nnx.State, current: nnx.State, step: Int[Array, ""], decay: float
) -> nnx.State:
    """The running mean of a network's parameters, or statistics, after a step.

    The decay is min(decay, (1 + step) / (10 + step)), as TensorFlow's ExponentialMovingAverage has
    it: a short run is not held back by the random parameters it began with.

    Args:
      average: before the step.
      current: the network's own, after it.
      step: how many steps were taken before.
      decay: what is kept of the average.
    """
    step = step.astype(jnp.float32)
    kept: Float[Array, ""] = jnp.minimum(decay, (1.0 + step) / (10.0 + step))
    return jax.tree.map(lambda old, new: kept * old + (1.0 - kept) * new, average, current)
