"""Runs that something befalls, started again: they end in the bits of an undisturbed one."""

import contextlib
import gc
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from dscint_jax.evaluate.evaluate import evaluate
from dscint_jax.run.checkpoint import Checkpointer
from dscint_jax.run.trackers.json_lines import read_metrics
from dscint_jax.training import parallel
from dscint_jax.training.train import train
from tests.dscint_jax.conftest import load_tiny_config
from tests.dscint_jax.runs import (
    STEPS,
    assert_same_bits,
    command,
    finish,
    interrupt,
    largest_file_read,
    start,
    wait_for_step,
)
from tfds_builder.commandline.errors import UserError

MUON = "--config.optimizer.name=muon"
"""The optimiser whose state has parts of its own for kernels and for the rest."""


@pytest.fixture(scope="module")
def undisturbed(data_dir, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("undisturbed")
    finish(command(data_dir, workdir, MUON))
    return workdir


@pytest.mark.slow
def test_killed_at_two_random_moments_it_ends_in_the_same_bits(data_dir, undisturbed, tmp_path):
    seed = random.SystemRandom().randrange(2**32)
    print(f"moments drawn from seed {seed}")
    draw = random.Random(seed)
    words, killed = command(data_dir, tmp_path, MUON), 0
    for step in sorted(draw.sample(range(3, STEPS - 5), 2)):
        code, _ = interrupt(words, tmp_path, step, signal.SIGKILL, draw.uniform(0, 0.05))
        killed += code == -signal.SIGKILL
    assert killed
    finish(words)
    assert_same_bits(undisturbed, tmp_path)
    assert read_metrics(tmp_path) == read_metrics(undisturbed)
    attempts = json.loads((tmp_path / "provenance.json").read_text())
    assert [a["start_step"] for a in attempts] == sorted(a["start_step"] for a in attempts)


@pytest.mark.slow
def test_sigterm_saves_the_step_it_stopped_at_and_exits_with_success(
    data_dir, undisturbed, tmp_path
):
    words = command(data_dir, tmp_path, MUON)
    code, output = interrupt(words, tmp_path, 7, signal.SIGTERM)
    assert code == 0, output
    assert "stopped by SIGTERM after step" in output
    stopped = int(output.split("after step ")[-1].split(",")[0])
    assert str(stopped) in os.listdir(tmp_path / "checkpoints")
    assert f"resuming after step {stopped}" in finish(words)
    assert_same_bits(undisturbed, tmp_path)


@pytest.mark.exhaustive
def test_sigusr1_under_slurm_saves_and_puts_the_job_into_the_queue_again(
    data_dir, tmp_path, monkeypatch
):
    workdir, asked = tmp_path / "run", tmp_path / "asked"
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(f'#!/bin/sh\nls {workdir}/checkpoints >{asked}; echo "$@" >>{asked}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    words = command(data_dir, workdir, "--distributed=off", "--status_when_stopped=75")
    code, output = interrupt(words, workdir, 7, signal.SIGUSR1)
    assert code == 75, output
    stopped = output.split("stopped by SIGUSR1 after step ")[1].split(",")[0]
    assert output.endswith("job 17 goes into the queue again\n")
    # The checkpoint was whole before SLURM was asked, which ends the job at once.
    saved = asked.read_text().split()
    assert stopped in saved
    assert saved[-2:] == ["requeue", "17"]
    ended = json.loads((workdir / "provenance.json").read_text())[-1]["ended"]
    assert (ended["why"], ended["step"]) == ("SIGUSR1", int(stopped))


@pytest.mark.exhaustive
def test_sigterm_before_the_first_step_ends_at_once_and_the_command_starts_again(
    data_dir, undisturbed, tmp_path
):
    words = command(data_dir, tmp_path, MUON)
    process = start(words)
    for line in process.stdout:
        if line.startswith("1 x cpu"):
            break
    told = time.monotonic()
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert "stopped by SIGTERM, nothing to save" in output
    assert time.monotonic() - told < 10
    assert "resuming" not in finish(words)
    assert_same_bits(undisturbed, tmp_path)
    assert read_metrics(tmp_path) == read_metrics(undisturbed)


HOLD = """
import sys
from pathlib import Path
from dscint_jax.run.lock import held

with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.exhaustive
def test_second_training_in_a_work_directory_is_refused_until_the_first_has_gone(config, tmp_path):
    words = [sys.executable, "-c", HOLD, str(tmp_path)]
    holder = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"is in use by process {holder.pid} on "):
        train(config, tmp_path)
    assert os.listdir(tmp_path) == [".lock"]
    # The system takes the lock back, however its holder ends.
    holder.kill()
    holder.communicate()
    train(config, tmp_path)
    assert Checkpointer(tmp_path, read_only=True).last_step() == config.steps


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 8 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.exhaustive
def test_full_disk_is_one_line_and_with_room_again_the_run_ends_in_the_same_bits(
    data_dir, undisturbed, small_disk
):
    workdir = small_disk / "run"
    words = command(data_dir, workdir, MUON)
    process = start(words)
    wait_for_step(process, workdir, 12)
    ballast = small_disk / "ballast"
    with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    assert shutil.disk_usage(small_disk).free < 4096
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2, output
    assert "Traceback" not in output
    error = output.splitlines()[-1]
    assert error.startswith("error: ")
    assert "the disk is full (0 bytes free in " in error
    assert "is intact: make room, and the same command goes on from it" in error
    saved = Checkpointer(workdir, read_only=True)
    assert saved.is_whole(saved.last_step())
    ballast.unlink()
    assert f"resuming after step {saved.last_step()}" in finish(words)
    assert_same_bits(undisturbed, workdir)
    assert read_metrics(workdir) == read_metrics(undisturbed)


def _truncate(checkpoint):
    # Of the files of small arrays some are not read again; the manifest is.
    manifest = checkpoint / "model" / "manifest.ocdbt"
    manifest.write_bytes(manifest.read_bytes()[:50])


def _flip(checkpoint):
    path = largest_file_read(checkpoint)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _remove(checkpoint):
    shutil.rmtree(checkpoint / "optimizer")


@pytest.fixture(scope="module")
def three_kept(data_dir, tmp_path_factory):
    """A run of 12 steps that kept its checkpoints of steps 4, 8 and 12."""
    config = load_tiny_config()
    config = config.replaced({"data.dir": str(data_dir), "keep_last": 3})
    workdir = tmp_path_factory.mktemp("three")
    train(config, workdir)
    return workdir


@pytest.mark.parametrize(
    ("damage", "damaged"),
    [
        (_truncate, (12,)),
        pytest.param(_flip, (12,), marks=pytest.mark.slow),
        pytest.param(_remove, (12,), marks=pytest.mark.exhaustive),
        pytest.param(_truncate, (8, 12), marks=pytest.mark.exhaustive),
        pytest.param(_truncate, (4, 8, 12), marks=pytest.mark.exhaustive),
    ],
)
def test_run_with_damaged_checkpoints_goes_on_from_a_whole_one_to_the_same_bits(
    config, three_kept, tmp_path, capsys, caplog, damage, damaged
):
    config = config.replaced({"keep_last": 3})
    shutil.copytree(three_kept, tmp_path / "damaged")
    for step in damaged:
        damage(tmp_path / "damaged" / "checkpoints" / str(step))
    capsys.readouterr()
    train(config, tmp_path / "damaged")
    printed = capsys.readouterr().out
    assert printed.count("is damaged") == len(damaged)
    gc.collect()
    assert "Traceback" not in caplog.text
    start = min(damaged) - 4
    assert ("resuming after step" in printed) == (start > 0)
    for step in (4, 8, 12):
        assert_same_bits(three_kept, tmp_path / "damaged", step)
    assert read_metrics(three_kept) == read_metrics(tmp_path / "damaged")


@pytest.mark.parametrize("damage", [_truncate, _flip, lambda path: shutil.rmtree(path / "model")])
def test_evaluator_goes_on_from_the_one_before_and_says_so(
    three_kept, tmp_path, capsys, caplog, damage
):
    workdir = shutil.copytree(three_kept, tmp_path / "run")
    damage(workdir / "checkpoints" / "12")
    capsys.readouterr()
    assert evaluate(workdir, split="test", checkpoint="latest")["step"] == 8
    gc.collect()
    shown = capsys.readouterr()
    assert "/12 is damaged" in shown.out
    assert "Traceback" not in shown.err + caplog.text


def _mesh(devices):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


@pytest.mark.exhaustive
@pytest.mark.parametrize("spmd", ["jit", "pmap"])
def test_run_resumes_on_another_number_of_devices_with_the_same_losses(
    config, tmp_path, monkeypatch, capsys, spmd
):
    config = config.replaced({"steps": 24, "evaluate_every": 8, "keep_last": 3, "spmd": spmd})
    train(config, tmp_path / "eight")
    moved = tmp_path / "moved"
    shutil.copytree(tmp_path / "eight", moved)
    for devices, gone in ((4, (16, 24)), (8, (24,))):
        for step in gone:
            shutil.rmtree(moved / "checkpoints" / str(step))
        if devices == 4:
            monkeypatch.setattr(parallel, "data_mesh", lambda: _mesh(4))
        else:
            monkeypatch.undo()
        capsys.readouterr()
        train(config, moved)
        printed = capsys.readouterr().out
        assert f"{devices} x cpu" in printed
        assert f"resuming after step {gone[0] - 8}" in printed
    losses = [
        [line["loss"] for line in read_metrics(workdir) if "loss" in line]
        for workdir in (tmp_path / "eight", moved)
    ]
    assert len(losses[0]) == 24
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
