"""Dscint in PyTorch, with the names of the weights that `weights.export_torch` writes.

It has the options of `models.dscint.Dscint` that change what is computed, as
`models.complete_options` gives them, with BatchNorm and standardised kernels.
"""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

RELU_GAIN = math.sqrt(2 / (1 - 1 / math.pi))


class StandardisedConv(nn.Conv2d):
    """A convolution whose kernel is standardised, padded as TensorFlow's 'SAME'."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, *, bias: bool):
        super().__init__(inputs, outputs, kernel, stride, bias=bias)
        self.gain = nn.Parameter(torch.ones(outputs))

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        """(batch, in, height, width) to (batch, out, height / stride, width / stride)."""
        weight = self.weight
        variance, mean = torch.var_mean(weight, (1, 2, 3), correction=0, keepdim=True)
        deviation = torch.sqrt(variance * weight[0].numel() + 1e-4)
        weight = (weight - mean) / deviation * self.gain[:, None, None, None] * RELU_GAIN
        stride, pads = self.stride[0], []
        for size in (input.shape[3], input.shape[2]):
            total = max((-(-size // stride) - 1) * stride + self.kernel_size[0] - size, 0)
            pads += [total // 2, total - total // 2]
        padding: Any = (pads[2], pads[0])
        if pads[0] != pads[1] or pads[2] != pads[3]:
            input, padding = F.pad(input, pads), 0
        return F.conv2d(input, weight.to(input.dtype), self.bias, self.stride, padding)


class ConvBlock(nn.Module):
    """Convolution, BatchNorm or none, ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, *, norm: bool):
        super().__init__()
        self.conv = StandardisedConv(inputs, outputs, kernel, stride, bias=not norm)
        self.norm = nn.BatchNorm2d(outputs) if norm else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The features."""
        return F.relu(self.norm(self.conv(x)))


class ChannelGate(nn.Module):
    """One weight a channel."""

    def __init__(self, features: int, reduction: int):
        super().__init__()
        hidden = max(features // reduction, 4)
        self.squeeze, self.excite = nn.Linear(features, hidden), nn.Linear(hidden, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channel, height, width) to (batch, channel, 1, 1)."""
        mean, most = x.mean((2, 3)), x.amax((2, 3))
        gates = [self.excite(F.relu(self.squeeze(d))) for d in (mean, most)]
        return torch.sigmoid(gates[0] + gates[1])[:, :, None, None]


class SpatialGate(nn.Module):
    """One weight a position."""

    def __init__(self, kernel: int):
        super().__init__()
        self.conv = nn.Conv2d(2, 1, kernel, padding="same")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, channel, height, width) to (batch, 1, height, width)."""
        summary = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], 1)
        return torch.sigmoid(self.conv(summary))


class HybridAttention(nn.Module):
    """A channel gate, then a spatial one."""

    def __init__(self, features: int, *, kernel: int, reduction: int):
        super().__init__()
        self.channel_gate = ChannelGate(features, reduction)
        self.spatial_gate = SpatialGate(kernel)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The gated features."""
        x = x * self.channel_gate(x)
        return x * self.spatial_gate(x)


class Dscint(nn.Module):
    """The network; arguments as of `models.dscint.Dscint`."""

    def __init__(
        self,
        *,
        num_classes: int,
        widths: list[int],
        strides: list[int],
        pool_after: list[int],
        kernel: int,
        norm_layers: list[int],
        attention_after: int,
        attention_kernel: int,
        attention_reduction: int,
        regions: list[int],
        hidden: int,
    ):
        super().__init__()
        channels = [1, *widths]
        normalised = {layer % len(widths) for layer in norm_layers}
        self.convolutions = nn.ModuleList(
            ConvBlock(channels[i], channels[i + 1], kernel, strides[i], norm=i in normalised)
            for i in range(len(widths))
        )
        self.pool_after, self.attention_after = set(pool_after), attention_after
        self.attention = HybridAttention(
            widths[attention_after - 1], kernel=attention_kernel, reduction=attention_reduction
        )
        self.regions = regions
        self.hidden = nn.Linear(widths[-1] * 2 * math.prod(regions), hidden)
        self.head = nn.Linear(hidden, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits of normalised images (batch, 1, height, width)."""
        for number, convolution in enumerate(self.convolutions, start=1):
            x = convolution(x)
            if number == self.attention_after:
                x = self.attention(x)
            if number in self.pool_after:
                x = F.max_pool2d(x, 2)
        rows, columns = (self._edges(n, p) for n, p in zip(x.shape[2:], self.regions, strict=True))
        cells = [x[:, :, top:bottom, left:right] for top, bottom in rows for left, right in columns]
        # Region by region, of each the mean of every channel, then the maximum.
        pooled = [torch.cat([cell.mean((2, 3)), cell.amax((2, 3))], 1) for cell in cells]
        return self.head(F.relu(self.hidden(torch.cat(pooled, 1))))

    @staticmethod
    def _edges(size: int, parts: int) -> list[tuple[int, int]]:
        edges = [int(size * part / parts) for part in range(parts + 1)]
        return list(itertools.pairwise(edges))
