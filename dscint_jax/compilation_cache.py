"""JAX's persistent compilation cache in the user's cache folder: a run started again compiles less.

JAX's key tells apart what a program depends on: jaxlib, its flags, the device and, of a CPU, the
instruction sets (XLA_FLAGS=--xla_cpu_max_isa=SSE4_2 changes the topology's fingerprint). Of several
processes the first writes.

On a CPU the cache is used on Linux from jax 0.11 on: 0.9.1 to 0.10.1 print two lines of error, on
many processors, for every entry that they load (jax-ml/jax issue 38445), and jaxlib on macOS has
crashed at large entries (uwplasma/vmex pull request 142).
"""

import os
import platform
from pathlib import Path

import jax

from tfds_builder.commandline.progress import warn

MAX_BYTES = 2**30
"""Of all entries together; the longest unused go first."""

MIN_COMPILE_TIME_S = 0.1
"""What compiles faster is not worth a file."""

CPU_SINCE = (0, 11)
"""Version of JAX from which on the cache is used on a CPU."""


def use_compilation_cache() -> None:
    """Turns the cache on; to be called after `jax.distributed` is initialised.

    JAX_COMPILATION_CACHE_DIR names another folder, of which JAX alone takes care, and
    JAX_ENABLE_COMPILATION_CACHE=false turns the cache off. A folder that cannot be made is a
    warning.
    """
    if jax.config.jax_compilation_cache_dir or not jax.config.jax_enable_compilation_cache:  # pyright: ignore[reportAttributeAccessIssue]
        return
    sound_on_cpu = platform.system() == "Linux" and jax.__version_info__ >= CPU_SINCE
    if jax.default_backend() == "cpu" and not sound_on_cpu:
        return
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "dscint-jax" / "compilation"
        # What lies here is run as a program: nobody else may write it.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    # Of a user without a home directory, RuntimeError.
    except (OSError, RuntimeError) as error:
        warn(
            f"no compilation cache: {error}; set JAX_COMPILATION_CACHE_DIR to a folder, or "
            "JAX_ENABLE_COMPILATION_CACHE=false"
        )
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MAX_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", MIN_COMPILE_TIME_S)
