"""Convolutions of oneDNN, which jaxlib's CPU backend contains and by itself hardly uses.

On x86 XLA's own take up to half as long again (`python -m tests.benchmarks.convolutions`). The call
is none that jaxlib promises to keep, so no later version is trusted with it than it was tried with,
0.8.1 to 0.12.0; with others all is left to XLA.
"""

import functools
import json
import platform
import sys

import jax
import jax.numpy as jnp
import jaxlib.version
from jaxtyping import Array, Float

NEWEST = (0, 12)
"""The last version of jaxlib that the call was tried with."""

FEWEST_CHANNELS = 8
FEWEST_OF_ONE_POSITION = 128
"""Of the input: with fewer XLA is faster; the second for kernels of one row and column."""


def is_faster(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether oneDNN is there, takes these types, and was seen to be faster on such shapes."""
    fewest = FEWEST_OF_ONE_POSITION if kernel.shape[:2] == (1, 1) else FEWEST_CHANNELS
    return _is_there() and x.dtype == kernel.dtype == jnp.float32 and x.shape[-1] >= fewest


@functools.cache
def _is_there() -> bool:
    return (
        jaxlib.version.__version_info__[:2] <= NEWEST
        and sys.platform == "linux"
        and platform.machine() == "x86_64"
    )


def convolve(
    x: Float[Array, "batch height width in"],
    kernel: Float[Array, "rows columns _ _"],
    stride: int,
    pads: tuple[tuple[int, int], tuple[int, int]],
    *,
    inputs_last: bool = False,
) -> Float[Array, "batch small_height small_width out"]:
    """The convolution, on the CPU.

    Args:
      x: maps.
      kernel: its last two axes are input and output channels.
      stride: step in both directions.
      pads: zeros added above and below, left and right.
      inputs_last: the kernel's last two axes are output and input channels instead.
    """
    inputs, outputs = (3, 2) if inputs_last else (2, 3)
    maps = {"data": {"batch_dim": 0, "feature_dim": 3, "spatial_dims": [1, 2]}}
    of_kernel = {
        "input_feature_dim": inputs,
        "output_feature_dim": outputs,
        "spatial_dims": [0, 1],
    }
    config = {
        "dims": 4,
        "feature_groups": 1,
        "input": maps,
        "kernel": {"filter": of_kernel},
        "output": maps,
        "window": {
            "size": list(kernel.shape[:2]),
            "pad_left": [before for before, _ in pads],
            "pad_right": [after for _, after in pads],
            "strides": [stride, stride],
            "window_dilations": [1, 1],
        },
    }
    height, width = (
        (length + sum(pad) - span) // stride + 1
        for length, span, pad in zip(x.shape[1:3], kernel.shape[:2], pads, strict=True)
    )
    shape = (x.shape[0], height, width, kernel.shape[outputs])
    return jax.ffi.ffi_call(
        "__onednn$convolution",
        jax.ShapeDtypeStruct(shape, x.dtype),
        custom_call_api_version=2,
        legacy_backend_config=json.dumps({"onednn_conv_config": config}),
    )(x, kernel)
