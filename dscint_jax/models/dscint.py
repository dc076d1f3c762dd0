"""Dscint: a small convolutional network with one hybrid attention module.

Published (Lin et al., Med Phys 2021;48(10):5782-5793): eight weight layers, one hybrid attention
module (spatial and channel), two normalisation modules, two fully connected layers, one softmax
layer. Nothing else of it could be read, so everything else here is our choice:

- the eight weight layers are convolutions; the first and the last are normalised (BatchNorm);
- attention stands after the fourth, where a lesion still covers more than one position;
- every second convolution halves the map; strides, not pooling;
- average and maximum over the last maps feed the two fully connected layers.

The other reading, six convolutions and two fully connected layers being the eight, is
`widths` and `strides` of length six.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from dscint_jax.errors import DscintError
from dscint_jax.models.attention import ATTENTION_KINDS, AttentionMaps, HybridAttention
from dscint_jax.models.layers import GLOBAL_POOLINGS, ConvBlock


class Dscint(nnx.Module):
    """The network; logits in, softmax left to the loss and to the evaluator.

    Args:
      num_classes: outputs.
      in_channels: channels of the image.
      widths: channels of each convolution, first to last.
      strides: stride of each convolution, as many as `widths`.
      kernel: side of the convolutions.
      norm_layers: indices of the convolutions that BatchNorm follows; 0 first, -1 last.
      attention: 'hybrid', 'channel', 'spatial' or 'none'.
      attention_after: the number, from 1, of the convolution that attention follows.
      attention_kernel: side of the spatial gate's convolution.
      pooling: 'average_max', 'average' or 'max' over the last maps.
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
        widths: Sequence[int] = (32, 32, 64, 64, 128, 128, 256, 256),
        strides: Sequence[int] = (2, 1, 2, 1, 2, 1, 2, 1),
        kernel: int = 3,
        norm_layers: Sequence[int] = (0, -1),
        attention: str = "hybrid",
        attention_after: int = 4,
        attention_kernel: int = 7,
        pooling: str = "average_max",
        hidden: int = 128,
        dropout: float = 0.3,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        _check_options(widths, strides, norm_layers, attention, attention_after, pooling)
        channels = (in_channels, *widths)
        normalised = {layer % len(widths) for layer in norm_layers}
        self.convolutions = nnx.List(
            ConvBlock(
                channels[i],
                channels[i + 1],
                kernel=kernel,
                stride=strides[i],
                norm=i in normalised,
                dtype=dtype,
                rngs=rngs,
            )
            for i in range(len(widths))
        )
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
        self.hidden = nnx.Linear(
            widths[-1] * GLOBAL_POOLINGS[pooling][1], hidden, dtype=dtype, rngs=rngs
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
        x = GLOBAL_POOLINGS[self.pooling][0](x)
        x = nnx.relu(self.hidden(self.dropout(x, rngs=rngs)))
        logits = self.head(self.dropout(x, rngs=rngs))
        return logits.astype(jnp.float32), maps


def _check_options(
    widths: Sequence[int],
    strides: Sequence[int],
    norm_layers: Sequence[int],
    attention: str,
    attention_after: int,
    pooling: str,
) -> None:
    if len(strides) != len(widths):
        raise DscintError(
            f"model_options.strides has {len(strides)} entries and model_options.widths "
            f"{len(widths)}; give one of each a convolution"
        )
    if any(not -len(widths) <= layer < len(widths) for layer in norm_layers):
        raise DscintError(
            f"model_options.norm_layers {tuple(norm_layers)} must lie in "
            f"{-len(widths)} to {len(widths) - 1}"
        )
    if attention not in ATTENTION_KINDS:
        raise DscintError(
            f"model_options.attention '{attention}' is not one of {', '.join(ATTENTION_KINDS)}"
        )
    if not 1 <= attention_after <= len(widths):
        raise DscintError(
            f"model_options.attention_after {attention_after} must lie in 1 to {len(widths)}"
        )
    if pooling not in GLOBAL_POOLINGS:
        raise DscintError(
            f"model_options.pooling '{pooling}' is not one of {', '.join(GLOBAL_POOLINGS)}"
        )
