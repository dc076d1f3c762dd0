import errno
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from dscint_jax import compilation_cache
from dscint_jax.compilation_cache import (
    CompilationCache,
    CompilationCounter,
    _clear,
    _processor,
    chosen_folder,
)
from dscint_jax.errors import DscintError
from dscint_jax.train import train

from .conftest import TESTS

HITS, MISSES = (f"/jax/compilation_cache/cache_{kind}" for kind in ("hits", "misses"))


@pytest.fixture
def environment(tmp_path, monkeypatch):
    """An empty cache folder, and a cache that is on although this is a CPU."""
    for name in (compilation_cache.SWITCH, compilation_cache.FOLDER_VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(compilation_cache.SWITCH, "on")
    monkeypatch.setattr(compilation_cache, "MIN_COMPILE_TIME_S", 0.0)
    monkeypatch.setattr(compilation_cache.platform, "system", lambda: "Linux")
    return tmp_path / "dscint-jax" / "compilation"


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


def _entries(root):
    return sorted(root.glob("*/*-cache"))


def test_second_process_loads_what_the_first_compiled(environment):
    plain, *_ = _compute()
    with CompilationCache() as cache:
        cold, hits, misses = _compute()
    assert cache.folder.parent == environment
    assert (hits, misses) == (0, 1)
    with CompilationCache():
        warm, hits, misses = _compute()
    assert (hits, misses) == (1, 0)
    assert plain == cold == warm
    assert len(_entries(environment)) == 1
    assert not list(environment.glob("*/.*"))


def test_cache_leaves_the_configuration_of_jax_as_it_was(environment):
    before = dict(jax.config.values)
    with CompilationCache():
        assert jax.config.values != before
    assert jax.config.values == before
    assert _compute()[1:] == (0, 0)


def test_entries_are_kept_before_the_end_when_asked_to(environment):
    with CompilationCache() as cache:
        _compute()
        assert not _entries(environment)
        cache.keep()
        assert len(_entries(environment)) == 1
        # As a process that starts while the first still runs.
        names = [path.name for path in _entries(environment)]
        cache.keep()
        assert [path.name for path in _entries(environment)] == names


@pytest.mark.parametrize("damage", [lambda data: data[:200], lambda data: b"", lambda data: b"x"])
def test_damaged_entry_is_compiled_anew_without_a_word(environment, damage, capfd):
    with CompilationCache():
        good, *_ = _compute()
    (entry,) = _entries(environment)
    entry.write_bytes(damage(entry.read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with CompilationCache():
            again, hits, _ = _compute()
    assert (again, hits) == (good, 0)
    assert not capfd.readouterr().err


def test_file_system_without_hard_links_is_copied_on(environment, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    with CompilationCache():
        _compute()
    with CompilationCache():
        assert _compute()[1:] == (1, 0)
    assert len(list(environment.glob("*/*"))) == 1


def test_folder_that_cannot_be_written_is_one_warning(environment, tmp_path, capsys):
    (tmp_path / "dscint-jax").write_text("in the way")
    with CompilationCache() as cache:
        assert _compute()[1:] == (0, 0)
    assert cache.folder is None
    assert "cannot be written" in cache.reason
    error = capsys.readouterr().err
    assert error.count("warning: no compilation cache") == 1
    assert error.count("\n") == 1


PROCESS = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
from dscint_jax import compilation_cache
compilation_cache.MIN_COMPILE_TIME_S = 0.0
with compilation_cache.CompilationCache() as cache:
    def fresh(x):
        return jnp.sin(x @ x.T).sum()
    for size in range(3, 9):
        value = jax.jit(fresh)(np.ones((size, size), np.float32))
        cache.keep()
    print(float(value))
"""


def test_processes_that_write_at_once_leave_whole_entries(environment):
    command = [sys.executable, "-c", PROCESS]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    for _ in range(2):
        processes = [subprocess.Popen(command, **pipes) for _ in range(2)]
        results = [process.communicate(timeout=100) for process in processes]
        assert [process.returncode for process in processes] == [0, 0], results
        assert len(set(results)) == 1
        assert results[0][1] == ""
    assert not list(environment.glob("*/.*"))
    with CompilationCache():
        for entry in _entries(environment):
            data = jax._src.compilation_cache.decompress_executable(entry.read_bytes())
            assert len(data) > 1000
    assert sum(entry.name.startswith("jit_fresh-") for entry in _entries(environment)) == 6


def _make_entry(folder, name, size, age):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}-cache"
    path.write_bytes(b"x" * size)
    then = time.time() - age
    os.utime(path, (then, then))
    return path


def test_entries_longest_unused_go_when_there_are_too_many(tmp_path, monkeypatch):
    monkeypatch.setattr(compilation_cache, "MAX_BYTES", 250)
    old = _make_entry(tmp_path / "jaxlib-1", "a", 100, age=300)
    used = _make_entry(tmp_path / "jaxlib-1", "b", 100, age=200)
    new = _make_entry(tmp_path / "jaxlib-2", "c", 100, age=100)
    _clear(tmp_path)
    assert [path.exists() for path in (old, used, new)] == [False, True, True]


def test_folders_of_killed_processes_are_cleared_away_when_old(tmp_path):
    for name, age in (("new", 10.0), ("old", compilation_cache.STALE_AFTER_S + 10)):
        folder = tmp_path / "jaxlib-1" / f".process-{name}"
        _make_entry(folder, "a", 10, age)
        then = time.time() - age
        os.utime(folder, (then, then))
    _clear(tmp_path)
    assert [path.name for path in (tmp_path / "jaxlib-1").iterdir()] == [".process-new"]


def test_environment_chooses_the_folder(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(compilation_cache.jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(compilation_cache.platform, "system", lambda: "Linux")
    inside = Path("dscint-jax") / "compilation"
    assert chosen_folder({})[0] == tmp_path / ".cache" / inside
    assert chosen_folder({"XDG_CACHE_HOME": "/x"})[0] == Path("/x") / inside
    named = {"JAX_COMPILATION_CACHE_DIR": "/y", "XDG_CACHE_HOME": "/x"}
    assert chosen_folder(named)[0] == Path("/y")
    assert chosen_folder({**named, "DSCINT_COMPILATION_CACHE": "off"})[0] is None
    monkeypatch.setattr(compilation_cache.platform, "system", lambda: "Darwin")
    assert chosen_folder({})[0] == tmp_path / "Library" / "Caches" / inside
    with pytest.raises(DscintError, match="DSCINT_COMPILATION_CACHE is 'maybe'; it must be on or"):
        chosen_folder({"DSCINT_COMPILATION_CACHE": "maybe"})


@pytest.mark.parametrize(
    ("system", "version", "on"),
    [
        ("Linux", (0, 10, 2), True),
        ("Linux", (0, 12, 0, 1), True),
        ("Linux", (0, 10, 1), False),
        ("Darwin", (0, 12, 0), False),
    ],
)
def test_cpu_has_a_cache_where_loading_was_seen_to_work(monkeypatch, system, version, on):
    monkeypatch.setattr(compilation_cache.platform, "system", lambda: system)
    monkeypatch.setattr(compilation_cache.jax, "__version_info__", version)
    folder, reason = chosen_folder({})
    assert (folder is not None) == on == (not reason)
    for wish in ({"DSCINT_COMPILATION_CACHE": "on"}, {"JAX_COMPILATION_CACHE_DIR": "/y"}):
        assert chosen_folder(wish)[0] is not None


def test_another_processor_has_other_entries(monkeypatch):
    here = _processor()
    read = Path.read_text
    for old, new in ((" avx2", " avx3"), (" sse4_2", "")):
        monkeypatch.setattr(Path, "read_text", lambda p, o=old, n=new: read(p).replace(o, n))
        there = _processor()
        monkeypatch.undo()
        if old in read(Path("/proc/cpuinfo")):
            assert there != here
    assert _processor() == here


def test_counter_tells_what_was_compiled_and_how_often():
    def doubled(x):
        return 2 * x

    step = jax.jit(doubled)
    with CompilationCounter() as counter:
        for size in (3, 3, 4, 3, 4):
            step(np.ones(size, np.float32))
    step(np.ones(5, np.float32))
    assert counter.counts["doubled"] == 2
    assert counter.seconds > 0


@pytest.mark.slow
def test_whole_run_compiles_the_train_step_and_the_evaluation_once(config, tmp_path):
    config.steps, config.evaluate_every = 5, 2
    with CompilationCounter() as counter:
        train(config, tmp_path)
    assert counter.counts["train_step"] == 1
    assert counter.counts["eval_step"] == 1


RUN = """
import sys
from pathlib import Path
import jax
from dscint_jax.compilation_cache import CompilationCache, CompilationCounter
from dscint_jax.train import train
sys.path.insert(0, sys.argv[1])
import tiny
config = tiny.get_config()
config.data.dir = sys.argv[2]
events = []
jax.monitoring.register_event_listener(lambda event, **details: events.append(event))
with CompilationCache() as cache, CompilationCounter() as counter:
    train(config, Path(sys.argv[3]))
print("hits", events.count("/jax/compilation_cache/cache_hits"), "seconds", counter.seconds)
"""


@pytest.mark.exhaustive
def test_runs_with_cold_warm_and_no_cache_end_in_the_same_bits(data_dir, environment, tmp_path):
    found = {}
    for name, switch in (("none", "off"), ("cold", "on"), ("warm", "on")):
        workdir = tmp_path / name
        run = subprocess.run(
            [sys.executable, "-c", RUN, str(TESTS), str(data_dir), str(workdir)],
            env={**os.environ, compilation_cache.SWITCH: switch, "XLA_FLAGS": ""},
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert (run.returncode, run.stderr) == (0, "")
        words = run.stdout.split()
        with ocp.StandardCheckpointer() as checkpointer:
            items = [
                checkpointer.restore(workdir / "checkpoints" / "12" / item)
                for item in ("model", "optimizer")
            ]
        arrays = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(items)]
        found[name] = (int(words[-3]), float(words[-1]), arrays)
    assert found["none"][0] == found["cold"][0] == 0
    assert found["warm"][0] > 3
    assert found["warm"][1] < found["cold"][1] / 2
    assert found["none"][2] == found["cold"][2] == found["warm"][2]
