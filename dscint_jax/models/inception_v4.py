"""Inception-v4: branches of different reach beside each other, their channels joined.

Szegedy et al., AAAI 2017 (arXiv:1602.07261), figures 3 to 9. Submodules have timm's names, which is
how `import_torch` finds their weights; numbers in `features` are the modules' places.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dscint_jax.models.convolution import Maps
from dscint_jax.models.layers import (
    BatchNorm,
    Conv,
    Dropout,
    Layer,
    Logits,
    Network,
    apply_layers,
    built,
)
from dscint_jax.models.options import OptionError, check_dropout, check_factor, check_sizes
from dscint_jax.models.pooling import average_pool, max_pool

EPSILON = 1e-3
"""Added to the variance by BatchNorm."""

halving_max = functools.partial(max_pool, window=3, stride=2)
same_average = functools.partial(average_pool, window=3, stride=1, padding=1)


class ConvNorm(nnx.Module):
    """A convolution without bias, BatchNorm, ReLU; arguments as for `layers.Conv`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel: int | tuple[int, int],
        *,
        dtype: DTypeLike,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        self.conv = Conv(in_features, out_features, kernel, dtype=dtype, rngs=rngs, **options)
        self.bn = BatchNorm(out_features, epsilon=EPSILON, dtype=dtype, rngs=rngs)

    def __call__(self, x: Maps) -> Maps:
        """Returns the features."""
        return nnx.relu(self.bn(self.conv(x)))


class Branches(nnx.Module):
    """Branches of one input whose channels are joined, in the order given.

    Args:
      branches: by name, a layer or a list of layers.
    """

    def __init__(self, **branches: nnx.Module | Layer | list[nnx.Module | Layer]):
        self.names = tuple(branches)
        for name, branch in branches.items():
            setattr(self, name, nnx.List(branch) if isinstance(branch, list) else branch)

    def __call__(self, x: Maps) -> Maps:
        """Returns the joined features."""
        branches = (getattr(self, name) for name in self.names)
        return jnp.concatenate(
            [apply_layers(b, x) if isinstance(b, nnx.List) else b(x) for b in branches], -1
        )


class InceptionC(nnx.Module):
    """Figure 6: two of the branches fork once more, into 1x3 and 3x1."""

    def __init__(self, conv: Callable[..., ConvNorm]):
        self.branch0 = conv(1536, 256, 1)
        self.branch1_0 = conv(1536, 384, 1)
        self.branch1_1a = conv(384, 256, (1, 3), padding=(0, 1))
        self.branch1_1b = conv(384, 256, (3, 1), padding=(1, 0))
        self.branch2_0 = conv(1536, 384, 1)
        self.branch2_1 = conv(384, 448, (3, 1), padding=(1, 0))
        self.branch2_2 = conv(448, 512, (1, 3), padding=(0, 1))
        self.branch2_3a = conv(512, 256, (1, 3), padding=(0, 1))
        self.branch2_3b = conv(512, 256, (3, 1), padding=(1, 0))
        self.branch3 = nnx.List([same_average, conv(1536, 256, 1)])

    def __call__(self, x: Maps) -> Maps:
        """Returns the joined features."""
        one = self.branch1_0(x)
        two = self.branch2_2(self.branch2_1(self.branch2_0(x)))
        return jnp.concatenate(
            [
                self.branch0(x),
                self.branch1_1a(one),
                self.branch1_1b(one),
                self.branch2_3a(two),
                self.branch2_3b(two),
                apply_layers(self.branch3, x),
            ],
            -1,
        )


def inception_a(conv: Callable[..., ConvNorm]) -> Branches:
    """Figure 4; 384 channels in and out."""
    return Branches(
        branch0=conv(384, 96, 1),
        branch1=[conv(384, 64, 1), conv(64, 96, 3, padding=1)],
        branch2=[conv(384, 64, 1), conv(64, 96, 3, padding=1), conv(96, 96, 3, padding=1)],
        branch3=[same_average, conv(384, 96, 1)],
    )


def reduction_a(conv: Callable[..., ConvNorm]) -> Branches:
    """Figure 7; 384 channels in, 1024 out."""
    return Branches(
        branch0=conv(384, 384, 3, stride=2),
        branch1=[conv(384, 192, 1), conv(192, 224, 3, padding=1), conv(224, 256, 3, stride=2)],
        branch2=halving_max,
    )


def inception_b(conv: Callable[..., ConvNorm]) -> Branches:
    """Figure 5; 1024 channels in and out."""
    return Branches(
        branch0=conv(1024, 384, 1),
        branch1=[
            conv(1024, 192, 1),
            conv(192, 224, (1, 7), padding=(0, 3)),
            conv(224, 256, (7, 1), padding=(3, 0)),
        ],
        branch2=[
            conv(1024, 192, 1),
            conv(192, 192, (7, 1), padding=(3, 0)),
            conv(192, 224, (1, 7), padding=(0, 3)),
            conv(224, 224, (7, 1), padding=(3, 0)),
            conv(224, 256, (1, 7), padding=(0, 3)),
        ],
        branch3=[same_average, conv(1024, 128, 1)],
    )


def reduction_b(conv: Callable[..., ConvNorm]) -> Branches:
    """Figure 8; 1024 channels in, 1536 out."""
    return Branches(
        branch0=[conv(1024, 192, 1), conv(192, 192, 3, stride=2)],
        branch1=[
            conv(1024, 256, 1),
            conv(256, 256, (1, 7), padding=(0, 3)),
            conv(256, 320, (7, 1), padding=(3, 0)),
            conv(320, 320, 3, stride=2),
        ],
        branch2=halving_max,
    )


def stem(conv: Callable[..., ConvNorm]) -> list[nnx.Module]:
    """Figure 3 but its first layer; 32 channels in, 384 of a quarter of their size out."""
    return [
        conv(32, 32, 3),
        conv(32, 64, 3, padding=1),
        Branches(maxpool=halving_max, conv=conv(64, 96, 3, stride=2)),
        Branches(
            branch0=[conv(160, 64, 1), conv(64, 96, 3)],
            branch1=[
                conv(160, 64, 1),
                conv(64, 64, (1, 7), padding=(0, 3)),
                conv(64, 64, (7, 1), padding=(3, 0)),
                conv(64, 96, 3),
            ],
        ),
        Branches(conv=conv(192, 192, 3, stride=2), maxpool=halving_max),
    ]


class InceptionV4(Network):
    """The network.

    Args:
      width: factor of all channels; 1 is the published network.
      blocks: how many of figures 4, 5 and 6 follow each other; (4, 7, 3) is the published network.
      dropout: rate before the last layer, in training only (published: 0.2).

    Raises:
      UserError: `dropout` is no rate, `width` makes of 32 channels no whole number, or `blocks` are
        not three counts.
    """

    STEM, HEAD = "features.0.conv", "last_linear"

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int = 1,
        width: float = 1.0,
        blocks: Sequence[int] = (4, 7, 3),
        dropout: float = 0.2,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_dropout(dropout)
        check_factor("width", width)
        check_sizes("blocks", blocks)
        # All channels are multiples of 32, and those of branches have to add up.
        if 32 * width % 1:
            raise OptionError("width", f"{width!r} times 32 must be a whole number")
        if len(blocks) != 3:
            raise OptionError("blocks", f"{blocks!r} must be three counts, such as (4, 7, 3)")

        def conv(in_features: int, out_features: int, *rest: Any, **options: Any) -> ConvNorm:
            sizes = round(in_features * width), round(out_features * width)
            return ConvNorm(*sizes, *rest, dtype=dtype, rngs=rngs, **options)

        first = ConvNorm(in_channels, round(32 * width), 3, stride=2, dtype=dtype, rngs=rngs)
        self.features = nnx.List(
            [
                first,
                *stem(conv),
                *(inception_a(conv) for _ in range(blocks[0])),
                reduction_a(conv),
                *(inception_b(conv) for _ in range(blocks[1])),
                reduction_b(conv),
                *(InceptionC(conv) for _ in range(blocks[2])),
            ]
        )
        self.num_features = round(1536 * width)
        self.dropout = Dropout(dropout)
        self.last_linear = (
            nnx.Linear(self.num_features, num_classes, dtype=dtype, rngs=rngs)
            if num_classes
            else None
        )

    def feature_maps(self, images: Maps) -> Maps:
        """Returns the last maps, about a 32nd of the image's height and width."""
        return apply_layers(self.features, images)

    def classify(self, maps: Maps, images: Maps, *, rngs: nnx.Rngs | None = None) -> Logits:
        """Returns the logits of the last maps; `images` are not looked at."""
        x = maps.mean((1, 2))
        return built(self.last_linear)(self.dropout(x, rngs=rngs)).astype(jnp.float32)
