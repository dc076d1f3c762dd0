"""From raw counts to probabilities as one function: what a model file can do by itself.

In: counts at the matrix of the data set, which the builder and `predict` bring every scan to. Out:
calibrated probabilities. The bright level that counts are divided by is found in the image, as
`tfds_builder.studies.study.intensity_scale` finds it for the data set.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Real

from dscint_jax.input_pipeline.normalise import normalise
from dscint_jax.training.experiment import Experiment

ROWS, COLUMNS = 1024, 256
"""The matrix of the data set, in pixels."""

SCALE_BLOCK = 4
SCALE_PERCENTILE = 99
"""The bright level is this percentile of the positive sums over blocks of so many pixels a side."""


def reading(
    experiment: Experiment,
    params: nnx.State,
    batch_stats: nnx.State,
    *,
    pool: int,
    temperature: float,
) -> Callable[[jax.Array], jax.Array]:
    """The function of counts that a trained network is.

    Args:
      experiment: of the run.
      params, batch_stats: of one checkpoint.
      pool: side of the blocks of pixels whose counts are summed.
      temperature: logits are divided by it.

    Returns:
      A function of counts (batch, height, width), or (batch, view, height, width) of a network that
      reads studies, of any number type; it gives probabilities (batch, classes) float32.
    """
    spec = experiment.spec

    def probabilities(counts: jax.Array) -> jax.Array:
        pixels = counts.astype(jnp.float32)
        scale = bright_level(pixels) * pool**2
        images = normalise(_block_sums(pixels, pool)[..., None], scale, clip=spec.clip)
        network = nnx.merge(spec.inference, params, batch_stats, copy=True)
        return jax.nn.softmax(network(images) / temperature)

    return probabilities


def bright_level(pixels: Real[Array, "*image height width"]) -> Float[Array, " *image"]:
    """The counts a pixel that become 1; at least a count a block, as of an empty image."""
    sums = _block_sums(pixels, SCALE_BLOCK)
    sums = sums.reshape(*sums.shape[:-2], -1)
    positive = (sums > 0).sum(-1, dtype=jnp.float32)
    # Places from the top, between two of which the percentile lies: no more can come into play.
    share = 1 - SCALE_PERCENTILE / 100
    highest, _ = jax.lax.top_k(sums, int(share * sums.shape[-1]) + 2)
    places = jnp.arange(highest.shape[-1], dtype=jnp.float32)
    places = places.reshape(*(1,) * (highest.ndim - 1), -1)
    distance = jnp.abs(places - (share * (positive - 1))[..., None])
    bright = (highest * jnp.maximum(1 - distance, 0)).sum(-1)
    return jnp.maximum(bright, 1) / SCALE_BLOCK**2


def _block_sums(
    pixels: Real[Array, "*image height width"], side: int
) -> Real[Array, "*image _height _width"]:
    *lead, height, width = pixels.shape
    return pixels.reshape(*lead, height // side, side, width // side, side).sum((-3, -1))
