import collections
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from dscint_jax import compilation_cache
from dscint_jax.compilation_cache import CPU_SINCE, use_compilation_cache
from dscint_jax.training.train import train
from tests.dscint_jax.conftest import TESTS

HITS, MISSES = (f"/jax/compilation_cache/cache_{kind}" for kind in ("hits", "misses"))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where the entries go; nothing of the cache is set, and it is used although this is a CPU."""
    before = dict(jax.config.values)
    jax.config.update("jax_compilation_cache_dir", None)
    jax_cache.reset_cache()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compilation_cache, "CPU_SINCE", (0,))
    monkeypatch.setattr(compilation_cache, "MIN_COMPILE_TIME_S", 0.0)
    monkeypatch.setattr(compilation_cache.platform, "system", lambda: "Linux")
    yield tmp_path / "dscint-jax" / "compilation"
    for name, value in before.items():
        if jax.config.values[name] != value:
            jax.config.update(name, value)
    jax_cache.reset_cache()


def _compute():
    """The value of a function compiled anew, and the hits and misses of the cache."""
    events = []

    def listen(event, **details):
        events.append(event)

    def fresh(x):
        return jnp.sin(x @ x.T).sum()

    images = np.random.default_rng(0).normal(size=(40, 50)).astype(np.float32)
    jax.monitoring.register_event_listener(listen)
    try:
        jax.clear_caches()
        value = np.asarray(jax.jit(fresh)(images))
    finally:
        jax.monitoring.unregister_event_listener(listen)
    return value.tobytes(), events.count(HITS), events.count(MISSES)


def test_what_was_compiled_once_is_loaded_the_next_time(folder):
    plain, *_ = _compute()
    use_compilation_cache()
    cold, hits, misses = _compute()
    assert (hits, misses) == (0, 1)
    warm, hits, misses = _compute()
    assert (hits, misses) == (1, 0)
    assert plain == cold == warm
    assert len(list(folder.glob("*-cache"))) == 1
    assert folder.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("damage", [lambda data: data[:200], lambda data: b"", lambda data: b"x"])
def test_damaged_entry_is_compiled_anew_and_costs_one_warning(folder, damage):
    use_compilation_cache()
    good, *_ = _compute()
    (entry,) = folder.glob("*-cache")
    entry.write_bytes(damage(entry.read_bytes()))
    # `run_command` has it unsaid.
    with pytest.warns(UserWarning, match="Error reading persistent compilation cache") as warned:
        again, hits, _ = _compute()
    assert (again, hits, len(warned)) == (good, 0, 1)


def test_longest_unused_entry_goes_when_there_are_too_many(folder, monkeypatch):
    use_compilation_cache()
    _compute()
    (entry,) = folder.glob("*-cache")
    monkeypatch.setattr(compilation_cache, "MAX_BYTES", int(1.5 * entry.stat().st_size))
    jax.config.update("jax_compilation_cache_dir", None)
    jax_cache.reset_cache()
    use_compilation_cache()
    jax.clear_caches()
    jax.jit(lambda x: jnp.cos(x @ x.T).sum())(np.ones((40, 50), np.float32))
    assert not entry.exists()
    assert len(list(folder.glob("*-cache"))) == 1


def test_folder_that_cannot_be_made_is_one_warning(folder, tmp_path, capsys):
    (tmp_path / "dscint-jax").write_text("in the way")
    use_compilation_cache()
    assert _compute()[1:] == (0, 0)
    error = capsys.readouterr().err
    assert error.startswith("warning: no compilation cache: ")
    assert error.count("\n") == 1


def test_user_without_a_home_directory_has_no_cache(folder, monkeypatch, capsys):
    def refuse():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(compilation_cache.Path, "home", refuse)
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir is None
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("jax_compilation_cache_dir", "/y"), ("jax_enable_compilation_cache", False)],
)
def test_what_the_user_tells_jax_is_left_alone(folder, name, value):
    jax.config.update(name, value)
    before = dict(jax.config.values)
    use_compilation_cache()
    assert jax.config.values == before
    assert not folder.exists()


@pytest.mark.parametrize(
    ("system", "version", "on"),
    [
        ("Linux", (0, 11, 0), True),
        ("Linux", (0, 12, 0, 1), True),
        ("Linux", (0, 10, 1), False),
        ("Darwin", (0, 12, 0), False),
    ],
)
def test_cpu_has_a_cache_where_loading_was_seen_to_work(folder, monkeypatch, system, version, on):
    monkeypatch.setattr(compilation_cache, "CPU_SINCE", CPU_SINCE)
    monkeypatch.setattr(compilation_cache.platform, "system", lambda: system)
    monkeypatch.setattr(compilation_cache.jax, "__version_info__", version)
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == (str(folder) if on else None)


KEY = """
import jax
from jax._src.lib import xla_client

print(xla_client.get_topology_for_devices(jax.devices()).fingerprint())
"""


def test_another_processor_has_other_entries():
    # What JAX's key has of a device; flags of XLA are in the key too, but not in this.
    found = set()
    for flags in ("", "--xla_cpu_max_isa=SSE4_2"):
        run = subprocess.run(
            [sys.executable, "-c", KEY],
            env={**os.environ, "XLA_FLAGS": flags},
            capture_output=True,
            text=True,
            timeout=100,
        )
        assert run.returncode == 0, run.stderr
        found.add(run.stdout)
    assert len(found) == 2


PROCESS = """
import jax, jax.numpy as jnp, numpy as np
from dscint_jax import compilation_cache
compilation_cache.MIN_COMPILE_TIME_S = 0.0
compilation_cache.CPU_SINCE = (0,)
compilation_cache.use_compilation_cache()
def fresh(x):
    return jnp.sin(x @ x.T).sum()
for size in range(3, 9):
    value = jax.jit(fresh)(np.ones((size, size), np.float32))
print(float(value))
"""


def _environment(**changes):
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION_CACHE")}
    return {**inherited, **changes}


def test_processes_that_write_at_once_leave_whole_entries(folder, tmp_path):
    command = [sys.executable, "-W", "error", "-c", PROCESS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    environment = _environment(XDG_CACHE_HOME=str(tmp_path))
    for _ in range(2):
        processes = [subprocess.Popen(command, env=environment, **pipes) for _ in range(2)]
        results = [process.communicate(timeout=100) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], results
        assert len({printed for printed, _ in results}) == 1
    entries = list(folder.glob("*-cache"))
    for entry in entries:
        data = jax._src.compilation_cache.decompress_executable(entry.read_bytes())
        assert len(data) > 1000
    assert sum(entry.name.startswith("jit_fresh-") for entry in entries) == 6


COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"


@pytest.fixture
def compilations():
    """Counts, by name, the functions that JAX compiles."""
    counts = collections.Counter()

    def listen(event, seconds, **details):
        if event == COMPILE_EVENT:
            # JAX's own name is 'jit(train_step)'.
            counts[re.sub(r"^\w+\((.*)\)$", r"\1", str(details.get("fun_name", "")))] += 1

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield counts
    jax.monitoring.unregister_event_duration_listener(listen)


@pytest.mark.slow
def test_whole_run_compiles_the_train_step_and_the_evaluation_once(config, tmp_path, compilations):
    config = config.replaced({"steps": 5, "evaluate_every": 2})
    train(config, tmp_path)
    assert compilations["train_step"] == 1
    assert compilations["eval_step"] == 1


RUN = """
import sys
from pathlib import Path
import jax
from dscint_jax import compilation_cache
from dscint_jax.training.train import train
sys.path.insert(0, sys.argv[1])
import tiny
config = tiny.get_config().replaced({"data.dir": sys.argv[2]})
events = []
jax.monitoring.register_event_listener(lambda event, **details: events.append(event))
compilation_cache.CPU_SINCE = (0,)
compilation_cache.use_compilation_cache()
train(config, Path(sys.argv[3]))
print("hits", events.count("/jax/compilation_cache/cache_hits"))
"""


@pytest.mark.exhaustive
def test_runs_with_cold_warm_and_no_cache_end_in_the_same_bits(data_dir, tmp_path):
    found = {}
    for name, on in (("none", "false"), ("cold", "true"), ("warm", "true")):
        workdir = tmp_path / name
        run = subprocess.run(
            [sys.executable, "-c", RUN, str(TESTS), str(data_dir), str(workdir)],
            env=_environment(XDG_CACHE_HOME=str(tmp_path), JAX_ENABLE_COMPILATION_CACHE=on),
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert run.returncode == 0, run.stderr
        if jax.__version_info__ >= CPU_SINCE:
            assert run.stderr == ""
        with ocp.StandardCheckpointer() as checkpointer:
            items = [
                checkpointer.restore(workdir / "checkpoints" / "12" / item)
                for item in ("model", "optimizer")
            ]
        arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(items)]
        found[name] = (int(run.stdout.split()[-1]), arrays)
    assert found["none"][0] == found["cold"][0] == 0
    assert found["warm"][0] > 3
    assert found["none"][1] == found["cold"][1] == found["warm"][1]
