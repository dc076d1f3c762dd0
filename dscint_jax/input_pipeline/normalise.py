"""From counts to what a network takes."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Real


def normalise(
    counts: Real[Array, "batch *view height width 1"],
    scale: Float[Array, " batch *view"],
    *,
    clip: float,
) -> Float[Array, "batch *view height width 1"]:
    """Counts over the image's own scale, under a square root, clipped.

    The square root makes the spread of Poisson counts the same everywhere (Anscombe 1948); the clip
    keeps a full bladder from drowning the skeleton.

    Args:
      counts: counts a pixel, of images or of studies.
      scale: counts a pixel that become 1.
      clip: largest value of the result.
    """
    ratio = counts.astype(jnp.float32) / scale[..., None, None, None]
    return jnp.minimum(jnp.sqrt(ratio), clip)
