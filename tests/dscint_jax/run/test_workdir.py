import contextlib
import errno
import json
import re
import signal
import socket
import subprocess
import sys

import jax
import pytest

from dscint_jax.run import provenance
from dscint_jax.run.provenance import (
    Ending,
    attempts_of,
    check_data,
    is_complete,
    note_completed,
    record_attempt,
)
from dscint_jax.run.workdir import check_claim, claim, config_of
from tests.dscint_jax.conftest import load_tiny_config
from tfds_builder.commandline.command import available_cores
from tfds_builder.commandline.errors import UserError

CLASSES = ("normal", "metastasis")


def _record(folder, **options):
    settings = {"fingerprint": "f" * 64, "classes": CLASSES, "start_step": 0, "steps": 9, **options}
    record_attempt(folder, **settings)
    return attempts_of(folder)[-1]


def _no_details(step):
    return {}


def _end(folder, step, why="", details=_no_details):
    with Ending(folder, 0, details) as ending:
        _advance(ending, step, why=why)


def _advance(ending, step, error=None, why=""):
    ending.step, ending.why = step, why
    if error:
        raise error


def test_attempt_tells_what_it_ran_with(tmp_path):
    attempt = _record(tmp_path, start_step=7, spmd="pmap")
    assert attempt["start_step"] == 7
    assert (attempt["device_count"], attempt["local_device_count"]) == (8, 8)
    assert attempt["processor"]
    assert attempt["cores"] == available_cores()
    assert attempt["processes"] == 1
    assert len(attempt["devices"]) == 8
    assert attempt["jax_config"] == {
        "spmd": "pmap",
        "compilation_cache": True,
        "enable_x64": False,
        "default_matmul_precision": jax.config.jax_default_matmul_precision,
        "threefry_partitionable": True,
    }
    assert attempt["versions"]["jax"] == jax.__version__


def test_arguments_are_those_of_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["main.py", "--workdir", "w"])
    assert _record(tmp_path)["arguments"] == ["--workdir", "w"]


def test_name_of_the_machine_is_left_out(tmp_path):
    name = socket.gethostname()
    if len(name) < 5:
        pytest.skip("too short a name to look for")
    _record(tmp_path)
    assert name not in (tmp_path / "provenance.json").read_text()


def test_end_is_added_to_the_newest_attempt(tmp_path):
    _record(tmp_path)
    _end(tmp_path, 5, "SIGTERM")
    _record(tmp_path, start_step=5)
    _end(tmp_path, 12, details=lambda step: {"summary": f"{step} steps in 3 s"})
    first, second = attempts_of(tmp_path)
    assert (first["ended"]["why"], first["ended"]["step"]) == ("SIGTERM", 5)
    assert (second["ended"]["why"], second["ended"]["step"]) == ("completed", 12)
    assert second["ended"]["summary"] == "12 steps in 3 s"
    assert second["ended"]["when"] >= second["started"]


def test_attempts_of_early_versions_are_read(tmp_path):
    old = {"dataset_fingerprint": "f" * 64, "start_step": 0, "classes": CLASSES}
    (tmp_path / "provenance.json").write_text(json.dumps([old]))
    _record(tmp_path, start_step=3)
    check_data(tmp_path, "f" * 64)
    _end(tmp_path, 12)
    assert attempts_of(tmp_path)[-1]["ended"]["why"] == "completed"


def test_run_killed_after_its_last_checkpoint_is_noted_as_complete(tmp_path):
    note_completed(tmp_path, 12)
    assert not (tmp_path / "provenance.json").exists()
    _record(tmp_path)
    assert not is_complete(tmp_path)
    note_completed(tmp_path, 12)
    assert is_complete(tmp_path)
    before = (tmp_path / "provenance.json").read_bytes()
    note_completed(tmp_path, 12)
    assert (tmp_path / "provenance.json").read_bytes() == before


def test_ending_that_lacks_its_reason_is_noted_anew(tmp_path):
    _record(tmp_path)
    (attempt,) = attempts_of(tmp_path)
    (tmp_path / "provenance.json").write_text(json.dumps([{**attempt, "ended": {"step": 3}}]))
    assert not is_complete(tmp_path)
    note_completed(tmp_path, 12)
    assert is_complete(tmp_path)


def test_duration_that_was_put_into_a_runs_config_is_named(tmp_path):
    config = load_tiny_config()
    claim(tmp_path, config)
    text = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(text.replace('"steps": 12', '"steps": "3 epochs"'))
    for read in (lambda: check_claim(tmp_path, config), lambda: config_of(tmp_path)):
        with pytest.raises(UserError, match=r"config\.json: config\.steps is '3 epochs'"):
            read()


def test_only_the_first_process_writes(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance.jax, "process_index", lambda: 1)
    record_attempt(tmp_path, fingerprint="f" * 64, classes=CLASSES, start_step=0, steps=9)
    _end(tmp_path, 3)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "why"),
    [
        (None, "completed"),
        (KeyboardInterrupt(), "SIGINT"),
        (UserError("the loss\nis nan"), "error: UserError: the loss is nan"),
        (MemoryError(), "error: MemoryError"),
    ],
)
def test_every_end_is_recorded_with_its_reason(tmp_path, error, why):
    _record(tmp_path)
    expected = pytest.raises(type(error)) if error else contextlib.nullcontext()
    with expected, Ending(tmp_path, 4, lambda step: {"summary": f"until {step}"}) as ending:
        _advance(ending, 6, error)
    ended = attempts_of(tmp_path)[-1]["ended"]
    assert (ended["why"], ended["step"], ended["summary"]) == (why, 6, "until 6")


def test_signal_that_the_loop_obeyed_is_the_reason(tmp_path):
    _record(tmp_path)
    with pytest.raises(SystemExit), Ending(tmp_path, 4, _no_details) as ending:
        _advance(ending, 5, SystemExit(0), why=signal.SIGTERM.name)
    assert attempts_of(tmp_path)[-1]["ended"]["why"] == "SIGTERM"


def test_error_is_not_hidden_by_a_disk_that_takes_no_record_of_it(tmp_path, monkeypatch):
    def refuse(path, value):
        raise OSError(errno.ENOSPC, "No space left on device")

    _record(tmp_path)
    monkeypatch.setattr(provenance, "write_json", refuse)
    with pytest.raises(ZeroDivisionError), Ending(tmp_path, 4, _no_details):
        raise ZeroDivisionError
    with pytest.raises(OSError, match="No space left"), Ending(tmp_path, 4, _no_details):
        pass


def test_killed_attempt_is_told_from_one_that_ended(tmp_path):
    script = f"""
import os, signal
from pathlib import Path
from dscint_jax.run.provenance import Ending, record_attempt
workdir = Path({str(tmp_path)!r})
record_attempt(workdir, fingerprint="f" * 64, classes=("a",), start_step=0, steps=9)
with Ending(workdir, 0, lambda step: {{}}):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script], timeout=60).returncode == -9
    assert attempts_of(tmp_path)[-1]["ended"] is None


def _claim(folder, fields=None, take=claim):
    return take(folder, load_tiny_config().replaced(fields or {}))


def test_more_steps_are_taken_and_recorded_and_fewer_refused(tmp_path):
    assert _claim(tmp_path) is None
    before = (tmp_path / "config.json").read_bytes()
    assert _claim(tmp_path, {"steps": 20}, check_claim) == 12
    assert (tmp_path / "config.json").read_bytes() == before
    assert _claim(tmp_path, {"steps": 20}) == 12
    assert config_of(tmp_path).steps == 20
    assert _claim(tmp_path, {"steps": 20}) is None
    with pytest.raises(UserError, match=r"config\.steps is 20 there and 12 here"):
        _claim(tmp_path)
    assert config_of(tmp_path).steps == 20


def test_more_steps_with_another_change_are_another_config(tmp_path):
    _claim(tmp_path)

    with pytest.raises(UserError, match=r"config\.seed is 0 there and 5 here; use another"):
        _claim(tmp_path, {"steps": 20, "seed": 5})
    assert config_of(tmp_path).steps == 12


def test_run_of_other_types_is_refused_wherever_its_config_is_read(tmp_path):
    _claim(tmp_path)
    _record(tmp_path)
    expected = r"was trained with JAX_ENABLE_X64=0, and here it is 1; set JAX_ENABLE_X64=0"
    jax.config.update("jax_enable_x64", True)
    try:
        for read in (config_of, _claim):
            with pytest.raises(UserError, match=expected):
                read(tmp_path)
    finally:
        jax.config.update("jax_enable_x64", False)
    assert config_of(tmp_path).steps == 12


def test_commit_is_that_of_the_checkout_and_not_of_a_repository_around_an_installed_copy(
    tmp_path, monkeypatch
):
    installed = tmp_path / "venv" / "workdir.py"
    installed.parent.mkdir()
    installed.touch()
    git = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "m"], check=True)
    monkeypatch.setattr(provenance, "__file__", str(installed))
    assert provenance._git_commit() == "unknown"
    subprocess.run([*git, "add", "venv"], check=True)
    subprocess.run([*git, "commit", "-q", "-m", "m"], check=True)
    assert re.fullmatch("[0-9a-f]{40}", provenance._git_commit())
