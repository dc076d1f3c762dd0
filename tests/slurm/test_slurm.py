"""Jobs on a real SLURM of two nodes, which are both this machine."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent.parent

SUM_OVER_ALL = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from dscint_jax.cluster import run_together


def main(cluster):
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    local = jnp.arange(2.0) + 10 * cluster.process_index
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    everywhere = jax.make_array_from_process_local_data(sharding, local)
    total = jax.jit(jax.shard_map(
        lambda x: jax.lax.psum(x, "data"),
        mesh=mesh, in_specs=PartitionSpec("data"), out_specs=PartitionSpec(),
    ))(everywhere)
    print(
        f"{cluster.kind} {cluster.process_index}/{cluster.process_count} {cluster.coordinator} "
        f"{cluster.host} {jax.local_device_count()}/{jax.device_count()} {total.tolist()}",
        flush=True,
    )


run_together(main)
"""

ALONE = """
from dscint_jax.cluster import run_together

run_together(print)
"""

FAILS_IN_ONE = """
import time
from dscint_jax.cluster import run_together
from tfds_builder.commandline.errors import UserError


def main(cluster):
    if cluster.process_index == 1:
        raise UserError("the second one fails")
    time.sleep(100)


run_together(main)
"""

# Stands for the training: stops at SIGTERM in its first attempt, finishes in its second.
STAND_IN = """
import os, signal, sys, time


def parse_flags(arguments):
    if "--wrong" in arguments:
        print("error: --wrong", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    status = next(int(a.split("=")[1]) for a in sys.argv if a.startswith("--status_when_stopped="))
    again = int(os.environ.get("SLURM_RESTART_COUNT", 0))
    signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(status)))
    print(f"task {os.environ['SLURM_PROCID']} of {os.environ['SLURM_NTASKS']}", flush=True)
    print(sys.argv[2:], flush=True)
    for _ in range(0 if again else 1000):
        time.sleep(0.1)
    print("finished", flush=True)
"""

pytestmark = [pytest.mark.slow]


def _environment(devices=2):
    return {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(PROJECT),
    }


def test_two_nodes_are_detected_and_sum_over_four_devices(slurm):
    command = [sys.executable, "-c", SUM_OVER_ALL]
    state, code, log = slurm.wait(slurm.submit(command, environment=_environment()))
    assert (state, code) == ("COMPLETED", 0), log
    lines = sorted(line for line in log.splitlines() if line.startswith("SLURM"))
    assert len(lines) == 2, log
    for n, line in enumerate(lines):
        assert line.startswith(f"SLURM {n}/2 dscint-node1:"), log
        assert line.endswith(f" dscint-node{n + 1} 2/4 [22.0]"), log


def test_two_tasks_on_a_node_and_two_nodes_are_four_processes(slurm):
    job = slurm.submit(
        [sys.executable, "-c", SUM_OVER_ALL], tasks_per_node=2, environment=_environment()
    )
    state, _, log = slurm.wait(job)
    assert state == "COMPLETED", log
    assert log.count(" 2/8 [124.0]") == 4, log


def test_lone_python_in_an_allocation_of_two_tasks_runs_alone(slurm, tmp_path):
    script = tmp_path / "job.sh"
    script.write_text(f"#!/bin/bash\n{sys.executable} - <<'EOF'\n{ALONE}EOF\n")
    job = slurm.sbatch("--nodes=2", "--ntasks=2", str(script), environment=_environment())
    state, _, log = slurm.wait(job)
    assert state == "COMPLETED", log
    assert "process_count=1, kind='alone'" in log


def test_failure_in_one_process_ends_the_job_with_its_line(slurm):
    command = [sys.executable, "-c", FAILS_IN_ONE]
    state, code, log = slurm.wait(slurm.submit(command, environment=_environment()), timeout=60)
    assert state == "FAILED", log
    assert code != 0
    assert "error: the second one fails" in log


@pytest.fixture
def project(tmp_path):
    """The project's folder with a stand-in for the training, and what run.sh takes for set up."""
    for name in ("run.sh", "pyproject.toml", "constraints.txt", "launch"):
        copy = shutil.copytree if (PROJECT / name).is_dir() else shutil.copy2
        copy(PROJECT / name, tmp_path / name)
    (tmp_path / "dscint_jax").mkdir()
    (tmp_path / "dscint_jax" / "__init__.py").touch()
    (tmp_path / "dscint_jax" / "main.py").write_text(STAND_IN)
    python = tmp_path / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    stamp = "cat pyproject.toml constraints.txt | cksum > .venv/installed"
    subprocess.run(["bash", "-c", stamp], cwd=tmp_path, check=True)
    return tmp_path


def _run(project, environment, *arguments):
    return subprocess.run(
        ["./run.sh", "slurm", *arguments],
        cwd=project,
        env={**environment, "ACCELERATOR": "none", "PYTHONPATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_run_sh_submits_and_the_job_saves_before_its_time_is_over_and_resumes(slurm, project):
    arguments = ("--nodes", "2", "--time=5", "--cpus-per-task=1", "--", "--config", "a b.py")
    done = _run(project, slurm.environment, *arguments)
    assert done.returncode == 0, done.stderr
    number, log = done.stdout.split("submitted job ")[1].splitlines()[0].split("; its log: ")
    job = slurm.job(int(number), Path(log))
    slurm.wait_for_log(job, "task 1 of 2")
    # What --signal=B:USR1@120 does two minutes before the end.
    slurm.signal(job, "USR1", batch=True)
    slurm.wait_for_log(job, "goes into the queue again")
    state, code, text = slurm.wait(job)
    assert (state, code) == ("COMPLETED", 0), text
    assert text.count("saved\n") == 2, text
    assert "attempt 2" in text
    assert text.count("finished\n") == 2, text
    assert "['--config', 'a b.py']" in text


def test_cancelled_job_saves_and_stays_cancelled(slurm, project):
    done = _run(project, slurm.environment, "--nodes=2", "--cpus-per-task=1", "--", "--config=c")
    number, log = done.stdout.split("submitted job ")[1].splitlines()[0].split("; its log: ")
    job = slurm.job(int(number), Path(log))
    slurm.wait_for_log(job, "task 1 of 2")
    slurm.cancel(job)
    state, _, text = slurm.wait(job)
    assert state == "CANCELLED", text
    assert text.count("saved\n") == 2, text
    assert "queue again" not in text


def test_requeued_job_saves_and_finishes_in_its_second_attempt(slurm, project):
    done = _run(project, slurm.environment, "--nodes=2", "--cpus-per-task=1", "--", "--config=c")
    number, log = done.stdout.split("submitted job ")[1].splitlines()[0].split("; its log: ")
    job = slurm.job(int(number), Path(log))
    slurm.wait_for_log(job, "task 1 of 2")
    slurm.requeue(job)
    slurm.wait_for_log(job, "attempt 2")
    state, _, text = slurm.wait(job)
    assert state == "COMPLETED", text
    assert text.count("saved\n") == 2, text
    assert text.count("finished\n") == 2, text


def test_mistyped_arguments_are_refused_before_anything_is_submitted(slurm, project):
    done = _run(project, slurm.environment, "--", "--wrong")
    assert done.returncode == 2
    assert done.stderr == "error: --wrong\n"
    assert "submitted" not in done.stdout
