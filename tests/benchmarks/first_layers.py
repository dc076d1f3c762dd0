"""How long the weight gradients of first layers take, of images with one channel.

    python -m tests.benchmarks.first_layers

In: nothing. Out: a line a network, with medians of the products of each kernel position and of one
product of all windows of an image; images of 512x128 pixels.
"""

import functools

import jax

from dscint_jax.models import convolution
from tests.benchmarks.step_parts import median_ms

BATCH, HEIGHT, WIDTH = 8, 512, 128
LAYERS = {
    "AlexNet": (11, 4, 2, 64),
    "VGG": (3, 1, 1, 64),
    "ResNet, DenseNet": (7, 2, 3, 64),
    "Inception-v4": (3, 2, 0, 32),
    "Dscint": (3, 2, "SAME", 32),
}
"""Side of the kernel, stride, padding, features."""


def main() -> None:
    """Prints the lines."""
    for name, (side, stride, padding, features) in LAYERS.items():
        size, x = (side, side), jax.random.normal(jax.random.key(0), (BATCH, HEIGHT, WIDTH, 1))
        pads = convolution.pads_of((HEIGHT, WIDTH), size, stride, padding)
        rows, columns = convolution._size_of_map(x, size, stride, pads)
        gradient = jax.random.normal(jax.random.key(1), (BATCH, rows, columns, features))
        ways = {
            "by positions": convolution._by_positions,
            "by windows": convolution._by_windows,
        }
        times = {}
        for way, function in ways.items():
            compiled = jax.jit(functools.partial(function, size=size, stride=stride, pads=pads))
            times[way] = median_ms(functools.partial(compiled, x, gradient))
        print(f"{name}: {', '.join(f'{way} {ms:.0f} ms' for way, ms in times.items())}", flush=True)


if __name__ == "__main__":
    main()
