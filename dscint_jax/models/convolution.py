"""The convolution of every network here, in the form that is fast on a CPU.

XLA's convolution is good in its forward pass and input gradient on CPUs, but on large maps with few
channels its weight gradient is much slower than the same arithmetic as matrix products, and on maps
of a few positions all of it is. `python -m pytest tests/dscint_jax/models/test_convolution.py`
holds that all forms agree.
"""

import functools
import math
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

DIMENSIONS = ("NHWC", "HWIO", "NHWC")

TINY = 8
"""Positions of a map up to which all is done as one product: there XLA's own convolution, forward
and backward, is many times slower (`python -m tests.benchmarks.small_maps`)."""

WORTH_IT = 2**17
"""Multiplications for an image from which the form matters: XLA's own takes less to compile. Not
for a batch, whose size is not known where a network is exported."""

TOGETHER = 1024
"""Positions that one product of the weight gradient sums over, of several images where maps are
smaller: one for each image moves more of the kernel than of the map."""

Maps = Float[Array, "batch _height _width _channel"]
"""Images, or the maps that a network makes of them."""

PaddingRule = Literal["SAME"] | int | tuple[int, int]
"""What `pads_of` makes a padding from."""

Padding = tuple[tuple[int, int], tuple[int, int]]
"""Pixels added above and below, left and right."""


def pads_of(
    size: Sequence[int], window: Sequence[int], stride: int, padding: PaddingRule
) -> Padding:
    """Pixels that a window needs around a map.

    Args:
      size: height and width of the map.
      window: rows and columns of the window.
      stride: step of the window.
      padding: 'SAME', as TensorFlow pads; or how many pixels on each side, one number or one for
        rows and one for columns, as PyTorch pads. A map that is smaller than the window even so is
        padded up to it: reference implementations refuse such maps, and a scintigram is narrow.
    """
    if padding == "SAME":
        pads = jax.lax.padtype_to_pads(size, window, (stride, stride), "SAME")
        # Earlier versions of JAX have numbers of NumPy's.
        rows, columns = ((int(before), int(after)) for before, after in pads)
        return rows, columns
    given = (padding, padding) if isinstance(padding, int) else padding
    pads = []
    for length, span, pad in zip(size, window, given, strict=True):
        missing = max(span - length - 2 * pad, 0)
        pads.append((pad + missing // 2, pad + missing - missing // 2))
    rows, columns = pads
    return rows, columns


def convolve(
    x: Float[Array, "batch height width in"],
    kernel: Float[Array, "rows columns in out"],
    stride: int,
    padding: PaddingRule = "SAME",
) -> Float[Array, "batch small_height small_width out"]:
    """Convolution with the same stride in both directions; `padding` as in `pads_of`."""
    pads = pads_of(x.shape[1:3], kernel.shape[:2], stride, padding)
    size = _size_of_map(x, kernel.shape[:2], stride, pads)
    if is_on_one_cpu() and math.prod(size) * kernel.size >= WORTH_IT:
        if math.prod(size) <= TINY:
            return _convolve_as_one_product(stride, pads, x, kernel)
        return _convolve_by_products(stride, pads, x, kernel)
    return _convolve(stride, pads, x, kernel)


def is_on_one_cpu() -> bool:
    """Whether what is traced runs on a CPU, on one device or on each one's own part of a batch.

    Then a program may go image by image; an axis that the compiler divides over devices cannot be
    scanned without gathering it.
    """
    if jax.default_backend() != "cpu":
        return False
    mesh = jax.sharding.get_abstract_mesh()
    return jax.device_count() == 1 or (not mesh.empty and mesh.are_all_axes_manual)


def _size_of_map(x: jax.Array, size: Sequence[int], stride: int, pads: Padding) -> tuple[int, int]:
    """Height and width of what the convolution makes."""
    height, width = (
        (length + sum(pad) - span) // stride + 1
        for length, span, pad in zip(x.shape[1:3], size, pads, strict=True)
    )
    return height, width


def _windows(x: jax.Array, size: Sequence[int], stride: int, pads: Padding) -> jax.Array:
    """What the kernel meets at each position of all images: its rows, columns and channels."""
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    (rows, columns), (batch, height, width, channels) = size, padded.shape
    parts = [
        jax.lax.slice(
            padded,
            (0, row, column, 0),
            (batch, height - rows + row + 1, width - columns + column + 1, channels),
            (1, stride, stride, 1),
        )
        for row in range(rows)
        for column in range(columns)
    ]
    return jnp.stack(parts, 3).reshape(-1, rows * columns * channels)


def _convolve_as_one_product(
    stride: int, pads: Padding, x: jax.Array, kernel: jax.Array
) -> jax.Array:
    height, width = _size_of_map(x, kernel.shape[:2], stride, pads)
    features = kernel.shape[-1]
    windows = _windows(x, kernel.shape[:2], stride, pads)
    return (windows @ kernel.reshape(-1, features)).reshape(x.shape[0], height, width, features)


def _convolve(stride: int, pads: Padding, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), pads, dimension_numbers=DIMENSIONS
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _convolve_by_products(stride: int, pads: Padding, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _convolve(stride, pads, x, kernel)


def _forward(
    stride: int, pads: Padding, x: jax.Array, kernel: jax.Array
) -> tuple[jax.Array, tuple]:
    return _convolve(stride, pads, x, kernel), (x, kernel)


def _backward(
    stride: int, pads: Padding, saved: tuple, gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    _, to_input = jax.vjp(lambda x: _convolve(stride, pads, x, kernel), x)
    return *to_input(gradient), weight_gradient(x, gradient, kernel.shape[:2], stride, pads)


_convolve_by_products.defvjp(_forward, _backward)


def weight_gradient(
    x: Float[Array, "batch height width in"],
    gradient: Float[Array, "batch small_height small_width out"],
    size: tuple[int, int],
    stride: int,
    pads: Padding,
) -> Float[Array, "rows columns in out"]:
    """The convolution's gradient by its kernel, as matrix products.

    `gradient` is the loss's by the convolution's output, `size` the kernel's rows and columns.
    """
    # Of one channel, products of a kernel's position have one row, which is slow; but with stride 2
    # windows are slower to cut out (`python -m tests.benchmarks.first_layers`).
    if x.shape[-1] == 1 and stride != 2:
        return _by_windows(x, gradient, size, stride, pads)
    return _by_positions(x, gradient, size, stride, pads)


def _by_positions(
    x: jax.Array, gradient: jax.Array, size: tuple[int, int], stride: int, pads: Padding
) -> jax.Array:
    """A product for each position of the kernel, one image after the other, or some small maps."""
    rows, columns = size
    batch, height, width, features = gradient.shape
    channels = x.shape[-1]
    # Whichever has more channels makes the product's columns: as its rows, a product takes up to
    # half as long again (`python -m tests.benchmarks.convolutions`).
    turned = channels > features

    def product(maps: jax.Array, gradients: jax.Array) -> jax.Array:
        narrow, wide = (gradients, maps) if turned else (maps, gradients)
        return jnp.matmul(narrow.T, wide, preferred_element_type=jnp.float32)

    def add_images(
        sums: tuple[jax.Array, ...], images_and_gradients: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, ...], None]:
        images, gradients = images_and_gradients
        padded = jnp.pad(images, (*[(0, 0)] * (images.ndim - 3), *pads, (0, 0)))
        flat = gradients.reshape(-1, features)
        seen = [
            padded[
                ...,
                row : row + height * stride : stride,
                column : column + width * stride : stride,
                :,
            ]
            for row in range(rows)
            for column in range(columns)
        ]
        return tuple(
            part + product(maps.reshape(-1, channels), flat)
            for part, maps in zip(sums, seen, strict=True)
        ), None

    # Sums over many positions and images, so in float32 also where the network computes in less.
    shape = (features, channels) if turned else (channels, features)
    zeros = (jnp.zeros(shape, jnp.float32),) * (rows * columns)
    most = max(TOGETHER // (height * width), 1)
    images = max(n for n in range(1, min(most, batch) + 1) if batch % n == 0)
    # Of one image without an axis of length 1, for which XLA chooses a slower layout.
    if images > 1:
        x = x.reshape(-1, images, *x.shape[1:])
        gradient = gradient.reshape(-1, images, *gradient.shape[1:])
    sums, _ = jax.lax.scan(add_images, zeros, (x, gradient))
    kernels = jnp.stack(sums).reshape(rows, columns, *shape).astype(gradient.dtype)
    return kernels.swapaxes(2, 3) if turned else kernels


def _by_windows(
    x: jax.Array, gradient: jax.Array, size: tuple[int, int], stride: int, pads: Padding
) -> jax.Array:
    """One product an image, of all that the kernel meets in it."""
    features = gradient.shape[-1]

    def add_image(
        total: jax.Array, image_and_gradient: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, None]:
        image, of_image = image_and_gradient
        windows = _windows(image[None], size, stride, pads).T
        flat = of_image.reshape(-1, features)
        return total + jnp.matmul(windows, flat, preferred_element_type=total.dtype), None

    zero = jnp.zeros((math.prod(size) * x.shape[-1], features), jnp.float32)
    total, _ = jax.lax.scan(add_image, zero, (x, gradient))
    return total.reshape(*size, x.shape[-1], features).astype(gradient.dtype)
