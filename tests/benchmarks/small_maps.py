"""How long convolutions on maps of few positions take, by XLA and by products.

    python -m tests.benchmarks.small_maps

In: nothing. Out: a line a shape, with medians of the forward pass and of both gradients.
"""

import statistics
import time

import jax

from dscint_jax.models import convolution

BATCH, KERNEL, PADS, ROUNDS = 32, (3, 3), ((1, 1), (1, 1)), 7
SHAPES = ((4, 1, 512), (4, 2, 512), (8, 2, 256), (16, 2, 256), (16, 4, 128))
"""Rows, columns, channels."""

FORMS = {
    "XLA": convolution._convolve,
    "kernel by products": convolution._convolve_by_products,
    "one product": convolution._convolve_as_one_product,
}


def milliseconds(functions, *arguments):
    """Medians by name, the functions in turn."""
    taken = {name: [] for name in functions}
    for function in functions.values():
        jax.block_until_ready(function(*arguments))
    for _ in range(ROUNDS):
        for name, function in functions.items():
            start = time.perf_counter()
            jax.block_until_ready(function(*arguments))
            taken[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(times) for name, times in taken.items()}


def _forward(form):
    return jax.jit(lambda x, kernel: form(1, PADS, x, kernel))


def _gradients(form):
    return jax.jit(jax.grad(lambda x, kernel: form(1, PADS, x, kernel).sum(), (0, 1)))


def main() -> None:
    """Prints the lines."""
    for rows, columns, channels in SHAPES:
        x = jax.random.normal(jax.random.key(0), (BATCH, rows, columns, channels))
        kernel = jax.random.normal(jax.random.key(1), (*KERNEL, channels, channels))
        for what, of in (("forward", _forward), ("gradients", _gradients)):
            found = milliseconds({name: of(form) for name, form in FORMS.items()}, x, kernel)
            times = ", ".join(f"{name} {value:.1f} ms" for name, value in found.items())
            print(f"{channels} channels on {rows}x{columns}, {what}: {times}", flush=True)


if __name__ == "__main__":
    main()
