"""How long convolutions take by XLA and by oneDNN, as they are and as gradients by their inputs.

    python -m tests.benchmarks.convolutions

In: nothing. Out: a line a shape, with medians of both and how many times as long XLA takes.
"""

import jax

from dscint_jax.models import convolution, onednn
from tests.benchmarks.small_maps import milliseconds

BATCH = 8
SHAPES = (
    (256, 64, 3, 24, 32),
    (128, 32, 3, 48, 64),
    (64, 16, 3, 64, 64),
    (128, 32, 3, 128, 128),
    (64, 16, 3, 256, 256),
    (16, 4, 3, 512, 512),
    (64, 16, 3, 128, 32),
    (64, 16, 1, 512, 128),
)
"""Rows, columns, side of the kernel, channels before and after."""


def main() -> None:
    """Prints the lines."""
    for height, width, side, channels, features in SHAPES:
        pads = ((side // 2, side // 2),) * 2
        x = jax.random.normal(jax.random.key(0), (BATCH, height, width, channels))
        kernel = jax.random.normal(jax.random.key(1), (side, side, channels, features))
        gradient = jax.random.normal(jax.random.key(2), (BATCH, height, width, features))
        ways = {
            "forward": (
                {
                    "XLA": lambda x, k, p=pads: convolution._convolve(1, p, x, k),
                    "oneDNN": lambda x, k, p=pads: onednn.convolve(x, k, 1, p),
                },
                (x, kernel),
            ),
            "gradient": (
                {
                    "XLA": lambda g, k, x=x, p=pads: jax.vjp(
                        lambda x: convolution._convolve(1, p, x, k), x
                    )[1](g),
                    "oneDNN": lambda g, k, p=pads: onednn.convolve(
                        g, k[::-1, ::-1], 1, p, inputs_last=True
                    ),
                },
                (gradient, kernel),
            ),
        }
        told = []
        for name, (functions, arguments) in ways.items():
            compiled = {way: jax.jit(function) for way, function in functions.items()}
            found = milliseconds(compiled, *arguments)
            ratio = found["XLA"] / found["oneDNN"]
            told.append(
                f"{name} XLA {found['XLA']:.1f} ms, oneDNN {found['oneDNN']:.1f} ms ({ratio:.2f})"
            )
        shape = f"{height}x{width}, {side}x{side}, {channels} to {features}"
        print(f"{shape}: {'; '.join(told)}", flush=True)


if __name__ == "__main__":
    main()
