"""How long a linear layer's gradient by its input takes, plain and block by block.

    python -m tests.benchmarks.wide_layers

In: nothing. Out: a line a shape, with medians of both.
"""

import jax

from dscint_jax.models import layers
from tests.benchmarks.small_maps import milliseconds

BATCH = 8
SHAPES = ((9216, 4096), (4096, 4096), (2048, 128), (512, 4))
"""Features before and after; the first two are AlexNet's."""


def main() -> None:
    """Prints the lines."""
    for shape in SHAPES:
        x = jax.random.normal(jax.random.key(0), (BATCH, shape[0]))
        kernel = jax.random.normal(jax.random.key(1), shape)
        gradient = jax.random.normal(jax.random.key(2), (BATCH, shape[1]))
        ways = {"plain": lambda x, kernel: x @ kernel, "by blocks": layers._product}
        found = milliseconds(
            {
                name: jax.jit(lambda x, k, g, way=way: jax.vjp(lambda x: way(x, k), x)[1](g))
                for name, way in ways.items()
            },
            *(x, kernel, gradient),
        )
        print(f"{shape}: {', '.join(f'{n} {ms:.1f} ms' for n, ms in found.items())}", flush=True)


if __name__ == "__main__":
    main()
