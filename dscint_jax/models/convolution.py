"""The convolution that our own networks use, with a weight gradient that is fast on a CPU.

XLA's convolution is good in its forward pass and input gradient on CPUs, but on large maps with few
channels its weight gradient is much slower than the same arithmetic as matrix products. `python -m
pytest tests/dscint_jax/test_convolution.py` holds that the two agree.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

DIMENSIONS = ("NHWC", "HWIO", "NHWC")


def convolve(
    x: Float[Array, "batch height width in"],
    kernel: Float[Array, "rows columns in out"],
    stride: int,
) -> Float[Array, "batch small_height small_width out"]:
    """Convolution with 'SAME' padding and the same stride in both directions."""
    # The products run image by image: an axis that is split over devices cannot be scanned without
    # gathering it, so several devices keep XLA's gradient.
    if jax.default_backend() == "cpu" and jax.device_count() == 1:
        return _convolve_by_products(stride, x, kernel)
    return _convolve(stride, x, kernel)


def _convolve(stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", dimension_numbers=DIMENSIONS
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _convolve_by_products(stride: int, x: jax.Array, kernel: jax.Array) -> jax.Array:
    return _convolve(stride, x, kernel)


def _forward(stride: int, x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return _convolve(stride, x, kernel), (x, kernel)


def _backward(stride: int, saved: tuple, gradient: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    _, to_input = jax.vjp(lambda x: _convolve(stride, x, kernel), x)
    return *to_input(gradient), weight_gradient(x, gradient, kernel.shape[:2], stride)


_convolve_by_products.defvjp(_forward, _backward)


def weight_gradient(
    x: Float[Array, "batch height width in"],
    gradient: Float[Array, "batch small_height small_width out"],
    size: tuple[int, int],
    stride: int,
) -> Float[Array, "rows columns in out"]:
    """The convolution's gradient by its kernel: one matrix product an image and kernel position.

    Args:
      x: the convolution's input.
      gradient: of the loss by the convolution's output.
      size: rows and columns of the kernel.
      stride: of the convolution.
    """
    rows, columns = size
    height, width, features = gradient.shape[1:]
    pads = jax.lax.padtype_to_pads(x.shape[1:3], size, (stride, stride), "SAME")

    def add_image(total: jax.Array, image_and_gradient: tuple) -> tuple[jax.Array, None]:
        image, image_gradient = image_and_gradient
        padded = jnp.pad(image, (*pads, (0, 0)))
        flat = image_gradient.reshape(-1, features)
        products = [
            padded[row : row + height * stride : stride, column : column + width * stride : stride]
            .reshape(-1, image.shape[-1])
            .T
            @ flat
            for row in range(rows)
            for column in range(columns)
        ]
        return total + jnp.stack(products), None

    zero = jnp.zeros((rows * columns, x.shape[-1], features), gradient.dtype)
    total, _ = jax.lax.scan(add_image, zero, (x, gradient))
    return total.reshape(rows, columns, x.shape[-1], features)
