"""Hybrid attention: a channel gate, then a spatial gate, and the maps they can show.

After the convolutional block attention module (Woo et al., ECCV 2018). Dscint's publication names
a "hybrid attention mechanism" of channel and spatial attention without its equations; this is our
reading of it.
"""

import dataclasses

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from dscint_jax.models.pooling import largest
from dscint_jax.pytree import pytree

ATTENTION_KINDS = ("none", "channel", "spatial", "hybrid")


@pytree
@dataclasses.dataclass(frozen=True)
class AttentionMaps:
    """What a network's attention weighed; None where it has no such attention.

    Attributes:
      channel: gate of each channel, in (0, 1).
      spatial: of a network that reads one view, the gate of each position, in (0, 1); of one that
        reads both, shares (batch, view, rows, columns, 1) that sum to 1 over a study. On the grid
        of the weighed maps.
    """

    channel: Float[Array, "batch channel"] | None = None
    spatial: Float[Array, "batch *view rows columns 1"] | None = None


class ChannelGate(nnx.Module):
    """One weight a channel, from its mean and maximum over the image through a shared MLP."""

    def __init__(self, features: int, *, reduction: int, dtype: DTypeLike, rngs: nnx.Rngs):
        hidden = max(features // reduction, 4)
        self.squeeze = nnx.Linear(features, hidden, dtype=dtype, rngs=rngs)
        # The two descriptors' outputs add up, and so do their biases, to 2: see `SpatialGate`.
        bias = nnx.initializers.constant(1.0)
        self.excite = nnx.Linear(hidden, features, bias_init=bias, dtype=dtype, rngs=rngs)

    def __call__(self, x: Float[Array, "batch _ _ channel"]) -> Float[Array, "batch channel"]:
        """Returns the weights, in (0, 1)."""
        descriptors: tuple[Array, Array] = (x.mean((1, 2)), largest(x, (1, 2)))
        return nnx.sigmoid(sum(self.excite(nnx.relu(self.squeeze(d))) for d in descriptors))


class SpatialGate(nnx.Module):
    """One weight a position, from the mean and maximum over the channels around it."""

    def __init__(self, *, kernel: int, dtype: DTypeLike, rngs: nnx.Rngs):
        # Gates start nearly open, at sigmoid(2) = 0.88: at sigmoid(0) two of them would quarter
        # the features before anything is learned.
        bias = nnx.initializers.constant(2.0)
        self.conv = nnx.Conv(2, 1, (kernel, kernel), bias_init=bias, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch height width channel"]
    ) -> Float[Array, "batch height width 1"]:
        """Returns the weights, in (0, 1)."""
        summary = jnp.stack([x.mean(-1), largest(x, (3,))], -1)
        return nnx.sigmoid(self.conv(summary))


class HybridAttention(nnx.Module):
    """Multiplies features by a channel gate, then by a spatial gate of the result.

    Args:
      features: channels of the input.
      kind: 'hybrid'; 'channel' or 'spatial' for one gate alone; 'none' leaves features as they are.
      reduction: how many times narrower the channel MLP's hidden layer is.
      kernel: side of the spatial gate's convolution.
    """

    def __init__(
        self,
        features: int,
        *,
        kind: str = "hybrid",
        reduction: int = 8,
        kernel: int = 7,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        # Both gates draw their weights, whichever is kept: so all other weights of a network are
        # the same for every kind of attention, and ablations differ in nothing else.
        channel_gate = ChannelGate(features, reduction=reduction, dtype=dtype, rngs=rngs)
        spatial_gate = SpatialGate(kernel=kernel, dtype=dtype, rngs=rngs)
        self.channel_gate = channel_gate if kind in ("channel", "hybrid") else None
        self.spatial_gate = spatial_gate if kind in ("spatial", "hybrid") else None

    def __call__(
        self, x: Float[Array, "batch height width channel"]
    ) -> tuple[Float[Array, "batch height width channel"], AttentionMaps]:
        """Returns the gated features and the gates."""
        channel = spatial = None
        if self.channel_gate is not None:
            channel = self.channel_gate(x)
            x = x * channel[:, None, None, :]
        if self.spatial_gate is not None:
            spatial = self.spatial_gate(x)
            x = x * spatial
        return x, AttentionMaps(channel, spatial)
