"""Poolings: windows that move over a map, and regions of a map as a whole."""

import functools
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from dscint_jax.models.convolution import Padding, pads_of
from tfds_builder.commandline.errors import UserError


def max_pool(
    x: Float[Array, "batch height width channel"], window: int, stride: int, padding: int = 0
) -> Float[Array, "batch small_height small_width channel"]:
    """Maximum over a square window; of equal values the first one, row by row, has the gradient.

    The gradient is a sum of shifted selections. XLA's own is a scatter, whose order of summation is
    not fixed on GPUs.

    `padding` is pixels of minus infinity on each side; a map smaller than the window gets more.
    """
    pads = pads_of(x.shape[1:3], (window, window), stride, padding)
    if stride != window or pads != ((0, 0), (0, 0)):
        return _max_pool(window, stride, pads, x)
    # Of windows that lie side by side, a maximum over axes of their own is several times as fast.
    batch, height, width, channel = x.shape
    rows, columns = height // window, width // window
    x = x[:, : rows * window, : columns * window]
    return largest(x.reshape(batch, rows, window, columns, window, channel), (2, 4))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _max_pool(window: int, stride: int, pads: Padding, x: jax.Array) -> jax.Array:
    return jax.lax.reduce_window(
        x,
        np.array(-np.inf, x.dtype),
        jax.lax.max,
        (1, window, window, 1),
        (1, stride, stride, 1),
        ((0, 0), *pads, (0, 0)),
    )


def _max_pool_forward(
    window: int, stride: int, pads: Padding, x: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Keeps where in its window each maximum stands, not the map.

    Nor is a map compared with its maxima later: XLA may compute it twice, rounded in two ways, and
    then no value would be equal to the maximum.
    """
    y: jax.Array = _max_pool(window, stride, pads, x)
    padded = jnp.pad(x, ((0, 0), *pads, (0, 0)), constant_values=-jnp.inf)
    rows, columns = ((size - 1) * stride + 1 for size in y.shape[1:3])
    best, place = None, jnp.zeros(y.shape, jnp.uint8)
    for k, (row, column) in enumerate(itertools.product(range(window), range(window))):
        values = padded[:, row : row + rows : stride, column : column + columns : stride]
        if best is None:
            best = values
            continue
        place = jnp.where(values > best, jnp.uint8(k), place)
        best = jnp.maximum(values, best)
    # The empty array knows the size of the map.
    return y, (place, jnp.zeros((*x.shape[:3], 0), x.dtype))


def _max_pool_backward(
    window: int, stride: int, pads: Padding, saved: tuple, gradient: jax.Array
) -> tuple[jax.Array]:
    place, like = saved
    (top, bottom), (left, right) = pads
    height, width = like.shape[1] + top + bottom, like.shape[2] + left + right
    rows, columns = ((size - 1) * stride + 1 for size in place.shape[1:3])
    zero = jnp.zeros((), gradient.dtype)
    total = jnp.zeros((place.shape[0], height, width, place.shape[3]), gradient.dtype)
    for k, (row, column) in enumerate(itertools.product(range(window), range(window))):
        total += jax.lax.pad(
            jnp.where(place == k, gradient, zero),
            zero,
            (
                (0, 0, 0),
                (row, height - row - rows, stride - 1),
                (column, width - column - columns, stride - 1),
                (0, 0, 0),
            ),
        )
    return (total[:, top : height - bottom, left : width - right],)


_max_pool.defvjp(_max_pool_forward, _max_pool_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def largest(x: Float[Array, "..."], axes: tuple[int, ...]) -> Float[Array, "..."]:
    """The maximum over some axes; of equal values the first one has the gradient.

    The gradient of `jnp.max` goes to where a value equals the maximum. Compiled, the value may be
    computed twice, rounded in two ways, and then none is equal and the gradient is lost. Here the
    place is kept, not the value. `axes` are numbered from 0 and rise.
    """
    return x.max(axes)


def _largest_forward(
    x: jax.Array, axes: tuple[int, ...]
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    last = jnp.moveaxis(x, axes, range(-len(axes), 0))
    place = last.reshape(*last.shape[: -len(axes)], -1).argmax(-1)
    # The empty array knows the shape of the input.
    return largest(x, axes), (place, jnp.zeros((*x.shape, 0), x.dtype))


def _largest_backward(
    axes: tuple[int, ...], saved: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array]:
    place, like = saved
    shape = like.shape[:-1]
    numbered = jnp.arange(math.prod(shape[axis] for axis in axes)).reshape(
        [size if axis in axes else 1 for axis, size in enumerate(shape)]
    )
    at = jnp.expand_dims(place, axes) == numbered
    return (jnp.where(at, jnp.expand_dims(gradient, axes), 0),)


largest.defvjp(_largest_forward, _largest_backward)


def average_pool(
    x: Float[Array, "batch height width channel"], window: int, stride: int, padding: int = 0
) -> Float[Array, "batch small_height small_width channel"]:
    """Mean over a square window; padding is not counted. Arguments as for `max_pool`."""
    pads = pads_of(x.shape[1:3], (window, window), stride, padding)

    def window_sum(values: jax.Array) -> jax.Array:
        return jax.lax.reduce_window(
            values,
            # A constant, not a traced array: only then XLA knows the sum and its gradient.
            np.zeros((), values.dtype),
            jax.lax.add,
            (1, window, window, 1),
            (1, stride, stride, 1),
            ((0, 0), *pads, (0, 0)),
        )

    counts = window_sum(jnp.ones((1, *x.shape[1:3], 1), jnp.float32))
    return (window_sum(x.astype(jnp.float32)) / counts).astype(x.dtype)


def adaptive_average_pool(
    x: Float[Array, "batch height width channel"], size: tuple[int, int]
) -> Float[Array, "batch rows columns channel"]:
    """Mean over each cell of a grid of `size`, as PyTorch's AdaptiveAvgPool2d has it.

    Cell i of n spans floor(i * length / n) to ceil((i + 1) * length / n): cells overlap where the
    map cannot be divided evenly, and repeat where it is smaller than the grid.
    """
    for axis, cells in zip((1, 2), size, strict=True):
        if x.shape[axis] != cells:
            means = jnp.asarray(_cell_means(x.shape[axis], cells), x.dtype)
            x = jnp.moveaxis(jnp.tensordot(x, means, axes=(axis, 1)), -1, axis)
    return x


def _cell_means(length: int, cells: int) -> Float[np.ndarray, "cells length"]:
    means = np.zeros((cells, length))
    for i in range(cells):
        start, stop = i * length // cells, -(-(i + 1) * length // cells)
        means[i, start:stop] = 1 / (stop - start)
    return means


def downsample_max(
    x: Float[Array, "batch height width channel"],
) -> Float[Array, "batch half_height half_width channel"]:
    """Maximum over blocks of 2x2, as `max_pool`; an odd last row or column is left out."""
    _, height, width, _ = x.shape
    if height < 2 or width < 2:
        raise UserError(
            f"config.model_options.pool_after: a map of {height}x{width} cannot be halved; halve "
            f"less often or use a smaller config.data.pool"
        )
    return max_pool(x, 2, 2)


def _mean(region: jax.Array) -> jax.Array:
    return region.mean((1, 2))


def _maximum(region: jax.Array) -> jax.Array:
    return largest(region, (1, 2))


REGION_POOLINGS: dict[str, tuple[Callable[[jax.Array], jax.Array], ...]] = {
    "average": (_mean,),
    "max": (_maximum,),
    "average_max": (_mean, _maximum),
}
"""By name, what a region is reduced by: its mean is how much of a feature it holds, its maximum
whether the feature is anywhere in it, as one small lesion is."""


def pool_regions(
    x: Float[Array, "batch height width channel"], regions: tuple[int, int], pooling: str
) -> Float[Array, "batch rows columns pooled"]:
    """Cuts maps into a grid of nearly equal regions and reduces each by one of REGION_POOLINGS.

    Several reductions stand side by side, channel behind channel.
    """
    if x.shape[1] < regions[0] or x.shape[2] < regions[1]:
        raise UserError(
            f"config.model_options.regions {regions[0]}x{regions[1]} do not fit the last map of "
            f"{x.shape[1]}x{x.shape[2]}; use fewer regions, a smaller config.data.pool or less "
            f"downsampling"
        )
    rows, columns = (
        np.linspace(0, size, parts + 1).astype(int).tolist()
        for size, parts in zip(x.shape[1:3], regions, strict=True)
    )

    def row(top: int, bottom: int, reduce: Callable[[jax.Array], jax.Array]) -> jax.Array:
        pairs = itertools.pairwise(columns)
        return jnp.stack([reduce(x[:, top:bottom, left:right]) for left, right in pairs], 1)

    grids = (
        jnp.stack([row(top, bottom, reduce) for top, bottom in itertools.pairwise(rows)], 1)
        for reduce in REGION_POOLINGS[pooling]
    )
    return jnp.concatenate([*grids], -1)
