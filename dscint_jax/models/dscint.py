"""Dscint: a small convolutional network with one hybrid attention module.

Published (Lin et al., Med Phys 2021;48(10):5782-5793): eight weight layers, one hybrid attention
module (spatial and channel), two normalisation modules, two fully connected layers, one softmax
layer. Nothing else of it could be read, so everything else here is our choice:

- the eight weight layers are convolutions; the first and the last are normalised (BatchNorm);
- all kernels are standardised, because with two normalised layers alone training is slow to start
  (`standardised=False` gives plain ones);
- the first convolution halves the map by its stride, the second to fourth by maxima, which keep a
  hot spot of few pixels;
- attention stands where a lesion still covers more than one position of the map;
- the last maps are averaged and maximised within regions, not over the whole body: where a focus
  lies tells a knee from a vertebra;
- two fully connected layers follow.

The other reading, six convolutions and two fully connected layers being the eight, is
`widths` and `strides` of length six.
"""

import math
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dscint_jax.errors import DscintError
from dscint_jax.models.attention import ATTENTION_KINDS, AttentionMaps, HybridAttention
from dscint_jax.models.layers import POOLINGS, ConvBlock, downsample_max


class Dscint(nnx.Module):
    """The network; logits in, softmax left to the loss and to the evaluator.

    Args:
      num_classes: outputs.
      in_channels: channels of the image.
      widths: channels of each convolution, first to last.
      strides: stride of each convolution, as many as `widths`.
      pool_after: numbers, from 1, of the convolutions that 2x2 maxima follow.
      kernel: side of the convolutions.
      norm_layers: indices of the convolutions that BatchNorm follows; 0 first, -1 last.
      standardised: whether kernels are standardised (`layers.StandardisedConv`).
      attention: 'hybrid', 'channel', 'spatial' or 'none'.
      attention_after: the number, from 1, of the convolution that attention follows.
      attention_kernel: side of the spatial gate's convolution.
      pooling: 'average_max', 'average' or 'max' over each region of the last maps.
      regions: rows and columns of the grid of regions; (1, 1) pools over the whole body.
      hidden: units of the first fully connected layer.
      dropout: rate before each fully connected layer, in training only.
      dtype: of the computation; parameters stay float32.
      rngs: the `params` stream.

    Raises:
      DscintError: the options do not fit each other.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        widths: Sequence[int] = (32, 48, 64, 96, 96, 128, 128, 128),
        strides: Sequence[int] = (2, 1, 1, 1, 1, 1, 1, 1),
        pool_after: Sequence[int] = (2, 3, 4),
        kernel: int = 3,
        norm_layers: Sequence[int] = (0, -1),
        standardised: bool = True,
        attention: str = "hybrid",
        attention_after: int = 4,
        attention_kernel: int = 7,
        pooling: str = "average_max",
        regions: tuple[int, int] = (8, 2),
        hidden: int = 128,
        dropout: float = 0.2,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        layers = len(widths)
        if len(strides) != layers:
            raise DscintError(
                f"model_options.strides has {len(strides)} entries and model_options.widths "
                f"{layers}; give one of each a convolution"
            )
        for option, sizes in (
            ("widths", widths),
            ("strides", strides),
            ("regions", regions),
            ("kernel", [kernel]),
            ("attention_kernel", [attention_kernel]),
            ("hidden", [hidden]),
        ):
            _check_sizes(option, sizes)
        if len(regions) != 2:
            raise DscintError(f"model_options.regions {tuple(regions)} must be rows and columns")
        if not 0 <= dropout < 1:
            raise DscintError(f"model_options.dropout {dropout} must be in [0, 1)")
        _check_layers("norm_layers", norm_layers, -layers, layers - 1)
        _check_layers("pool_after", pool_after, 1, layers)
        _check_layers("attention_after", [attention_after], 1, layers)
        _check_choice("attention", attention, ATTENTION_KINDS)
        _check_choice("pooling", pooling, POOLINGS)
        channels = (in_channels, *widths)
        normalised = {layer % len(widths) for layer in norm_layers}
        self.convolutions = nnx.List(
            ConvBlock(
                channels[i],
                channels[i + 1],
                kernel=kernel,
                stride=strides[i],
                standardised=standardised,
                norm=i in normalised,
                dtype=dtype,
                rngs=rngs,
            )
            for i in range(len(widths))
        )
        self.pool_after = tuple(pool_after)
        self.attention_after = attention_after
        self.attention = (
            None
            if attention == "none"
            else HybridAttention(
                widths[attention_after - 1],
                kind=attention,
                kernel=attention_kernel,
                dtype=dtype,
                rngs=rngs,
            )
        )
        self.pooling = pooling
        self.regions = tuple(regions)
        self.hidden = nnx.Linear(
            widths[-1] * POOLINGS[pooling][1] * math.prod(regions), hidden, dtype=dtype, rngs=rngs
        )
        self.dropout = nnx.Dropout(dropout)
        self.head = nnx.Linear(hidden, num_classes, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        images: Float[Array, "batch height width channel"],
        *,
        rngs: nnx.Rngs | None = None,
    ) -> tuple[Float[Array, "batch classes"], AttentionMaps]:
        """Returns float32 logits and the attention maps.

        Args:
          images: normalised images.
          rngs: the `dropout` stream; needed in training only.
        """
        x, maps = images, AttentionMaps()
        for number, convolution in enumerate(self.convolutions, start=1):
            x = convolution(x)
            if self.attention is not None and number == self.attention_after:
                x, maps = self.attention(x)
            if number in self.pool_after:
                x = downsample_max(x)
        x = POOLINGS[self.pooling][0](x, self.regions).reshape(len(x), -1)
        x = nnx.relu(self.hidden(self.dropout(x, rngs=rngs)))
        logits = self.head(self.dropout(x, rngs=rngs))
        return logits.astype(jnp.float32), maps


def _check_sizes(option: str, given: Sequence[int]) -> None:
    if not given or min(given) < 1:
        raise DscintError(f"model_options.{option} {tuple(given)} must be at least 1 each")


def _check_layers(option: str, given: Sequence[int], lowest: int, highest: int) -> None:
    for layer in given:
        if not lowest <= layer <= highest:
            raise DscintError(
                f"model_options.{option}: {layer} is no convolution; use {lowest} to {highest}"
            )


def _check_choice(option: str, given: str, choices: Iterable[str]) -> None:
    if given not in choices:
        raise DscintError(f"model_options.{option}: '{given}' is not one of {', '.join(choices)}")
