"""The training on a real SLURM: two nodes of two devices each, one killed, the job requeued."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dscint_jax.run.trackers.json_lines import read_metrics
from tests.dscint_jax.conftest import cohort, data_dir  # noqa: F401 - fixtures
from tests.dscint_jax.runs import assert_same_bits

PROJECT = Path(__file__).parent.parent.parent
STEPS = 400
KILLED_AT = 60
RESENT_AFTER_S = 65

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def _command(data, workdir, steps=STEPS):
    return [
        *(sys.executable, "-m", "dscint_jax.main", "--config", str(PROJECT / "tests" / "tiny.py")),
        *("--workdir", str(workdir), f"--config.data.dir={data}", f"--config.steps={steps}"),
        *("--config.evaluate_every=20", "--config.keep_last=2"),
    ]


def _environment(devices):
    return {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(PROJECT),
    }


def _process(job, number):
    """The process id of one task of a job."""
    wanted = {f"SLURM_JOB_ID={job.id}".encode(), f"SLURM_PROCID={number}".encode()}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = set((folder / "environ").read_bytes().split(b"\0"))
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if wanted <= variables and words[1:3] == [b"-m", b"dscint_jax.main"]:
            return int(folder.name)
    raise AssertionError(f"task {number} of job {job.id} does not run")


@pytest.fixture(scope="module")
def undisturbed(slurm, data_dir, tmp_path_factory):  # noqa: F811 - the fixture
    workdir = tmp_path_factory.mktemp("two_nodes")
    job = slurm.submit(_command(data_dir, workdir), environment=_environment(2))
    state, code, log = slurm.wait(job, timeout=400)
    assert (state, code) == ("COMPLETED", 0), log
    return workdir


def test_two_nodes_with_two_devices_each_train_as_one_process_with_four(
    slurm,
    data_dir,  # noqa: F811 - the fixture
    tmp_path,
):
    alone, together = tmp_path / "alone", tmp_path / "together"
    job = slurm.submit(_command(data_dir, together, 20), environment=_environment(2))
    state, code, log = slurm.wait(job, timeout=400)
    assert (state, code) == ("COMPLETED", 0), log
    environment = {**os.environ, **_environment(4)}
    command = [*_command(data_dir, alone, 20), "--distributed=off"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    one, two = (
        [line["loss"] for line in read_metrics(workdir) if "loss" in line]
        for workdir in (alone, together)
    )
    assert len(one) == 20
    np.testing.assert_allclose(two, one, rtol=1e-5)


@pytest.mark.exhaustive
def test_killed_process_ends_the_job_within_a_minute_and_requeued_it_ends_in_the_same_bits(
    slurm,
    undisturbed,
    data_dir,  # noqa: F811 - the fixture
    tmp_path,
):
    job = slurm.submit(_command(data_dir, tmp_path), environment=_environment(2))
    deadline = time.monotonic() + 300
    while not any(line["step"] >= KILLED_AT for line in read_metrics(tmp_path)):
        assert time.monotonic() < deadline, job.log
        time.sleep(0.02)
    os.kill(_process(job, 1), signal.SIGKILL)
    state, code, log = slurm.wait(job, timeout=60)
    assert state == "FAILED", (code, log)
    assert code != 0
    assert "training is complete" not in log
    # What a busy node does not answer in time, such as the end of the first attempt, SLURM sends
    # again a minute later, to whatever then runs under the job's number.
    time.sleep(RESENT_AFTER_S)
    slurm.requeue(job)
    slurm.wait_for_log(job, "resuming after step", timeout=200)
    state, code, log = slurm.wait(job, timeout=400)
    assert (state, code) == ("COMPLETED", 0), log
    assert "stopped by" not in log
    assert_same_bits(undisturbed, tmp_path, STEPS)
    assert read_metrics(tmp_path) == read_metrics(undisturbed)


@pytest.mark.exhaustive
def test_two_nodes_go_on_from_the_checkpoint_before_a_damaged_one(
    slurm,
    undisturbed,
    data_dir,  # noqa: F811 - the fixture
    tmp_path,
):
    workdir = tmp_path / "run"
    shutil.copytree(undisturbed, workdir)
    manifest = workdir / "checkpoints" / str(STEPS) / "model" / "manifest.ocdbt"
    manifest.write_bytes(manifest.read_bytes()[:50])
    job = slurm.submit(_command(data_dir, workdir), environment=_environment(2))
    state, code, log = slurm.wait(job, timeout=200)
    assert (state, code) == ("COMPLETED", 0), log
    assert log.count(f"/{STEPS} is damaged") == 1
    assert f"resuming after step {STEPS - 20}" in log
    assert_same_bits(undisturbed, workdir, STEPS)
    assert read_metrics(workdir) == read_metrics(undisturbed)
