"""How near convolutions of the networks come to a matrix product's speed, here and in PyTorch.

    python -m tests.benchmarks.convolutions

In: nothing; PyTorch where it is installed. Out: a line a shape, with the share of the speed of a
product of large square matrices that each pass reaches; medians.
"""

import importlib.util
from typing import Any

import jax
import jax.numpy as jnp

from dscint_jax.models import convolution
from tests.benchmarks.small_maps import milliseconds

BATCH, SIDE = 8, 2048
SHAPES = {
    "Dscint, 2nd": (256, 64, 32, 48, 3),
    "Dscint, 3rd": (128, 32, 48, 64, 3),
    "Dscint, 4th": (64, 16, 64, 96, 3),
    "Dscint, 5th": (32, 8, 96, 96, 3),
    "ResNet, 1st stage": (128, 32, 64, 64, 3),
    "ResNet, 2nd stage": (64, 16, 128, 128, 3),
    "ResNet, 3rd stage": (32, 8, 256, 256, 3),
    "ResNet, 4th stage": (16, 4, 512, 512, 3),
    "DenseNet, 1x1": (64, 16, 256, 128, 1),
    "DenseNet, 3x3": (64, 16, 128, 32, 3),
}
"""Rows, columns, channels in and out, side of the kernel."""

PASSES = ("forward", "by the input", "by the kernel", "by the kernel, XLA's own")


def _ours(side: int, x: jax.Array, kernel: jax.Array, y: jax.Array) -> dict[str, Any]:
    pads = convolution.pads_of(x.shape[1:3], (side, side), 1, "SAME")

    def plain(x, kernel):
        return convolution._convolve(1, pads, x, kernel)

    def by_kernel(x, kernel, y):
        return convolution.weight_gradient(x, y, (side, side), 1, pads)

    def forward(x, kernel, y):
        return plain(x, kernel)

    def by_input(x, kernel, y):
        return jax.vjp(lambda x: plain(x, kernel), x)[1](y)

    def by_kernel_of_xla(x, kernel, y):
        return jax.vjp(lambda kernel: plain(x, kernel), kernel)[1](y)

    functions = (forward, by_input, by_kernel, by_kernel_of_xla)
    return {name: jax.jit(f) for name, f in zip(PASSES, functions, strict=True)}


def _torchs(side: int, x: jax.Array, kernel: jax.Array, y: jax.Array) -> dict[str, Any]:
    import torch

    def channels_last(array: jax.Array, *axes: int) -> torch.Tensor:
        tensor = torch.from_numpy(jax.device_get(array).transpose(*axes).copy())
        return tensor.contiguous(memory_format=torch.channels_last)

    images, gradient = channels_last(x, 0, 3, 1, 2), channels_last(y, 0, 3, 1, 2)
    weights, pad = channels_last(kernel, 3, 2, 0, 1), side // 2

    def backward(*asked: bool):
        return torch.ops.aten.convolution_backward(
            *(gradient, images, weights, None, [1, 1], [pad, pad], [1, 1], False, [0, 0], 1, asked)
        )

    return {
        "PyTorch, forward": lambda *_: torch.conv2d(images, weights, padding=pad),
        "PyTorch, by the input": lambda *_: backward(True, False, False),
        "PyTorch, by the kernel": lambda *_: backward(False, True, False),
    }


def main() -> None:
    """Prints the lines."""
    square = jnp.ones((SIDE, SIDE))
    for name, (rows, columns, channels, features, side) in SHAPES.items():
        x = jax.random.normal(jax.random.key(0), (BATCH, rows, columns, channels))
        kernel = jax.random.normal(jax.random.key(1), (side, side, channels, features))
        y = jax.random.normal(jax.random.key(2), (BATCH, rows, columns, features))
        functions = {"product": jax.jit(lambda *_: square @ square), **_ours(side, x, kernel, y)}
        if importlib.util.find_spec("torch"):
            functions |= _torchs(side, x, kernel, y)
        taken = milliseconds(functions, x, kernel, y)
        peak = 2 * SIDE**3 / taken.pop("product")
        flops = 2 * y.size * side**2 * channels
        shares = ", ".join(f"{what} {flops / ms / peak:.0%}" for what, ms in taken.items())
        print(f"{name}: {shares}", flush=True)


if __name__ == "__main__":
    main()
