import os
import subprocess
import sys

import jax
import pytest

from dscint_jax.command import run_command


def _fail(error):
    raise error


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\n at"),
        MemoryError(),
    ],
)
def test_lack_of_memory_is_one_line_that_says_what_to_lower(error, capsys):
    with pytest.raises(SystemExit) as stopped:
        run_command(lambda: _fail(error))
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert "config.batch_size" in printed


def test_other_errors_of_jax_are_not_mistaken_for_it():
    with pytest.raises(jax.errors.JaxRuntimeError):
        run_command(lambda: _fail(jax.errors.JaxRuntimeError("INTERNAL: a fault")))


BACKEND = "import jax; from dscint_jax.command import run_command; run_command(jax.devices)"


@pytest.mark.parametrize("platforms", ["gpux", "rocm", "cpu,gpux"])
def test_platform_that_is_not_here_is_one_line(platforms):
    done = _run_program(BACKEND, JAX_PLATFORMS=platforms)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"error: JAX cannot start on JAX_PLATFORMS={platforms} (")
    assert done.stderr.count("\n") == 1


COMPILE = """
import os
import subprocess
import sys

import jax
from dscint_jax.command import run_command

run_command(lambda: print(jax.jit(lambda x: x + 1)(1)))
"""


def test_cache_of_programs_that_cannot_be_written_fails_nothing_and_says_nothing():
    done = _run_program(
        COMPILE,
        JAX_COMPILATION_CACHE_DIR="/proc/none",
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="0",
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "2\n", "")


def test_cache_of_fonts_that_cannot_be_written_fails_nothing_and_says_nothing():
    done = _run_program(
        "import dscint_jax.report.figures", MPLCONFIGDIR="/proc/none", HOME="/proc/none"
    )
    assert (done.returncode, done.stderr) == (0, "")


def _run_program(program, **environment):
    return subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, **environment},
    )
