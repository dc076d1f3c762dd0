"""Folders and files that this user may not read or write: one line, or another place by --out.

Root may do everything; so the commands run without its capabilities, as any user does.
"""

import functools
import json
import os
import shutil
import subprocess
import sys

import pytest

from tests.dscint_jax.conftest import TESTS

WITHOUT_CAPABILITIES = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")

# Several commands in one process, as JAX takes seconds to import.
PROGRAM = """
import contextlib, io, json, runpy, sys

results = []
for module, *arguments in json.loads(sys.argv[1]):
    sys.argv = ["command", *arguments]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        except SystemExit as stopped:
            status = stopped.code
    results.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(results))
"""


@functools.cache
def _as_user():
    """What runs a command as a user who is not allowed everything."""
    if os.geteuid() != 0:
        return ()
    if not shutil.which("setpriv") or subprocess.run([*WITHOUT_CAPABILITIES, "true"]).returncode:
        pytest.skip("root cannot give up its capabilities here")
    return WITHOUT_CAPABILITIES


def _run(*words):
    return subprocess.run(
        [*_as_user(), sys.executable, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=200,
    )


def _commands(*commands):
    """Status, standard output and standard error of commands, one after the other."""
    done = _run("-c", PROGRAM, json.dumps([list(map(str, command)) for command in commands]))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def _train(workdir, data_dir):
    return _run(
        *("-m", "dscint_jax.main", "--config", TESTS / "tiny.py", "--workdir", workdir),
        f"--config.data.dir={data_dir}",
    )


def _content(folder):
    return {
        path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns)
        for path in folder.rglob("*")
        if path.is_file()
    }


def _allow(folder, *, write=False, read=True):
    mode = (0o555 if read else 0) | (0o200 if write else 0)
    for path in (folder, *folder.rglob("*")):
        path.chmod(mode)


@pytest.fixture
def run(trained, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    yield folder
    folder.chmod(0o755)
    for path in folder.rglob("*"):
        path.chmod(0o755)


def _is_one_line(error, *words):
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    for word in words:
        assert word in error


def test_colleagues_run_is_evaluated_and_reported_elsewhere_and_stays_as_it_is(run, tmp_path):
    _allow(run)
    before = _content(run)
    out = tmp_path / "mine"
    here, there, report = _commands(
        ("dscint_jax.evaluate", "--workdir", run),
        ("dscint_jax.evaluate", "--workdir", run, "--out", out),
        ("dscint_jax.report", "--workdir", run, "--out", out),
    )
    # The result is shown even where it cannot be kept.
    assert here[0] == 2
    assert "accuracy" in here[1]
    assert here[1] == there[1]
    _is_one_line(
        here[2],
        f"{run}/eval/test/predictions.csv cannot be written: Permission denied; --out DIR takes",
    )
    assert (there[0], there[2]) == (0, "")
    assert (report[0], report[2]) == (0, "")
    written = {str(path) for path in _content(out) if path.parts[1] not in ("tables", "figures")}
    assert written == {
        *("eval/test/metrics.json", "eval/test/predictions.csv", "report/index.html"),
    }
    assert _content(run) == before


@pytest.mark.slow
def test_what_may_not_be_read_of_a_run_is_named(run, data_dir, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(data_dir, data)
    (run / "checkpoints").chmod(0)
    (run / "provenance.json").chmod(0o644)
    (data / "scintigraphy").chmod(0)
    checkpoints = [
        ("dscint_jax.evaluate", "--workdir", run),
        ("dscint_jax.export", "--workdir", run, "--out", tmp_path / "o.safetensors"),
    ]
    on_data = [
        ("dscint_jax.evaluate", "--workdir", run, "--data_dir", data),
        ("tfds_builder.inspect", "--data_dir", data),
    ]
    for status, _, error in _commands(*checkpoints):
        assert status == 2
        _is_one_line(error, str(run / "checkpoints"), "ermission denied")
    (run / "checkpoints").chmod(0o755)
    for status, _, error in _commands(*on_data):
        assert status == 2
        _is_one_line(error, str(data / "scintigraphy"), "ermission denied")
    training = _train(tmp_path / "new", data)
    assert training.returncode == 2
    _is_one_line(training.stderr, str(data / "scintigraphy"), "permission denied")
    (data / "scintigraphy").chmod(0o755)
    # One record's file, which the libraries open in threads of their own.
    shard = next((data / "scintigraphy").rglob("*test*array_record*"))
    shard.chmod(0)
    copy = shutil.copytree(run, tmp_path / "copy")
    (run / "config.json").chmod(0)
    on_shard, on_config = _commands(
        ("dscint_jax.evaluate", "--workdir", copy, "--data_dir", data),
        ("dscint_jax.evaluate", "--workdir", run),
    )
    assert (on_shard[0], on_config[0]) == (2, 2)
    _is_one_line(on_shard[2], shard.name, "ermission denied")
    _is_one_line(on_config[2], str(run / "config.json"), "permission denied")


def test_place_that_may_not_be_written_is_said_before_the_data_are_read(data_dir, tmp_path):
    folder = tmp_path / "no"
    folder.mkdir(mode=0o555)
    done = _train(folder / "a" / "run", data_dir)
    assert done.returncode == 2
    _is_one_line(done.stderr, "run cannot be written: this user may not write in", str(folder))
    assert "make room" not in done.stderr
    assert done.stdout == ""


def test_finished_run_that_may_only_be_read_is_complete(run, data_dir):
    _allow(run)
    done = _train(run, data_dir)
    assert (done.returncode, done.stderr) == (0, "")
    assert "training is complete" in done.stdout
