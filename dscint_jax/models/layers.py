"""Building blocks that networks share: normalised convolutions, maxima, pooling by region."""

import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from dscint_jax.errors import DscintError
from dscint_jax.models.convolution import convolve

he_normal = nnx.initializers.he_normal()

RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))
"""What ReLU takes from the spread of normal values, given back (Brock et al. 2021, eq. 2)."""


class StandardisedConv(nnx.Module):
    """A convolution whose kernel is standardised before use, with a gain for each output.

    Scaled weight standardisation (Qiao et al. 2019; Brock et al. 2021): each output's kernel has
    mean 0 and variance 2 / (1 - 1 / pi) / fan-in, which keeps the variance of what passes through
    convolution and ReLU. It lets a network with few normalisation layers train as fast as one that
    is normalised throughout, and knows nothing of the batch.

    Args:
      in_features, out_features: channels.
      kernel: side of the kernel in pixels.
      stride: step of the convolution in pixels, the same in both directions.
      use_bias: whether a bias is added.
      dtype: of the computation; parameters stay float32.
      rngs: the `params` stream.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kernel: int,
        stride: int,
        use_bias: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        shape = (kernel, kernel, in_features, out_features)
        self.kernel = nnx.Param(he_normal(rngs.params(), shape))
        self.gain = nnx.Param(jnp.ones(out_features))
        self.bias = nnx.Param(jnp.zeros(out_features)) if use_bias else None
        self.stride = stride
        self.dtype = dtype

    def __call__(
        self, x: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        """Returns the features, smaller by the stride ('SAME' padding)."""
        kernel = self._standardised_kernel().astype(self.dtype)
        x = convolve(x.astype(self.dtype), kernel, self.stride)
        return x if self.bias is None else x + self.bias[None, None, None].astype(self.dtype)

    def _standardised_kernel(self) -> Float[Array, "kernel kernel in out"]:
        kernel = self.kernel[...]
        fan_in = kernel[..., 0].size
        mean = kernel.mean((0, 1, 2), keepdims=True)
        # The small number keeps a kernel of equal values finite.
        deviation = jnp.sqrt(kernel.var((0, 1, 2), keepdims=True) * fan_in + 1e-4)
        return (kernel - mean) / deviation * self.gain[...][None, None, None] * RELU_GAIN


class ConvBlock(nnx.Module):
    """Square convolution ('SAME' padding), optional BatchNorm, ReLU.

    Args:
      in_features, out_features: channels.
      kernel: side of the kernel in pixels.
      stride: step of the convolution in pixels, the same in both directions.
      standardised: whether the kernel is standardised (`StandardisedConv`) or plain.
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
        standardised: bool,
        norm: bool,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        shared = {"use_bias": not norm, "dtype": dtype, "rngs": rngs}
        if standardised:
            self.conv = StandardisedConv(
                in_features, out_features, kernel=kernel, stride=stride, **shared
            )
        else:
            self.conv = nnx.Conv(
                in_features,
                out_features,
                kernel_size=(kernel, kernel),
                strides=(stride, stride),
                kernel_init=he_normal,
                **shared,
            )
        # 0.9 rather than Flax's 0.99: the running statistics must settle within short runs.
        self.norm = (
            nnx.BatchNorm(out_features, momentum=0.9, dtype=dtype, rngs=rngs) if norm else None
        )

    def __call__(
        self, x: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width channel"]:
        """Returns the block's features, smaller by the stride."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return nnx.relu(x)


def downsample_max(
    x: Float[Array, "batch height width channel"],
) -> Float[Array, "batch half_height half_width channel"]:
    """Maximum over blocks of 2x2; an odd last row or column is left out.

    A maximum over a reshaped axis, not a window reduction, whose gradient is a scatter that is not
    deterministic on GPUs.
    """
    batch, height, width, channel = x.shape
    if height < 2 or width < 2:
        raise DscintError(
            f"model_options.pool_after: a map of {height}x{width} cannot be halved; halve less "
            f"often or use a smaller config.data.pool"
        )
    x = x[:, : height // 2 * 2, : width // 2 * 2]
    return x.reshape(batch, height // 2, 2, width // 2, 2, channel).max((2, 4))


def average_pool(
    x: Float[Array, "batch height width channel"], regions: tuple[int, int]
) -> Float[Array, "batch rows columns channel"]:
    """Mean over each region: how much of a feature it holds."""
    return _by_region(x, regions, jnp.mean)


def max_pool(
    x: Float[Array, "batch height width channel"], regions: tuple[int, int]
) -> Float[Array, "batch rows columns channel"]:
    """Maximum over each region: whether a feature is anywhere in it, as one small lesion is."""
    return _by_region(x, regions, jnp.max)


def average_max_pool(
    x: Float[Array, "batch height width channel"], regions: tuple[int, int]
) -> Float[Array, "batch rows columns two_channel"]:
    """Both poolings, side by side."""
    return jnp.concatenate([average_pool(x, regions), max_pool(x, regions)], -1)


def _by_region(
    x: jax.Array, regions: tuple[int, int], reduce: Callable[..., jax.Array]
) -> jax.Array:
    """Cuts the map into a grid of nearly equal regions and reduces each over its positions."""
    if x.shape[1] < regions[0] or x.shape[2] < regions[1]:
        raise DscintError(
            f"model_options.regions {regions[0]}x{regions[1]} do not fit the last map of "
            f"{x.shape[1]}x{x.shape[2]}; use fewer regions, a smaller config.data.pool or less "
            f"downsampling"
        )
    rows, columns = (
        np.linspace(0, size, parts + 1).astype(int)
        for size, parts in zip(x.shape[1:3], regions, strict=True)
    )
    return jnp.stack(
        [
            jnp.stack(
                [
                    reduce(x[:, top:bottom, left:right], axis=(1, 2))
                    for left, right in itertools.pairwise(columns)
                ],
                axis=1,
            )
            for top, bottom in itertools.pairwise(rows)
        ],
        axis=1,
    )


POOLINGS: dict[str, tuple[Callable[[jax.Array, tuple[int, int]], jax.Array], int]] = {
    "average": (average_pool, 1),
    "max": (max_pool, 1),
    "average_max": (average_max_pool, 2),
}
"""By name: the pooling, and how many times the channels its output has."""
