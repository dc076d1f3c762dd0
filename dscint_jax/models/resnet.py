"""ResNet: residual networks of 18, 34, 50 and 101 layers.

He et al., CVPR 2016 (arXiv:1512.03385), table 1, in the form that torchvision distributes: the
stride of a bottleneck is in its 3x3 convolution. Submodules have torchvision's names, which is how
`import_torch` finds their weights.
"""

import functools
from collections.abc import Sequence

import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from dscint_jax.models.convolution import Maps
from dscint_jax.models.layers import BatchNorm, Conv, Logits, Network, apply_layers, built
from dscint_jax.models.options import check_factor
from dscint_jax.models.pooling import max_pool

WIDTHS = (64, 128, 256, 512)
"""Of the blocks of each stage."""

Maker = functools.partial
"""Makes a layer; what all layers of a network share is given already."""


class BasicBlock(nnx.Module):
    """Two 3x3 convolutions beside a shortcut.

    Args:
      in_features: channels of the input.
      width: of the block.
      stride: of the first convolution and of the shortcut.
      conv, norm: make a convolution and a BatchNorm.
    """

    EXPANSION = 1

    def __init__(self, in_features: int, width: int, *, stride: int, conv: Maker, norm: Maker):
        self.conv1 = conv(in_features, width, 3, stride=stride, padding=1)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 3, padding=1)
        self.bn2 = norm(width)
        self.downsample = _shortcut(in_features, width, stride, conv, norm)

    def __call__(self, x: Maps) -> Maps:
        """Returns the block's features."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return nnx.relu(y + apply_layers(self.downsample, x))


class Bottleneck(nnx.Module):
    """A 1x1, a 3x3 and a widening 1x1 convolution beside a shortcut; arguments as BasicBlock's."""

    EXPANSION = 4

    def __init__(self, in_features: int, width: int, *, stride: int, conv: Maker, norm: Maker):
        out_features = width * self.EXPANSION
        self.conv1 = conv(in_features, width, 1)
        self.bn1 = norm(width)
        self.conv2 = conv(width, width, 3, stride=stride, padding=1)
        self.bn2 = norm(width)
        self.conv3 = conv(width, out_features, 1)
        self.bn3 = norm(out_features)
        self.downsample = _shortcut(in_features, out_features, stride, conv, norm)

    def __call__(self, x: Maps) -> Maps:
        """Returns the block's features."""
        y = nnx.relu(self.bn1(self.conv1(x)))
        y = nnx.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return nnx.relu(y + apply_layers(self.downsample, x))


def _shortcut(
    in_features: int, out_features: int, stride: int, conv: Maker, norm: Maker
) -> nnx.List:
    """Empty where the block keeps the shape of its input."""
    if stride == 1 and in_features == out_features:
        return nnx.List([])
    return nnx.List([conv(in_features, out_features, 1, stride=stride), norm(out_features)])


class ResNet(Network):
    """The network.

    Args:
      block: BasicBlock or Bottleneck.
      depths: blocks of each of the four stages.
      width: factor of all channels; 1 is the published network.

    Raises:
      UserError: `width` is not positive.
    """

    STEM, HEAD = "conv1", "fc"

    def __init__(
        self,
        *,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int,
        in_channels: int = 1,
        width: float = 1.0,
        dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        check_factor("width", width)
        widths = [max(round(full * width), 1) for full in WIDTHS]
        features = widths[0]
        conv = functools.partial(Conv, dtype=dtype, rngs=rngs)
        norm = functools.partial(BatchNorm, dtype=dtype, rngs=rngs)
        self.conv1 = conv(in_channels, features, 7, stride=2, padding=3)
        self.bn1 = norm(features)
        for stage, (planes, depth) in enumerate(zip(widths, depths, strict=True), start=1):
            blocks = []
            for i in range(depth):
                stride = 2 if i == 0 and stage > 1 else 1
                blocks.append(block(features, planes, stride=stride, conv=conv, norm=norm))
                features = planes * block.EXPANSION
            setattr(self, f"layer{stage}", nnx.List(blocks))
        self.num_features = features
        self.fc = nnx.Linear(features, num_classes, dtype=dtype, rngs=rngs) if num_classes else None

    def feature_maps(self, images: Maps) -> Maps:
        """Returns the last maps, a 32nd of the image's height and width."""
        x = nnx.relu(self.bn1(self.conv1(images)))
        x = max_pool(x, 3, stride=2, padding=1)
        for stage in range(1, len(WIDTHS) + 1):
            x = apply_layers(getattr(self, f"layer{stage}"), x)
        return x

    def classify(self, maps: Maps, images: Maps, *, rngs: nnx.Rngs | None = None) -> Logits:
        """Returns the logits of the last maps; `images` are not looked at."""
        return built(self.fc)(maps.mean((1, 2))).astype(jnp.float32)


resnet18 = functools.partial(ResNet, block=BasicBlock, depths=(2, 2, 2, 2))
resnet34 = functools.partial(ResNet, block=BasicBlock, depths=(3, 4, 6, 3))
resnet50 = functools.partial(ResNet, block=Bottleneck, depths=(3, 4, 6, 3))
resnet101 = functools.partial(ResNet, block=Bottleneck, depths=(3, 4, 23, 3))
