"""Random keys as pure functions of (seed, stream name, step): nothing random is ever saved."""

import zlib

import jax
from jaxtyping import Array, Int, Key


def stream_key(seed: int, stream: str, step: Int[Array, ""] | int = 0) -> Key[Array, ""]:
    """The key of one stream, such as 'augment', at one step; two names never share a key."""
    # What does not depend on the step is computed once, not in every step.
    with jax.ensure_compile_time_eval():
        key = jax.random.fold_in(jax.random.key(seed), zlib.crc32(stream.encode()))
    return jax.random.fold_in(key, step)
