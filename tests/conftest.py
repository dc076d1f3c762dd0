"""What every test shares: eight fake devices, strict JAX, and the markers slow and exhaustive."""

import atexit
import collections
import os
import shutil
import tempfile
from importlib import metadata

# Before JAX is imported, and for the processes that tests start.
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile much and compute little, so code is generated without LLVM's optimisations, which
# halves their time; what XLA does to a program before that is as ever. `.ci/night` sets it to 0.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
if int(metadata.version("jaxlib").split(".")[1]) < 11:
    # XLA's emitters of fused loops, which make them fast, are two thirds of a compilation. Later
    # jaxlibs have nothing else, and end at a flag that they do not know.
    if os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1":
        plain_loops = "--xla_cpu_use_fusion_emitters=false"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {plain_loops}".strip()
    # Else every entry of the cache below is a line of error on processors with AVX-512
    # (jax-ml/jax issue 38445), in the output that tests read.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# Tests run side by side, and a second thread for small products would take a core to wait on.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# Tests leave the user's cache folder alone; all processes of a run share one while they run.
if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled-for-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"

import beartype.claw
import jax
import jaxtyping
import pytest
from jax._src import compiler

# Every annotated function of both packages checks its arguments and results, shapes among them,
# wherever a test calls it in this process. As PEP 484 has it, an int is a float. Beam pickles
# functions, which checked ones are not made for.
if os.environ.get("TESTS_WITHOUT_HINTS") != "1":
    # Hints of tfds_builder name no shapes; beartype's own hook holds them at less cost.
    beartype.claw.beartype_package(
        "tfds_builder", conf=beartype.BeartypeConf(is_pep484_tower=True, claw_is_pep526=False)
    )
    jaxtyping.install_import_hook(
        "dscint_jax", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
    )
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
# Eight devices on few cores: with steps queued up, their collectives can wait for each other
# forever.
jax.config.update("jax_cpu_enable_async_dispatch", False)


@pytest.fixture
def fused_loops(monkeypatch):
    """Loops are compiled as users have them: for sums whose order must not hang on the devices."""
    if "xla_cpu_use_fusion_emitters" not in os.environ.get("XLA_FLAGS", ""):
        return
    # JAX has no setting for all programs that comes after XLA_FLAGS.
    options_of = compiler.get_compile_options

    def with_emitters(*arguments, env_options_overrides=None, **options):
        chosen = {"xla_cpu_use_fusion_emitters": True, **(env_options_overrides or {})}
        return options_of(*arguments, env_options_overrides=chosen, **options)

    monkeypatch.setattr(compiler, "get_compile_options", with_emitters)


@pytest.fixture
def optimised(fused_loops):
    """Programs are compiled as users have them: for what compares compilers, or computes much."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture
def unchecked():
    """Hints are not held: for what refuses, in words, values that hints forbid."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", before)


MARKERS = {
    "slow": "also run tests marked slow",
    "exhaustive": "also run tests marked exhaustive, with --run-slow an hour or two",
}


def pytest_addoption(parser):
    for marker, meaning in MARKERS.items():
        parser.addoption(f"--run-{marker}", action="store_true", help=meaning)


def pytest_collection_modifyitems(config, items):
    for marker in MARKERS:
        if config.getoption(f"--run-{marker}"):
            continue
        for item in items:
            if marker in item.keywords:
                item.add_marker(pytest.mark.skipif(True, reason=f"needs --run-{marker}"))
    # Files with many long tests first, so that no process is left alone with one of them.
    long = collections.Counter(item.path for item in items if "slow" in item.keywords)
    items.sort(key=lambda item: -long[item.path])
