"""DenseNet: every layer of a block sees the maps of all layers before it.

Huang et al., CVPR 2017 (arXiv:1608.06993), table 1: DenseNet-BC of growth rate 32 and compression
0.5 with 121, 169 and 201 weight layers. Submodules have torchvision's names, which is how
`import_torch` finds their weights.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dscint_jax.models.convolution import Maps
from dscint_jax.models.layers import BatchNorm, Conv, Logits, Network, built, he_normal
from dscint_jax.models.options import check_size
from dscint_jax.models.pooling import average_pool, max_pool

GROWTH = 32
"""Channels that each layer adds, as published."""

BOTTLENECK, FIRST = 4, 2
"""Channels between the two convolutions of a layer, and of the first one, in growth rates."""


class DenseLayer(nnx.Module):
    """Two normalised convolutions, 1x1 and 3x3; adds `growth` channels to its input."""

    def __init__(self, in_features: int, growth: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        shared, between = {"dtype": dtype, "rngs": rngs}, BOTTLENECK * growth
        self.norm1 = BatchNorm(in_features, **shared)
        self.conv1 = Conv(in_features, between, 1, kernel_init=he_normal, **shared)
        self.norm2 = BatchNorm(between, **shared)
        self.conv2 = Conv(between, growth, 3, padding=1, kernel_init=he_normal, **shared)

    def __call__(self, x: Maps) -> Maps:
        """Returns the input's channels, then the layer's own."""
        y = self.conv1(nnx.relu(self.norm1(x)))
        y = self.conv2(nnx.relu(self.norm2(y)))
        return jnp.concatenate([x, y], -1)


class Transition(nnx.Module):
    """Halves the channels by a 1x1 convolution, height and width by averages."""

    def __init__(self, in_features: int, *, dtype: DTypeLike, rngs: nnx.Rngs):
        self.norm = BatchNorm(in_features, dtype=dtype, rngs=rngs)
        self.conv = Conv(
            in_features, in_features // 2, 1, kernel_init=he_normal, dtype=dtype, rngs=rngs
        )

    def __call__(self, x: Maps) -> Maps:
        """Returns the smaller maps."""
        return average_pool(self.conv(nnx.relu(self.norm(x))), 2, stride=2)


class DenseNet(Network):
    """The network.

    Args:
      depths: layers of each of the four blocks.
      growth: channels that each layer adds; all others are multiples of it.

    Raises:
      UserError: `growth` is no whole number of 1 or more.
    """

    STEM, HEAD = "features.conv0", "classifier"

    def __init__(
        self,
        *,
        depths: Sequence[int],
        num_classes: int,
        in_channels: int = 1,
        growth: int = GROWTH,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_size("growth", growth)
        shared = {"dtype": dtype, "rngs": rngs}
        features = FIRST * growth
        self.features: nnx.Dict[Any] = nnx.Dict(
            conv0=Conv(
                in_channels, features, 7, stride=2, padding=3, kernel_init=he_normal, **shared
            ),
            norm0=BatchNorm(features, **shared),
        )
        for block, depth in enumerate(depths, start=1):
            self.features[f"denseblock{block}"] = nnx.Dict(
                {
                    f"denselayer{i + 1}": DenseLayer(features + i * growth, growth, **shared)
                    for i in range(depth)
                }
            )
            features += depth * growth
            if block < len(depths):
                self.features[f"transition{block}"] = Transition(features, **shared)
                features //= 2
        self.features["norm5"] = BatchNorm(features, **shared)
        self.depths = tuple(depths)
        self.num_features = features
        self.classifier = nnx.Linear(features, num_classes, **shared) if num_classes else None

    def feature_maps(self, images: Maps) -> Maps:
        """Returns the last maps, a 32nd of the image's height and width."""
        x = nnx.relu(self.features["norm0"](self.features["conv0"](images)))
        x = max_pool(x, 3, stride=2, padding=1)
        for block, depth in enumerate(self.depths, start=1):
            for layer in range(1, depth + 1):
                x = self.features[f"denseblock{block}"][f"denselayer{layer}"](x)
            if block < len(self.depths):
                x = self.features[f"transition{block}"](x)
        return nnx.relu(self.features["norm5"](x))

    def classify(self, maps: Maps, images: Maps, *, rngs: nnx.Rngs | None = None) -> Logits:
        """Returns the logits of the last maps; `images` are not looked at."""
        return built(self.classifier)(maps.mean((1, 2))).astype(jnp.float32)


densenet121 = functools.partial(DenseNet, depths=(6, 12, 24, 16))
densenet169 = functools.partial(DenseNet, depths=(6, 12, 32, 32))
densenet201 = functools.partial(DenseNet, depths=(6, 12, 48, 32))
