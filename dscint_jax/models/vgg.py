"""VGG: networks of 3x3 convolutions, 16 or 19 weight layers, with or without BatchNorm.

Simonyan and Zisserman, ICLR 2015 (arXiv:1409.1556), configurations D and E of table 1, as
torchvision distributes them: its BatchNorm variants keep the bias of each convolution. Layers stand
at torchvision's places in `features` and `classifier`, which is how `import_torch` finds their
weights.
"""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dscint_jax.models.layers import BatchNorm, Conv, Dropout, GridNetwork, WideLinear
from dscint_jax.models.options import check_dropout, check_factor
from dscint_jax.models.pooling import max_pool

WIDTHS = (64, 128, 256, 512, 512)
"""Channels of each stage; a maximum over 2x2 pixels ends each."""

HIDDEN = 4096
"""Units of each of the first two fully connected layers."""

# A normal of spread 0.01, as in the publication; with the convolutions' He initialisation.
narrow_normal = nnx.initializers.normal(0.01)


class VGG(GridNetwork):
    """The network.

    Args:
      depths: convolutions of each of the five stages.
      norm: whether BatchNorm follows every convolution.
      width: factor of all channels and units; 1 is the published network.
      dropout: rate after each of the first two fully connected layers, in training only.

    Raises:
      UserError: `dropout` is no rate, or `width` is not positive.
    """

    STEM, HEAD = "features.0", "classifier.6"
    GRID = (7, 7)

    def __init__(
        self,
        *,
        depths: Sequence[int],
        norm: bool,
        num_classes: int,
        in_channels: int = 1,
        width: float = 1.0,
        dropout: float = 0.5,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_dropout(dropout)
        check_factor("width", width)
        *widths, hidden = (max(round(full * width), 1) for full in (*WIDTHS, HIDDEN))
        layers, channels = [], in_channels
        for features, depth in zip(widths, depths, strict=True):
            for _ in range(depth):
                layers.append(
                    Conv(channels, features, 3, padding=1, use_bias=True, dtype=dtype, rngs=rngs)
                )
                if norm:
                    layers.append(BatchNorm(features, dtype=dtype, rngs=rngs))
                layers.append(nnx.relu)
                channels = features
            layers.append(functools.partial(max_pool, window=2, stride=2))
        self.features = nnx.List(layers)
        self.num_features = channels
        linear = functools.partial(WideLinear, kernel_init=narrow_normal, dtype=dtype, rngs=rngs)
        self.classifier = (
            nnx.List(
                [
                    linear(channels * math.prod(self.GRID), hidden),
                    nnx.relu,
                    Dropout(dropout),
                    linear(hidden, hidden),
                    nnx.relu,
                    Dropout(dropout),
                    linear(hidden, num_classes),
                ]
            )
            if num_classes
            else None
        )


vgg16 = functools.partial(VGG, depths=(2, 2, 3, 3, 3), norm=False)
vgg16_bn = functools.partial(VGG, depths=(2, 2, 3, 3, 3), norm=True)
vgg19 = functools.partial(VGG, depths=(2, 2, 4, 4, 4), norm=False)
vgg19_bn = functools.partial(VGG, depths=(2, 2, 4, 4, 4), norm=True)
