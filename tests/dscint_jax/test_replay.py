import json
import re
import shutil
import subprocess
import sys

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy

from dscint_jax.replay import read_dump, replay
from dscint_jax.run.trackers.json_lines import read_metrics
from dscint_jax.training.train import train
from tests.dscint_jax.conftest import load_tiny_config
from tfds_builder.commandline.errors import UserError


def _config(data_dir):
    config = load_tiny_config()
    config = config.replaced(
        {
            "data.dir": str(data_dir),
            "data.pool": 1,
            "steps": 12,
            "log_every": 3,
            "evaluate_every": 4,
            "keep_last": 3,
        }
    )
    return config


@pytest.fixture(scope="module")
def good_dir(make_data_set):
    return make_data_set(train=40, validation=8)


@pytest.fixture(scope="module")
def bad_dir(make_data_set):
    """One of 40 training images has a scale whose root there is none of."""
    return make_data_set(train=40, validation=8, scales={"train-17": -9.0})


@pytest.fixture(scope="module")
def stopped(bad_dir, tmp_path_factory):
    """A run that met the image, what it said, and at which step."""
    workdir = tmp_path_factory.mktemp("stopped")
    with pytest.raises(UserError) as caught:
        train(_config(bad_dir), workdir)
    (folder,) = (workdir / "nonfinite").iterdir()
    return workdir, str(caught.value), int(folder.name)


def test_training_stops_with_the_step_the_image_and_the_command_that_replays_it(stopped):
    workdir, message, step = stopped
    assert (
        f"the loss is not finite at step {step}, its batch holds images whose scale is" in message
    )
    assert "(train-17)" in message
    assert f"python -m dscint_jax.replay --workdir {workdir} --step {step}" in message
    facts = json.loads((workdir / "nonfinite" / str(step) / "step.json").read_text())
    assert len(facts["image_id"]) == 8
    assert "train-17" in facts["image_id"]
    assert facts["patient_key"][facts["image_id"].index("train-17")] == "patient-train-17"
    # Neither its metrics nor those of later steps, which were not taken, are in the log.
    assert all(line["step"] < step for line in read_metrics(workdir))


def test_kept_state_is_the_one_before_the_bad_step(stopped, good_dir, tmp_path):
    # The same order and the same images but for one scale: the same steps up to the bad one.
    workdir, _, step = stopped
    config = _config(good_dir)
    config = config.replaced(
        {"steps": 12, "optimizer.schedule": "cosine", "evaluate_every": 1, "keep_last": 12}
    )
    train(config, tmp_path)
    kept = read_dump(workdir, step).state
    assert int(kept.step) == step - 1
    if step == 1:
        return
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.restore(tmp_path.absolute() / "checkpoints" / str(step - 1) / "model")
    arrays = jax.tree.leaves((saved["params"], saved["batch_stats"]))
    for a, b in zip(arrays, jax.tree.leaves((kept.params, kept.batch_stats)), strict=True):
        np.testing.assert_array_equal(np.asarray(a), b)


def test_same_command_stops_at_the_same_step_again(stopped, bad_dir, tmp_path):
    workdir, message, _ = stopped
    again = tmp_path / "run"
    shutil.copytree(workdir, again)
    with pytest.raises(UserError) as caught:
        train(_config(bad_dir), again)
    assert str(caught.value) == message.replace(str(workdir), str(again))


def test_replay_names_the_operation_and_the_image_that_come_first(stopped):
    workdir, _, step = stopped
    dump, found = replay(workdir)
    assert dump.step == step
    assert found[0].what == "batch scale"
    assert found[0].note == "no positive number: train-17"
    lines = {one.what: one for one in found}
    assert re.fullmatch(r"\w+ at normalise\.py:\d+ \(\w+\)", found[1].what)
    assert found[1].note.startswith("the first result with a nan")
    assert lines["probabilities"].note.endswith("train-17")
    assert "metric loss" in lines
    assert any(name.startswith("gradient of ") for name in lines)


def _run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "dscint_jax.replay", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.slow
def test_command_prints_one_table(stopped):
    done = _run("--workdir", stopped[0])
    assert done.returncode == 0, done.stderr
    assert f"step {stopped[2]}, taken on 8 x cpu: what is not finite" in done.stdout
    assert "train-17" in done.stdout
    assert done.stderr == ""


@pytest.mark.slow
def test_step_that_is_finite_when_taken_again_is_told_by_the_status(stopped, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(stopped[0], workdir)
    path = workdir / "nonfinite" / str(stopped[2]) / "batch.safetensors"
    batch = safetensors.numpy.load_file(path)
    batch["scale"] = np.full_like(batch["scale"], 9.0)
    path.write_bytes(safetensors.numpy.save(batch))
    done = _run("--workdir", workdir)
    assert done.returncode == 1
    assert "is finite when it is taken again on cpu; it was taken on 8 x cpu" in done.stdout


@pytest.mark.exhaustive
def test_learning_rate_that_is_too_high_stops_with_a_step_that_replays(good_dir, tmp_path):
    config = _config(good_dir)
    config = config.replaced({"optimizer.learning_rate": 1e30})
    with pytest.raises(UserError, match=r"not finite at step \d+, its batch: .*lower config\."):
        train(config, tmp_path)
    _, found = replay(tmp_path)
    assert any("the first" in one.note for one in found)


def test_what_is_not_there_or_damaged_is_named(stopped, trained, tmp_path):
    with pytest.raises(UserError, match="holds no step whose loss was not finite"):
        read_dump(trained)
    with pytest.raises(UserError, match=rf"--step 999: .* holds {stopped[2]}"):
        read_dump(stopped[0], 999)
    workdir = tmp_path / "run"
    shutil.copytree(stopped[0], workdir)
    path = workdir / "nonfinite" / str(stopped[2]) / "state.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"state\.safetensors is damaged"):
        read_dump(workdir)
