"""Dscint: a small convolutional network with one hybrid attention module.

Published (Lin et al., Med Phys 2021;48(10):5782-5793): eight weight layers, one hybrid attention
module (spatial and channel), two normalisation modules, two fully connected layers, one softmax
layer. Nothing else of it could be read, so everything else here is our choice:

- which layers the eight are: READINGS has both, eight convolutions before the two fully connected
  layers ('eight', the default), or six, which with those two make eight ('six');
- the first and the last convolution are normalised, by BatchNorm;
- all kernels are standardised, because with two normalised layers alone training is slow to start
  (`standardised=False` gives plain ones);
- the first convolution halves the map by its stride, some others by maxima, which keep a hot spot
  of few pixels;
- attention stands where a lesion still covers more than one position of the map;
- the last maps are averaged and maximised within regions, not over the whole body: where a focus
  lies tells a knee from a vertebra;
- two fully connected layers follow, the second of them the logits; softmax is left to the loss.
"""

import functools
import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dscint_jax.models.attention import ATTENTION_KINDS, AttentionMaps, HybridAttention
from dscint_jax.models.convolution import Maps
from dscint_jax.models.layers import NORMS, ConvBlock, Dropout, Logits, Network, built
from dscint_jax.models.options import (
    OptionError,
    check_choice,
    check_dropout,
    check_factor,
    check_flag,
    check_layers,
    check_size,
    check_sizes,
)
from dscint_jax.models.pooling import REGION_POOLINGS, downsample_max, pool_regions

READINGS = {"eight": (32, 48, 64, 96, 96, 128, 128, 128), "six": (32, 48, 64, 96, 128, 128)}
"""What "eight weight layers" may mean, as the channels of each convolution."""

POOL_AFTER = (2, 3, 4)
"""Of both readings, the numbers of the convolutions that 2x2 maxima follow."""


class Dscint(Network):
    """The network.

    Args:
      reading: 'eight' convolutions, or 'six', before the two fully connected layers.
      width: factor of the reading's channels.
      widths: channels of each convolution, instead of the reading's.
      strides: stride of each convolution; by default 2 of the first and 1 of the others.
      pool_after: numbers, from 1, of the convolutions that 2x2 maxima follow, instead of
        POOL_AFTER.
      kernel: side of the convolutions.
      norm: 'batch', 'group', 'layer' or 'instance' (`layers.NORMS`).
      norm_layers: indices of the normalised convolutions; 0 first, -1 last; none if empty.
      standardised: whether kernels are standardised (`layers.StandardisedConv`).
      attention: 'hybrid', 'channel', 'spatial' or 'none'.
      attention_after: the number, from 1, of the convolution that attention follows.
      attention_kernel: side of the spatial gate's convolution.
      attention_reduction: how many times narrower the channel gate's hidden layer is.
      pooling: 'average_max', 'average' or 'max' over each region of the last maps.
      regions: rows and columns of the grid of regions; (1, 1) pools over the whole body.
      hidden: units of the first fully connected layer.
      dropout: rate before each fully connected layer, in training only.

    Raises:
      UserError: the options do not fit each other.
    """

    STEM, HEAD = "convolutions.0.conv", "head"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        reading: str = "eight",
        width: float = 1.0,
        widths: Sequence[int] | None = None,
        strides: Sequence[int] | None = None,
        pool_after: Sequence[int] | None = None,
        kernel: int = 3,
        norm: str = "batch",
        norm_layers: Sequence[int] = (0, -1),
        standardised: bool = True,
        attention: str = "hybrid",
        attention_after: int = 4,
        attention_kernel: int = 7,
        attention_reduction: int = 8,
        pooling: str = "average_max",
        regions: tuple[int, int] = (8, 2),
        hidden: int = 128,
        dropout: float = 0.2,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_choice("reading", reading, READINGS)
        check_factor("width", width)
        if widths is None:
            widths = [max(round(channels * width), 1) for channels in READINGS[reading]]
        elif width != 1 or reading != "eight":
            raise OptionError(
                "widths", "takes the place of width and reading; give the one or the others"
            )
        check_sizes("widths", widths)
        layers = len(widths)
        if strides is None:
            strides = (2, *[1] * (layers - 1))
        if pool_after is None:
            pool_after = POOL_AFTER
        check_sizes("strides", strides)
        if len(strides) != layers:
            raise OptionError(
                "strides", f"has {len(strides)} entries and widths {layers}; give one a convolution"
            )
        check_sizes("regions", regions)
        if len(regions) != 2:
            raise OptionError("regions", f"{tuple(regions)} must be rows and columns")
        check_size("kernel", kernel)
        check_size("attention_kernel", attention_kernel)
        check_size("attention_reduction", attention_reduction)
        check_size("hidden", hidden)
        check_flag("standardised", standardised)
        check_dropout(dropout)
        check_layers("norm_layers", norm_layers, -layers, layers - 1)
        check_layers("pool_after", pool_after, 1, layers)
        check_layers("attention_after", [attention_after], 1, layers)
        check_choice("norm", norm, NORMS)
        check_choice("attention", attention, ATTENTION_KINDS)
        check_choice("pooling", pooling, REGION_POOLINGS)
        channels = (in_channels, *widths)
        normalised = {layer % layers for layer in norm_layers}
        self.convolutions = nnx.List(
            ConvBlock(
                channels[i],
                channels[i + 1],
                kernel=kernel,
                stride=strides[i],
                standardised=standardised,
                norm=norm if i in normalised else None,
                dtype=dtype,
                rngs=rngs,
            )
            for i in range(layers)
        )
        self.pool_after = tuple(pool_after)
        self.attention_after = attention_after
        self.attention = HybridAttention(
            widths[attention_after - 1],
            kind=attention,
            kernel=attention_kernel,
            reduction=attention_reduction,
            dtype=dtype,
            rngs=rngs,
        )
        self.num_features = widths[-1]
        self.pooling = pooling
        self.regions = regions[0], regions[1]
        pooled = widths[-1] * len(REGION_POOLINGS[pooling]) * math.prod(regions)
        linear = functools.partial(nnx.Linear, dtype=dtype, rngs=rngs)
        self.hidden = linear(pooled, hidden) if num_classes else None
        self.dropout = Dropout(dropout)
        self.head = linear(hidden, num_classes) if num_classes else None

    def classify(self, maps: Maps, images: Maps, *, rngs: nnx.Rngs | None = None) -> Logits:
        """Returns the logits of the last maps; `images` are not looked at."""
        x = pool_regions(maps, self.regions, self.pooling).reshape(maps.shape[0], -1)
        x = nnx.relu(built(self.hidden)(self.dropout(x, rngs=rngs)))
        return built(self.head)(self.dropout(x, rngs=rngs)).astype(jnp.float32)

    def feature_maps(self, images: Maps) -> Maps:
        """Returns the last convolution's maps."""
        return self._convolve(images)[0]

    def attention_maps(self, images: Maps) -> AttentionMaps:
        """Returns the gates that multiply the features of these images."""
        return self._convolve(images)[1]

    def _convolve(self, x: Maps) -> tuple[Maps, AttentionMaps]:
        maps = AttentionMaps()
        for number, convolution in enumerate(self.convolutions, start=1):
            x = convolution(x)
            if number == self.attention_after:
                x, maps = self.attention(x)
            if number in self.pool_after:
                x = downsample_max(x)
        return x, maps
