import jax
import pytest

from dscint_jax.errors import run_command


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
