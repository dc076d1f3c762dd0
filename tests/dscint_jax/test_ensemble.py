import json
import subprocess
import sys

import numpy as np
import pytest

from dscint_jax.compare import compare
from dscint_jax.ensemble import ensemble
from dscint_jax.metrics.predictions import read_predictions
from dscint_jax.metrics.scores import five_metrics
from tests.dscint_jax.test_compare import make_run, reader
from tfds_builder.commandline.errors import UserError

KEPT = {"records": "views", "protocol": "patient", "leakage": None, "split": "test"}


def _runs(folder, skills=(2.0, 2.0, 2.0), place="test"):
    runs = []
    for seed, skill in enumerate(skills):
        run = make_run(folder / f"run{seed}", reader(seed, skill), seed=seed, place=place)
        path = run / "eval" / place / "metrics.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | KEPT))
        runs.append(run)
    return runs


def test_probabilities_are_averaged_and_measured(tmp_path):
    runs = _runs(tmp_path)
    result = ensemble(runs, tmp_path / "out")
    mean = np.mean([reader(seed, 2.0).probabilities for seed in range(3)], axis=0)
    labels = reader(0, 2.0).labels
    written = read_predictions(tmp_path / "out" / "eval" / "test" / "predictions.csv")
    np.testing.assert_allclose(written.probabilities, mean, rtol=1e-6)
    np.testing.assert_array_equal(written.predicted, mean.argmax(1))
    assert result["accuracy"] == pytest.approx(np.mean(mean.argmax(1) == labels))
    alone = [five_metrics(reader(seed, 2.0).confusions().sum(0))["accuracy"] for seed in range(3)]
    assert result["accuracy"] > max(alone)
    assert json.loads((tmp_path / "out/eval/test/metrics.json").read_text()) == result
    assert result["operating_points"] is None


def test_thresholds_need_the_validation_of_every_run(tmp_path):
    runs = _runs(tmp_path)
    for seed, run in enumerate(runs):
        make_run(run, reader(seed, 1.0), seed=seed, place="validation")
    result = ensemble(runs, tmp_path / "out")
    assert set(result["operating_points"]["normal"]) == {"specificity_95", "sensitivity_95"}
    assert result["calibration"]["temperature"] > 0


def _with_validation(folder, readers, **told):
    runs = _runs(folder)
    for seed, (run, rows) in enumerate(zip(runs, readers, strict=True)):
        make_run(run, rows, seed=seed, place="validation", told=told)
    return runs


@pytest.mark.parametrize("told", [{"step": 7}, {"test_time_augmentation": "mirror"}])
def test_validation_of_another_checkpoint_or_way_chooses_nothing(tmp_path, told):
    runs = _with_validation(tmp_path, [reader(seed, 1.0) for seed in range(3)], **told)
    result = ensemble(runs, tmp_path / "out")
    assert result["operating_points"] is result["calibration"]["temperature"] is None


def test_validation_images_choose_nothing_that_is_told_of_themselves(tmp_path):
    runs = _with_validation(tmp_path, [reader(seed, 1.0) for seed in range(3)])
    result = ensemble(runs, tmp_path / "out", split="validation")
    assert result["operating_points"] is result["calibration"]["temperature"] is None


def test_runs_of_folds_are_averaged_on_another_data_set_without_thresholds(tmp_path):
    others = [reader(seed, 1.0, patients=50 + seed) for seed in range(3)]
    runs = _with_validation(tmp_path, others)
    for seed, run in enumerate(runs):
        make_run(run, reader(seed, 2.0), seed=seed, place="hospital_b/test", fingerprint="b")
    result = ensemble(runs, tmp_path / "out", name="hospital_b")
    assert result["accuracy"] > 0.5
    assert result["operating_points"] is result["calibration"]["temperature"] is None


def test_ensemble_is_compared_as_a_run(tmp_path):
    runs = _runs(tmp_path)
    ensemble(runs, tmp_path / "out")
    result = compare([tmp_path / "out", runs[0]])
    assert [network["name"] for network in result["networks"]] == ["3 x dscint", "dscint"]
    assert result["pairs"][0]["metrics"]["accuracy"]["value"] > 0


def test_what_cannot_be_averaged_is_named(tmp_path):
    runs = _runs(tmp_path)
    with pytest.raises(UserError, match="one run is no ensemble"):
        ensemble(runs[:1], tmp_path / "out")
    other = make_run(tmp_path / "other", reader(0, 2.0, patients=50))
    with pytest.raises(UserError, match="other images"):
        ensemble([runs[0], other], tmp_path / "out")
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match="is a run"):
        ensemble(runs, tmp_path / "run")
    # Of a run that is published, no checkpoints are there.
    (tmp_path / "published").mkdir()
    (tmp_path / "published" / "provenance.json").touch()
    with pytest.raises(UserError, match="is a run"):
        ensemble(runs, tmp_path / "published")
    with pytest.raises(UserError, match="given twice"):
        ensemble([runs[0], runs[0]], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_prints_the_metrics_and_needs_no_jax(tmp_path):
    runs = _runs(tmp_path)
    script = "import sys; from dscint_jax.ensemble import main; main(); print('jax' in sys.modules)"
    words = [*map(str, runs), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("3 runs together, 240 views")
    assert done.stdout.endswith("False\n")
