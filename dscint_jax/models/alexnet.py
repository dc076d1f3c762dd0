"""AlexNet: five convolutions and three fully connected layers.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (arXiv:1404.5997),
the one-tower form that torchvision distributes; the network of 2012 had two towers. Layers stand at
torchvision's places in `features` and `classifier`, which is how `import_torch` finds their
weights.
"""

import functools
import math

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dscint_jax.models.layers import Conv, Dropout, GridNetwork, WideLinear
from dscint_jax.models.options import check_dropout, check_factor
from dscint_jax.models.pooling import max_pool

WIDTHS = (64, 192, 384, 256, 256)
"""Channels of each convolution."""

HIDDEN = 4096
"""Units of each of the first two fully connected layers."""


class AlexNet(GridNetwork):
    """The network.

    Args:
      width: factor of all channels and units; 1 is the published network.
      dropout: rate before each of the first two fully connected layers, in training only.

    Raises:
      UserError: `dropout` is no rate, or `width` is not positive.
    """

    STEM, HEAD = "features.0", "classifier.6"
    GRID = (6, 6)

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        width: float = 1.0,
        dropout: float = 0.5,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_dropout(dropout)
        check_factor("width", width)
        *channels, hidden = (max(round(full * width), 1) for full in (*WIDTHS, HIDDEN))
        conv = functools.partial(Conv, use_bias=True, dtype=dtype, rngs=rngs)
        linear = functools.partial(WideLinear, dtype=dtype, rngs=rngs)
        pool = functools.partial(max_pool, window=3, stride=2)
        self.features = nnx.List(
            [
                conv(in_channels, channels[0], 11, stride=4, padding=2),
                nnx.relu,
                pool,
                conv(channels[0], channels[1], 5, padding=2),
                nnx.relu,
                pool,
                conv(channels[1], channels[2], 3, padding=1),
                nnx.relu,
                conv(channels[2], channels[3], 3, padding=1),
                nnx.relu,
                conv(channels[3], channels[4], 3, padding=1),
                nnx.relu,
                pool,
            ]
        )
        self.num_features = channels[-1]
        self.classifier = (
            nnx.List(
                [
                    Dropout(dropout),
                    linear(channels[-1] * math.prod(self.GRID), hidden),
                    nnx.relu,
                    Dropout(dropout),
                    linear(hidden, hidden),
                    nnx.relu,
                    linear(hidden, num_classes),
                ]
            )
            if num_classes
            else None
        )
