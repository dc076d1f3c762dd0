import csv
import json
import os
import shutil
import sys

import jax
import numpy as np
import pytest

from dscint_jax.config import Optimizer
from dscint_jax.evaluate.evaluate import evaluate
from dscint_jax.run.trackers.json_lines import read_lines, read_metrics
from dscint_jax.training.optimizers import make_schedule
from dscint_jax.training.train import train
from tests.dscint_jax.runs import assert_same_bits, finish
from tfds_builder import build
from tfds_builder.commandline.errors import UserError


def test_finished_run_is_left_alone_and_another_config_refused(trained, config):
    before = sorted(path.stat().st_mtime_ns for path in trained.rglob("*"))
    train(config, trained)
    assert before == sorted(path.stat().st_mtime_ns for path in trained.rglob("*"))
    config = config.replaced({"optimizer.learning_rate": 0.5})
    with pytest.raises(UserError, match=r"config\.optimizer\.learning_rate is 0\.004 there"):
        train(config, trained)


def test_a_warm_up_that_is_cut_is_said(trained, config, capsys):
    with pytest.raises(UserError, match="warmup_steps is 2 there and 99 here"):
        train(config.replaced({"optimizer.warmup_steps": 99}), trained)
    assert "note: config.optimizer.warmup_steps is 99, but there are 12" in capsys.readouterr().out


def test_another_number_of_cores_is_said_where_it_changes_the_bits(
    trained, config, tmp_path, capsys
):
    workdir = shutil.copytree(trained, tmp_path / "run")
    attempts = json.loads((workdir / "provenance.json").read_text())
    attempts[-1]["cores"] = 999
    (workdir / "provenance.json").write_text(json.dumps(attempts))
    train(config.replaced({"steps": 13}), workdir)
    assert "note: 999 cores took the steps so far" in capsys.readouterr().out


def test_best_and_last_checkpoints_are_kept(trained):
    lines = [line for line in read_metrics(trained) if "validation_f1" in line]
    best = max(lines, key=lambda line: (line["validation_f1"], line["step"]))["step"]
    kept = {int(name) for name in os.listdir(trained / "checkpoints")}
    assert {best, 12} == kept


def test_workdir_holds_config_provenance_metrics_and_events(trained, data_dir):
    config = json.loads((trained / "config.json").read_text())
    assert config["data"]["dir"] == str(data_dir)
    attempt = json.loads((trained / "provenance.json").read_text())[-1]
    assert attempt["versions"]["jax"] == jax.__version__
    assert len(attempt["devices"]) == 8
    assert len(attempt["dataset_fingerprint"]) == 64
    losses = [line["loss"] for line in read_metrics(trained) if "loss" in line]
    assert len(losses) == 12
    assert all(np.isfinite(losses))
    assert list((trained / "tensorboard").iterdir())


def test_loss_that_is_not_finite_stops_the_run_with_its_step(config, tmp_path):
    config = config.replaced({"optimizer.learning_rate": 1e30})
    with pytest.raises(UserError, match=r"the loss is not finite at step \d+, its batch: "):
        train(config, tmp_path)


@pytest.mark.exhaustive
def test_finished_run_trained_on_at_a_constant_rate_is_the_longer_run(config, tmp_path):
    config = config.replaced(
        {
            "optimizer.schedule": "constant",
            "evaluate_every": 2,
            "optimizer.warmup_steps": 1,
            "steps": 4,
        }
    )
    train(config, tmp_path / "longer")
    config = config.replaced({"steps": 2})
    train(config, tmp_path / "trained_on")
    config = config.replaced({"steps": 4})
    train(config, tmp_path / "trained_on")
    assert_same_bits(tmp_path / "longer", tmp_path / "trained_on", step=4)
    attempts = json.loads((tmp_path / "trained_on" / "provenance.json").read_text())
    assert [(a["start_step"], a["steps"]) for a in attempts] == [(0, 2), (2, 4)]
    assert json.loads((tmp_path / "trained_on" / "config.json").read_text())["steps"] == 4


@pytest.mark.exhaustive
def test_finished_run_trained_on_has_the_rates_of_the_new_total_from_there_on(
    trained, config, tmp_path, capsys
):
    workdir = shutil.copytree(trained, tmp_path / "run")
    config = config.replaced({"steps": 14})
    train(config, workdir)
    printed = capsys.readouterr().out
    assert "trained on: 14 steps instead of 12; from here on the learning rate is that of 14" in (
        printed
    )
    assert "resuming after step 12" in printed
    logged = [line["learning_rate"] for line in read_metrics(workdir) if "learning_rate" in line]
    peak = config.optimizer.learning_rate
    of_12, of_14 = (
        make_schedule(Optimizer(learning_rate=peak, warmup_steps=2), steps=n) for n in (12, 14)
    )
    expected = [*map(of_12, range(12)), *map(of_14, range(12, 14))]
    np.testing.assert_allclose(logged, expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("steps", 0, r"config\.steps is 0; it must be at least 1"),
        ("model", "dscnt", r"config\.model 'dscnt'"),
        ("label_smoothing", 2.0, r"config\.label_smoothing is 2\.0"),
        ("batch_size", 9, r"config\.batch_size 9"),
        ("seed", 2**32, r"config\.seed is 4294967296"),
        ("label_smoothing", float("nan"), r"config\.label_smoothing is nan"),
    ],
)
def test_values_that_no_run_can_have_are_named_and_nothing_is_written(
    config, tmp_path, field, value, message
):
    with pytest.raises(UserError, match=message):
        train(config.replaced({field: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("unchecked")
def test_network_and_records_that_do_not_fit_are_named_and_nothing_is_written(
    config, dual_view_config, studies_dir, data_dir, tmp_path
):
    config = config.replaced({"data.dir": str(studies_dir), "data.records": "studies"})
    message = (
        r"config\.model dscint does not take examples of shape \(2, 64, 16, 1\).*studies.*ndim"
    )
    with pytest.raises(UserError, match=message):
        train(config, tmp_path / "run")
    dual_view_config = dual_view_config.replaced(
        {"data.dir": str(data_dir), "data.records": "views"}
    )
    with pytest.raises(UserError, match=r"dual_view reads studies; set --config\.data\.records"):
        train(dual_view_config, tmp_path / "run")


@pytest.mark.exhaustive
def test_run_on_studies_resumes_to_the_same_bits(trained_on_studies, dual_view_config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained_on_studies, workdir)
    for step in (8, 12):
        shutil.rmtree(workdir / "checkpoints" / str(step))
    train(dual_view_config, workdir)
    assert json.loads((workdir / "provenance.json").read_text())[-1]["start_step"] == 4
    assert_same_bits(trained_on_studies, workdir, 12)
    assert read_metrics(workdir) == read_metrics(trained_on_studies)


@pytest.mark.exhaustive
@pytest.mark.parametrize("spmd", ["jit", "pmap"])
def test_wherever_the_images_are_kept_a_run_ends_in_the_same_bits(config, trained, tmp_path, spmd):
    config = config.replaced({"spmd": spmd})
    for cache in ("device", "host", "none"):
        config = config.replaced({"data.cache": cache})
        train(config, tmp_path / cache)
    for cache in ("host", "none"):
        assert_same_bits(tmp_path / "device", tmp_path / cache, 12)
        assert read_metrics(tmp_path / cache) == read_metrics(tmp_path / "device")
    losses = (
        [line["loss"] for line in read_metrics(w) if "loss" in line]
        for w in (trained, tmp_path / "host")
    )
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_other_data_than_trained_on_is_refused(trained, config, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained, workdir)
    attempts = json.loads((workdir / "provenance.json").read_text())
    attempts[-1]["dataset_fingerprint"] = "0" * 64
    (workdir / "provenance.json").write_text(json.dumps(attempts))
    with pytest.raises(UserError, match="was trained on another data set"):
        train(config, workdir)
    with pytest.raises(UserError, match="was trained on another data set"):
        evaluate(workdir, split="test", checkpoint="best")


OWN_NETWORKS = """
from flax import nnx

class Mean(nnx.Module):
    def __init__(self, *, num_classes, rngs):
        self.head = nnx.Linear(1, num_classes, rngs=rngs)

    def __call__(self, images, *, rngs=None):
        return self.head(images.mean((1, 2)))

class TooMany(Mean):
    def __init__(self, *, num_classes, rngs):
        super().__init__(num_classes=num_classes + 3, rngs=rngs)

class Half(Mean):
    def __call__(self, images, *, rngs=None):
        return super().__call__(images).astype("bfloat16")

class Several(Mean):
    def __call__(self, images, *, rngs=None):
        return super().__call__(images), None

class Misspelt(Mean):
    def __call__(self, images, *, rngs=None):
        return self.haed(images)

class FailsInTraining(Mean):
    def __init__(self, *, num_classes, rngs):
        super().__init__(num_classes=num_classes, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, images, *, rngs=None):
        return self.dropout(super().__call__(images))
"""


def _own(tmp_path, monkeypatch, config, network):
    (tmp_path / "own_nets.py").write_text(OWN_NETWORKS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_nets", raising=False)
    config = config.replaced({"model": f"own_nets:{network}", "model_options": {}})
    return config


def test_network_of_ones_own_trains_and_is_evaluated(config, tmp_path, monkeypatch):
    config = _own(tmp_path, monkeypatch, config, "Mean")
    config = config.replaced({"steps": 2, "evaluate_every": 2})
    train(config, tmp_path / "run")
    result = evaluate(tmp_path / "run", split="test", checkpoint="latest")
    assert result["step"] == 2


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("TooMany", r"gives logits of shape \(8, 7\).*8 in 4 classes"),
        ("Half", "type bfloat16.*float32"),
        ("Several", "does not take examples of shape"),
        ("Misspelt", "AttributeError.*haed"),
        ("FailsInTraining", "does not take examples of shape"),
    ],
)
def test_network_that_cannot_be_trained_is_named_before_anything_is_written(
    config, tmp_path, monkeypatch, network, message
):
    with pytest.raises(UserError, match=message):
        train(_own(tmp_path, monkeypatch, config, network), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("network", ["inception_v4", "densenet201", "vgg19"])
def test_large_networks_train_a_step_at_full_size_within_24_gib(data_dir, tmp_path, network):
    measure = (
        "import resource, subprocess, sys; "
        "code = subprocess.call([sys.executable, '-m', 'dscint_jax.main', *sys.argv[1:]]); "
        "print('KiB', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(code)"
    )
    output = finish(
        [
            *(sys.executable, "-c", measure, "--config", f"configs/dscint.py:{network}"),
            *("--workdir", str(tmp_path / "run"), f"--config.data.dir={data_dir}"),
            *("--config.batch_size=4", "--config.steps=1"),
        ],
        timeout=1100,
    )
    assert int(output.rsplit("KiB", 1)[1]) < 24 * 2**20, output


def test_run_tells_how_it_ended_and_where_its_time_went(trained):
    ended = json.loads((trained / "provenance.json").read_text())[-1]["ended"]
    assert (ended["why"], ended["step"]) == ("completed", 12)
    assert {"step", "input_wait", "evaluation", "checkpoint", "compilation"} <= set(
        ended["seconds"]
    )
    assert ended["summary"].startswith("12 steps in ")
    speeds = read_lines(trained / "train_speed.jsonl")
    assert [line["step"] for line in speeds] == list(range(1, 13))
    assert any(line.get("images_per_second", 0) > 0 for line in speeds)


@pytest.mark.exhaustive
def test_traced_run_ends_in_the_same_bits(trained, config, tmp_path):
    train(config, tmp_path, window=range(5, 8))
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert_same_bits(trained, tmp_path, 12)


@pytest.mark.exhaustive
def test_batch_of_more_images_than_there_are_is_cut_to_what_fits_and_kept_on_resuming(
    config, make_data_set, tmp_path, capsys
):
    # Eight devices share 40 of the 42 images evenly.
    config = config.replaced(
        {
            "data.dir": str(make_data_set(train=42, validation=9, test=9)),
            "data.pool": 1,
            "batch_size": 48,
            "steps": "2 epochs",
            "evaluate_every": "1 epoch",
        }
    )
    workdir = tmp_path / "run"
    train(config, workdir)
    said = [line for line in capsys.readouterr().out.splitlines() if "batch_size" in line]
    assert said == ["config.batch_size is 48, but there are 42 training images: each step takes 40"]
    # The config stays what was asked for, in steps.
    kept = json.loads((workdir / "config.json").read_text())
    assert (kept["batch_size"], kept["steps"], kept["evaluate_every"]) == (48, 2, 1)
    (attempt,) = json.loads((workdir / "provenance.json").read_text())
    assert attempt["batch_size"] == 40
    assert evaluate(workdir, split="test", checkpoint="latest")["support"] == 9

    # As if it had begun on four devices and been killed after the first step.
    again = tmp_path / "again"
    shutil.copytree(workdir, again)
    shutil.rmtree(again / "checkpoints" / "2")
    train(config, again)
    assert_same_bits(workdir, again, 2)
    (again / "provenance.json").write_text(json.dumps([{**attempt, "batch_size": 42}]))
    shutil.rmtree(again / "checkpoints" / "2")
    with pytest.raises(UserError, match=r"was begun with 42 images a step, which 8 devices"):
        train(config, again)


@pytest.fixture
def build_without(cohort, tmp_path):
    """Builds a data set of ten of the cohort's files with one split that nobody is in."""

    def build_it(empty):
        with (cohort / "manifest.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))[:10]
        large, small = [split for split in ("train", "validation", "test") if split != empty]
        last = rows[-1]["patient_id"]
        manifest = cohort / f"without_{empty}.csv"
        with manifest.open("w", newline="") as file:
            writer = csv.DictWriter(file, [*rows[0], "split"])
            writer.writeheader()
            writer.writerows(
                row | {"split": small if row["patient_id"] == last else large} for row in rows
            )
        folder = tmp_path / "data"
        build.main(["--manifest", str(manifest), "--data_dir", str(folder), "--workers", "1"])
        return folder

    return build_it


@pytest.mark.parametrize("empty", ["train", "validation"])
def test_split_that_training_needs_and_nobody_is_in_is_said_by_build_and_by_train(
    config, build_without, tmp_path, capsys, empty
):
    config = config.replaced({"data.dir": str(build_without(empty))})
    said = " ".join(capsys.readouterr().out.split())
    assert f"note: split {empty} is empty, so no network can be trained on this data set" in said
    with pytest.raises(UserError, match=rf"split '{empty}' of .* is empty; build with more"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
def test_lack_of_test_images_is_said_and_does_not_hold_up_training(
    config, build_without, tmp_path, capsys
):
    config = config.replaced({"data.dir": str(build_without("test")), "steps": 1})
    said = " ".join(capsys.readouterr().out.split())
    assert "note: split test is empty, so no network can be evaluated on this data set" in said
    train(config, tmp_path / "run")
    notes = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "split 'test'" in notes[0]


def test_fewer_training_images_than_devices_are_one_line_and_nothing_is_written(
    config, make_data_set, tmp_path
):
    config = config.replaced(
        {"data.dir": str(make_data_set(train=7, validation=9, test=9)), "data.pool": 1}
    )
    with pytest.raises(UserError, match=r"has 7, and a batch needs 8 at least \(8 device"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_copies_too_few_for_a_validation_split_are_one_line(config, make_data_set, tmp_path):
    config = config.replaced(
        {
            "data.dir": str(make_data_set(train=1, validation=1, test=1)),
            "protocol": "augmented",
            "data.copies": 2,
            "data.pool": 1,
        }
    )
    with pytest.raises(UserError, match=r"split 'validation' of .* is empty"):
        train(config, tmp_path / "run")


@pytest.mark.parametrize("field", ["data.dir", "init_from"])
def test_paths_of_a_config_are_read_as_those_of_options(config, tmp_path, monkeypatch, field):
    with pytest.raises(UserError, match=f"config.{field}: gs://b/x: a URL is no folder"):
        train(config.replaced({field: "gs://b/x"}), tmp_path / "run")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=str(tmp_path / "not-there")):
        train(config.replaced({field: "~/not-there"}), tmp_path / "run")
