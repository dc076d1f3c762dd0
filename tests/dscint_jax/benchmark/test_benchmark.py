"""The command on all networks: killed, stopped, resumed, verified."""

import json
import signal
import subprocess
import sys
import time

import pytest

from dscint_jax.benchmark.results import checksum
from tests.dscint_jax.conftest import TESTS

CONFIG = """
import dataclasses, runpy

def get_config(size):
    plan = runpy.run_path({shipped!r})["get_config"](size)
    broken = {{"model": "resnet18", "model_options": {{"dtype": "float13"}}}}
    networks = {{"dscint": plan.networks["dscint"], "broken": broken, **plan.networks}}
    return dataclasses.replace(plan, networks=networks)
"""


def command(*words):
    return [sys.executable, "-m", "dscint_jax.benchmark", *map(str, words)]


def run(*words):
    return subprocess.run(command(*words), capture_output=True, text=True, timeout=600)


def interrupt(words, number, is_time):
    """Sends a signal once it is time; the exit status."""
    process = subprocess.Popen(command(*words), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not is_time() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(number)
    return process.wait(timeout=120)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_smoke_is_killed_stopped_resumed_and_verified(data_dir, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "cache"))
    config = tmp_path / "own.py"
    shipped = TESTS.parent / "configs" / "benchmark.py"
    config.write_text(CONFIG.format(shipped=str(shipped)))
    summary = "7 cells, 1 failed"
    work = tmp_path / "work"
    words = ["--config", f"{config}:smoke", "--workdir", work, "--data_dir", data_dir]
    cells = work / "cells" / "patient"

    def has(name, file):
        return lambda: any((cells / name).rglob(file))

    # Killed while the first trains; its training goes on, and is waited for.
    assert interrupt(words, signal.SIGKILL, has("dscint", "train_metrics.jsonl")) == -9
    # Stopped while another trains: it saves, and the status tells the signal.
    assert interrupt(words, signal.SIGTERM, has("alexnet", "train_metrics.jsonl")) == 128 + 15
    # Two processes share what is left.
    done = run(*words, "--devices", "0,1")
    assert done.returncode == 1, done.stdout + done.stderr
    assert summary in done.stdout

    results = json.loads((work / "results" / "results.json").read_text())
    states = {cell["name"]: cell["status"] for cell in results["cells"]}
    assert states.pop("broken") == "failed"
    assert {*states.values()} == {"complete"}
    page = (work / "results" / "README.md").read_text()
    assert "| broken/patient/0 | " in page
    assert "float13" in page
    assert "| Inception-v4 | " in page

    before = (work / "results" / "results.json").read_bytes()
    again = run(*words)
    assert again.returncode == 1
    assert summary in again.stdout
    assert (work / "results" / "results.json").read_bytes() == before

    verify = ["--verify", work / "results" / "results.json", "--data_dir", data_dir]
    verify += ["--workdir", tmp_path / "verify"]
    done = run(*verify)
    assert done.returncode == 0, done.stderr
    assert "dscint/patient/0: reproduced bit for bit" in done.stdout
    results["tables"]["comparison"]["patient"]["networks"][0]["metrics"]["f1"]["mean"] = 0.9792
    results["sha256"] = checksum(results)
    (work / "results" / "results.json").write_text(json.dumps(results))
    done = run(*verify)
    assert done.returncode == 2
    assert "its tables do not follow from the predictions" in done.stderr
