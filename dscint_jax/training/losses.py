"""Losses of a classification: per example, in nats, from logits and labels."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

Loss = Callable[[Float[Array, "batch classes"], Int[Array, " batch"]], Float[Array, " batch"]]


def make_loss(
    *, class_weights: tuple[float, ...], label_smoothing: float = 0.0, focal_gamma: float = 0.0
) -> Loss:
    """Cross-entropy with smoothed targets, times the weight of the true class.

    Args:
      class_weights: factor of each class.
      label_smoothing: share of the target that is spread over all classes.
      focal_gamma: of the focal loss (Lin et al. 2017, eq. 4, over a softmax): the part of a class
        is multiplied by (1 - p) ** gamma, p being its probability, so that what is already known
        well counts less. 0 is the cross-entropy.
    """

    def loss(
        logits: Float[Array, "batch classes"], labels: Int[Array, " batch"]
    ) -> Float[Array, " batch"]:
        targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1]), label_smoothing)
        weights = jnp.array(class_weights)[labels]
        if not focal_gamma:
            return optax.softmax_cross_entropy(logits, targets) * weights
        log_p = jax.nn.log_softmax(logits)
        # Where p is 1 the derivative of a power below one would be infinite.
        missing = jnp.maximum(-jnp.expm1(log_p), jnp.finfo(log_p.dtype).tiny)
        return -(targets * missing**focal_gamma * log_p).sum(-1) * weights

    return loss


def mix_pairs(
    values: Float[Array, " batch *shape"], share: Float[Array, " batch"]
) -> Float[Array, " batch *shape"]:
    """Mixes every example with its neighbour (0 with 1, 2 with 3, ...), keeping its share."""
    share = share.reshape(-1, *[1] * (values.ndim - 1))
    return share * values + (1 - share) * partners(values)


def partners(values: Array) -> Array:
    """What every example is mixed with."""
    pairs = values.reshape(-1, 2, *values.shape[1:])
    return pairs[:, ::-1].reshape(values.shape)


def class_weights(kind: str, counts: tuple[int, ...]) -> tuple[float, ...]:
    """Factor of each class in the loss.

    Args:
      kind: 'balanced' for total / (classes * count), as scikit-learn does; 'none' for ones.
      counts: training images of each class.
    """
    if kind == "none":
        return (1.0,) * len(counts)
    return tuple(sum(counts) / (len(counts) * max(count, 1)) for count in counts)
