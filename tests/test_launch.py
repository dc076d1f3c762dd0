"""The launch files: that they parse, fit each other, and say what the program understands."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from dscint_jax.cluster import find_cluster
from dscint_jax.main import USAGE

PROJECT = Path(__file__).parent.parent
LAUNCH = PROJECT / "launch"


def _slurm(*arguments, **environment):
    return subprocess.run(
        ["./run.sh", "slurm", *arguments],
        cwd=PROJECT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=30,
    )


@pytest.fixture(scope="module")
def jobset():
    return yaml.safe_load((LAUNCH / "jobset.yaml").read_text())


@pytest.fixture(scope="module")
def job(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]["spec"]


@pytest.fixture(scope="module")
def container(job):
    return job["template"]["spec"]["containers"][0]


def test_jobset_has_the_fields_of_its_interface_and_no_others(jobset, job):
    assert (jobset["apiVersion"], jobset["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    assert set(jobset["spec"]) == {"network", "failurePolicy", "replicatedJobs"}
    assert set(jobset["spec"]["network"]) == {
        *("enableDNSHostnames", "subdomain", "publishNotReadyAddresses"),
    }
    assert set(jobset["spec"]["failurePolicy"]) == {"maxRestarts", "restartStrategy"}
    assert jobset["spec"]["failurePolicy"]["restartStrategy"] in ("Recreate", "BlockingRecreate")
    assert set(jobset["spec"]["replicatedJobs"][0]) == {"name", "replicas", "template"}
    assert set(job) == {"completionMode", "parallelism", "completions", "backoffLimit", "template"}
    assert job["completionMode"] == "Indexed"
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_jobset_restarts_the_whole_set_and_leaves_time_to_save(jobset, job, container):
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert job["backoffLimit"] == 0
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 60
    (status,) = [a for a in container["args"] if a.startswith("--status_when_stopped=")]
    assert int(status.partition("=")[2]) > 0


def test_every_pod_of_the_jobset_finds_its_place(monkeypatch, jobset, job, container):
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1
    environment = {each["name"]: each["value"] for each in container["env"]}
    pod_0 = f"{jobset['metadata']['name']}-{replicated['name']}-0-0"
    port = container["ports"][0]["containerPort"]
    coordinator = f"{pod_0}.{jobset['spec']['network']['subdomain']}:{port}"
    assert job["completions"] == job["parallelism"]
    for index in range(job["parallelism"]):
        for name, value in {**environment, "JOB_COMPLETION_INDEX": str(index)}.items():
            monkeypatch.setenv(name, value)
        cluster = find_cluster(None, None, None, "auto")
        assert (cluster.kind, cluster.coordinator) == ("environment", coordinator)
        assert (cluster.process_index, cluster.process_count) == (index, job["parallelism"])


def test_jobset_mounts_its_volumes_and_gives_flags_that_exist(job, container):
    volumes = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert int(container["resources"]["limits"]["nvidia.com/gpu"]) > 0
    for argument in container["args"]:
        flag = argument.partition("=")[0]
        assert flag.startswith("--config.") or flag in USAGE


def test_dry_run_prints_the_command_and_the_script_and_submits_nothing():
    done = _slurm(
        *("--nodes", "2", "--gpus", "a100:4", "--time=1:00:00", "--account=physics", "--dry-run"),
        *("--", "--config", "my configs/a.py", "--workdir=w"),
        # Where there is no sbatch either.
        PATH="/usr/bin:/bin",
    )
    assert done.returncode == 0, done.stderr
    command, _, script = done.stdout.partition("\n\n")
    assert command == (
        "sbatch --nodes=2 --time=1:00:00 --account=physics --gres=gpu:a100:4 launch/train.sbatch "
        "--config my\\ configs/a.py --workdir=w"
    )
    assert script == (LAUNCH / "train.sbatch").read_text()


def test_slurm_help_is_printed_and_is_success():
    done = _slurm("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ./run.sh slurm")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--nodes", "2"], "-- and the training's arguments are missing"),
        (["--nodes", "--", "--config=c"], "--nodes needs a value"),
        (["--gpus", "four", "--", "--config=c"], "--gpus four is not a number"),
        (["two", "--", "--config=c"], "unexpected argument 'two'"),
    ],
)
def test_mistakes_in_the_options_are_one_line(arguments, word):
    done = _slurm(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert word in done.stderr


def test_setup_refuses_what_is_no_extra():
    done = subprocess.run(
        ["./run.sh", "setup", "dev", "gpu"], cwd=PROJECT, capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: 'gpu' is no extra of pyproject.toml")


@pytest.mark.parametrize("status, requeued", [(75, True), (143, True), (1, False), (0, False)])
def test_batch_script_requeues_a_run_that_has_saved_while_the_signal_was_passed_on(
    status, requeued, tmp_path
):
    programs = {
        # Ends by itself, as a training that has saved (143: of two processes, one a moment before
        # the other); the script's signal comes from within.
        "srun": f"kill -USR1 $PPID; sleep 0.3; exit {status}",
        # Longer than the training takes to save.
        "scancel": "sleep 1",
        "scontrol": "echo $*",
    }
    for name, body in programs.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = subprocess.run(
        ["bash", LAUNCH / "train.sbatch"],
        env={
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            **{"SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n"},
        },
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == status, done.stderr
    assert ("requeue 7" in done.stdout) == requeued


def test_batch_script_is_bash_and_names_main_and_its_flag():
    script = LAUNCH / "train.sbatch"
    assert subprocess.run(["bash", "-n", str(script)]).returncode == 0
    text = script.read_text()
    assert "-m dscint_jax.main" in text
    assert '--status_when_stopped="$STOPPED"' in text
    assert "--status_when_stopped" in USAGE


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_scripts_keep_unix_line_ends_where_git_is_set_to_change_them(tmp_path):
    scripts = ("run.sh", ".ci/run", "launch/train.sbatch")
    checkout, clone = tmp_path / "checkout", tmp_path / "clone"
    for name in (".gitattributes", *scripts):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(PROJECT / name, checkout / name)
    git = ("git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "core.autocrlf=true")
    for words in (("init", "-q"), ("add", "."), ("commit", "-qm", "all")):
        subprocess.run([*git, *words], cwd=checkout, check=True, capture_output=True)
    command = ["git", "clone", "-q", "-c", "core.autocrlf=true", str(checkout), str(clone)]
    subprocess.run(command, check=True, capture_output=True)
    for name in scripts:
        assert b"\r" not in (clone / name).read_bytes()
