"""AlexNet: five convolutions and three fully connected layers.

Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (arXiv:1404.5997),
the one-tower form that torchvision distributes; the network of 2012 had two towers. Layers stand at
torchvision's places in `features` and `classifier`, which is how `import_torch` finds their
weights.
"""

import functools

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dscint_jax.models.convolution import Maps
from dscint_jax.models.layers import Conv, Dropout, Logits, apply_layers, built, flatten
from dscint_jax.models.options import check_dropout
from dscint_jax.models.pooling import adaptive_average_pool, max_pool

GRID = (6, 6)
"""Rows and columns that the last maps are averaged to, whatever the size of the image."""


class AlexNet(nnx.Module):
    """The network.

    Args:
      dropout: rate before each of the first two fully connected layers, in training only.

    Raises:
      UserError: `dropout` is no rate.
    """

    STEM, HEAD = "features.0", "classifier.6"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        dropout: float = 0.5,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_dropout(dropout)
        conv = functools.partial(Conv, use_bias=True, dtype=dtype, rngs=rngs)
        linear = functools.partial(nnx.Linear, dtype=dtype, rngs=rngs)
        pool = functools.partial(max_pool, window=3, stride=2)
        self.features = nnx.List(
            [
                conv(in_channels, 64, 11, stride=4, padding=2),
                nnx.relu,
                pool,
                conv(64, 192, 5, padding=2),
                nnx.relu,
                pool,
                conv(192, 384, 3, padding=1),
                nnx.relu,
                conv(384, 256, 3, padding=1),
                nnx.relu,
                conv(256, 256, 3, padding=1),
                nnx.relu,
                pool,
            ]
        )
        self.num_features = 256
        self.classifier = (
            nnx.List(
                [
                    Dropout(dropout),
                    linear(256 * GRID[0] * GRID[1], 4096),
                    nnx.relu,
                    Dropout(dropout),
                    linear(4096, 4096),
                    nnx.relu,
                    linear(4096, num_classes),
                ]
            )
            if num_classes
            else None
        )

    def feature_maps(self, images: Maps) -> Maps:
        """Returns the last maps, about a 32nd of the image's height and width."""
        return apply_layers(self.features, images)

    def __call__(self, images: Maps, *, rngs: nnx.Rngs | None = None) -> Logits:
        """Returns float32 logits of normalised images; `rngs`: `dropout`, in training only."""
        return self.classify(self.feature_maps(images), images, rngs=rngs)

    def classify(self, maps: Maps, images: Maps, *, rngs: nnx.Rngs | None = None) -> Logits:
        """Returns the logits of the last maps; `images` are not looked at."""
        x = flatten(adaptive_average_pool(maps, GRID))
        return apply_layers(built(self.classifier), x, rngs=rngs).astype(jnp.float32)
