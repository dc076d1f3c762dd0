"""Building blocks that several networks share: normalised convolutions and global pooling."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

he_normal = nnx.initializers.he_normal()


class ConvBlock(nnx.Module):
    """Square convolution ('SAME' padding), optional BatchNorm, ReLU.

    Args:
      in_features, out_features: channels.
      kernel: side of the kernel in pixels.
      stride: step of the convolution in pixels, the same in both directions.
      norm: whether BatchNorm stands between convolution and ReLU; the bias is then its own.
      dtype: of the computation; parameters and statistics stay float32.
      rngs: the `params` stream initialises the kernel (He et al. 2015).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel: int,
        stride: int,
        norm: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        self.conv = nnx.Conv(
            in_features,
            out_features,
            kernel_size=(kernel, kernel),
            strides=(stride, stride),
            use_bias=not norm,
            kernel_init=he_normal,
            dtype=dtype,
            rngs=rngs,
        )
        # 0.9 rather than Flax's 0.99: the running statistics must settle within short runs.
        self.norm = (
            nnx.BatchNorm(out_features, momentum=0.9, dtype=dtype, rngs=rngs) if norm else None
        )

    def __call__(
        self, x: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        """Returns the features, smaller by the stride."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return nnx.relu(x)


def average_pool(x: Float[Array, "batch height width channel"]) -> Float[Array, "batch channel"]:
    """Mean over all pixels: how much of a feature the whole body holds."""
    return x.mean((1, 2))


def max_pool(x: Float[Array, "batch height width channel"]) -> Float[Array, "batch channel"]:
    """Maximum over all pixels: whether a feature is anywhere, as one small lesion is."""
    return x.max((1, 2))


def average_max_pool(
    x: Float[Array, "batch height width channel"],
) -> Float[Array, "batch two_channel"]:
    """Both poolings, side by side."""
    return jnp.concatenate([average_pool(x), max_pool(x)], -1)


GLOBAL_POOLINGS: dict[str, tuple[Callable[[jax.Array], jax.Array], int]] = {
    "average": (average_pool, 1),
    "max": (max_pool, 1),
    "average_max": (average_max_pool, 2),
}
"""By name: the pooling, and how many times the channels its output has."""
