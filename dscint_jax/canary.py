"""A check at the start that the compiler computes right: a backend that fails it is not used.

jaxlib 0.10.2 can be wrong under jit on CPUs, in silence (github.com/jax-ml/jax/issues/39103): a
matrix-vector product under vmap, followed by a sum, of which the last rows are wrong. The check
compiles such an expression of whole numbers and compares it with what they give without JAX.
"""

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from jaxtyping import Array, Float

from tfds_builder.commandline.errors import UserError

ROWS = 32769
"""As in the report; whether rows are wrong depends on how many there are."""


def check_backend() -> None:
    """Compares a compiled expression with its exact values.

    Raises:
      UserError: they differ.
    """
    # Whole numbers of eight bits: exact in bfloat16 and TF32 too, and so are their sums in float32.
    vectors = (np.arange(3 * ROWS) % 251).reshape(ROWS, 3)
    computed = jax.jit(_squared_lengths)(vectors.astype(np.float32))
    if not np.array_equal(computed, (vectors**2).sum(1)):
        raise UserError(
            f"jaxlib {jaxlib.version.__version__} computes wrongly on this {jax.default_backend()} "
            f"(a sum of matrix-vector products); install the version of constraints.txt, or, for "
            f"jaxlib 0.10.2 on a CPU, set XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type="
        )


def _squared_lengths(vectors: Float[Array, "rows 3"]) -> Float[Array, " rows"]:
    return jax.vmap(lambda vector: jnp.sum((jnp.eye(3) @ vector) ** 2))(vectors)
