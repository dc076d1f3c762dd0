import csv
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AxisType
from sklearn.metrics import accuracy_score, precision_recall_fscore_support

from dscint_jax.baselines.linear_baseline import linear_baseline
from dscint_jax.evaluate import restored
from dscint_jax.evaluate.evaluate import evaluate, evaluate_all, notes, print_table
from dscint_jax.input_pipeline import fingerprint_of, load_split
from dscint_jax.metrics import intervals
from dscint_jax.metrics.calibration import fit_temperature
from dscint_jax.metrics.discrimination import best_point
from dscint_jax.metrics.predictions import read_predictions
from dscint_jax.metrics.scores import five_metrics, summary
from dscint_jax.report.page import write_report
from dscint_jax.run.checkpoint import Checkpointer
from dscint_jax.training.train import train
from tfds_builder.commandline.errors import UserError


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained, workdir)
    return workdir, evaluate(workdir, split="test", checkpoint="best")


def _rows(workdir, split="test"):
    with (workdir / "eval" / split / "predictions.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_predictions_hold_every_image_of_the_split_once(evaluated, data_dir):
    rows = _rows(evaluated[0])
    images = load_split(data_dir, "test", pool=16, cache_gib=1.0)
    records = images.read(np.arange(len(images)))
    assert [row["image_id"] for row in rows] == records["image_id"].tolist()
    assert [row["label"] for row in rows] == [images.classes[label] for label in records["label"]]
    for row in rows:
        probabilities = {c: float(row[f"p_{c}"]) for c in images.classes}
        assert abs(sum(probabilities.values()) - 1) < 1e-5
        assert row["predicted"] == max(probabilities, key=probabilities.get)


def test_thresholds_and_temperature_are_those_of_the_validation_images(evaluated):
    workdir, result = evaluated
    of_validation = evaluate(workdir, split="validation", checkpoint="best")
    assert of_validation["operating_points"] is None
    assert of_validation["calibration"]["temperature"] is None
    rows = read_predictions(workdir / "eval" / "validation" / "predictions.csv")
    for i, label in enumerate(result["classes"]):
        point = best_point(rows.probabilities[:, i], rows.labels == i, "specificity", 0.95)
        found = result["operating_points"][label]["specificity_95"]
        assert found["validation"]["sensitivity"] == pytest.approx(point.sensitivity)
        assert found["threshold"] in (None, pytest.approx(point.threshold))
    temperature = fit_temperature(rows.probabilities, rows.labels)
    assert result["calibration"]["temperature"] == pytest.approx(temperature, rel=1e-3)


def test_groups_are_those_of_the_records(evaluated):
    _, result = evaluated
    assert set(result["groups"]) == {"view", "sex", "age_band", "manufacturer", "site_key"}
    for groups in result["groups"].values():
        assert sum(group["support"] for group in groups.values()) == result["support"]
    assert set(result["groups"]["view"]) == {"anterior", "posterior"}
    assert result["studies"]["support"] <= result["support"]
    assert result["patients"]["support"] == result["intervals"]["patients"]


def test_metrics_file_follows_from_the_predictions(evaluated):
    workdir, result = evaluated
    assert json.loads((workdir / "eval" / "test" / "metrics.json").read_text()) == result
    rows, classes = _rows(workdir), result["classes"]
    confusion = np.zeros((4, 4), int)
    for row in rows:
        confusion[classes.index(row["label"]), classes.index(row["predicted"])] += 1
    assert confusion.tolist() == result["confusion_matrix"]
    for name, value in five_metrics(confusion).items():
        assert result[name] == value
    labels, predicted = (
        np.array([classes.index(row[field]) for row in rows]) for field in ("label", "predicted")
    )
    patients = [row["patient_key"] for row in rows]
    confusions = intervals.patient_confusions(labels, predicted, patients, len(classes))
    for name, bounds in intervals.bootstrap_intervals(confusions).items():
        assert result["intervals"]["values"][name] == bounds
    assert result["support"] == len(rows)
    assert result["intervals"]["patients"] == len({row["patient_key"] for row in rows})


def test_evaluating_again_gives_the_same_bytes(evaluated):
    folder = evaluated[0] / "eval" / "test"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    evaluate(evaluated[0], split="test", checkpoint="best")
    assert before == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_batch_size_does_not_change_the_metrics(evaluated):
    workdir, expected = evaluated
    path = workdir / "config.json"
    original = path.read_text()
    config = json.loads(original)
    config["batch_size"] = 3
    path.write_text(json.dumps(config))
    try:
        result = evaluate(workdir, split="test", checkpoint="best")
    finally:
        path.write_text(original)
    assert result["confusion_matrix"] == expected["confusion_matrix"]
    assert abs(result["loss"] - expected["loss"]) < 1e-5


def test_best_is_the_highest_validation_f1_and_any_kept_step_can_be_named(evaluated):
    workdir, result = evaluated
    checkpointer = Checkpointer(workdir, read_only=True)
    assert result["step"] == checkpointer._best_first()[0]
    step = checkpointer.last_step()
    assert evaluate(workdir, split="validation", checkpoint=str(step))["step"] == step
    assert evaluate(workdir, split="validation", checkpoint="latest")["step"] == step


def test_damaged_checkpoint_gives_way_to_the_next_with_a_warning(config, tmp_path, capsys):
    config = config.replaced({"keep_last": 3})
    train(config, tmp_path)
    best = Checkpointer(tmp_path, read_only=True)._best_first()[0]
    shutil.rmtree(tmp_path / "checkpoints" / str(best) / "model")
    assert evaluate(tmp_path, split="test", checkpoint="best")["step"] != best
    assert f"/{best} is damaged" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"checkpoint {best} is damaged"):
        evaluate(tmp_path, split="test", checkpoint=str(best))


@pytest.fixture
def fold_run(evaluated, folds_dir, tmp_path):
    """The trained network as if it had been trained on a data set in folds, to test on fold_4."""
    workdir = tmp_path / "run"
    shutil.copytree(evaluated[0], workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["data"] |= {"dir": str(folds_dir), "pool": 1, "fold": 4}
    (workdir / "config.json").write_text(json.dumps(config))
    attempts = json.loads((workdir / "provenance.json").read_text())
    attempts[-1]["dataset_fingerprint"] = fingerprint_of(folds_dir)
    (workdir / "provenance.json").write_text(json.dumps(attempts))
    return workdir


def test_run_on_a_fold_is_evaluated_and_reported_on_that_fold(fold_run, folds_dir):
    assert evaluate(fold_run, split="test", checkpoint="best")["support"] == 15
    assert {row["image_id"].rpartition("-")[0] for row in _rows(fold_run)} == {"fold_4"}
    _, baseline = write_report(fold_run)
    assert baseline == linear_baseline(folds_dir, fold=4)


def test_run_on_a_fold_is_evaluated_on_a_data_set_from_elsewhere(fold_run, make_data_set):
    elsewhere = make_data_set(test=6)
    result = evaluate(fold_run, split="test", checkpoint="best", data_dir=elsewhere)
    assert result["support"] == 6


@pytest.mark.slow
def test_run_on_studies_is_evaluated_study_by_study(trained_on_studies, studies_dir, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(trained_on_studies, workdir)
    result = evaluate(workdir, split="train", checkpoint="best")
    rows = _rows(workdir, "train")
    images = load_split(studies_dir, "train", pool=16, cache_gib=1.0, records="studies")
    records = images.read(np.arange(len(images)))
    for column in ("image_id", "patient_key", "view"):
        assert [row[column] for row in rows] == records[column].tolist()
    assert {"study_key", "label", "predicted"} <= rows[0].keys()
    assert {row["view"] for row in rows} >= {"both", "posterior"}
    assert result["records"] == "studies"
    assert result["support"] == len(images)
    assert np.isfinite(result["loss"])


def test_what_is_not_there_is_named(evaluated, tmp_path):
    workdir, _ = evaluated
    with pytest.raises(UserError, match=r"holds no config\.json"):
        evaluate(tmp_path, split="test", checkpoint="best")
    with pytest.raises(UserError, match=r"--checkpoint 999"):
        evaluate(workdir, split="test", checkpoint="999")
    with pytest.raises(UserError, match=r"no split 'tets'"):
        evaluate(workdir, split="tets", checkpoint="best")
    with pytest.raises(UserError, match=r"holds no data set"):
        evaluate(workdir, split="test", checkpoint="best", data_dir=tmp_path)


def test_checkpoint_of_another_network_is_refused(evaluated, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(evaluated[0], workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["model_options"]["widths"] = [8, 12, 16]
    (workdir / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"does not fit this config's network"):
        evaluate(workdir, split="test", checkpoint="best")


def _changed(trained, workdir, **fields):
    """A trained network's work directory as if its config had had these fields."""
    shutil.copytree(trained, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["data"] |= fields.pop("data", {})
    (workdir / "config.json").write_text(json.dumps(config | fields))
    attempts = json.loads((workdir / "provenance.json").read_text())
    attempts[-1]["dataset_fingerprint"] = fingerprint_of(Path(config["data"]["dir"]))
    (workdir / "provenance.json").write_text(json.dumps(attempts))
    return workdir


def test_split_by_patient_is_evaluated_with_the_proof_that_none_was_in_training(evaluated):
    _, result = evaluated
    assert result["protocol"] == "patient"
    assert result["leakage"] == {
        "images": result["support"],
        "images_with_a_copy_in_training": 0,
        "images_of_a_patient_in_training": 0,
    }


def test_training_split_is_evaluated_and_known_to_be_it(evaluated):
    result = evaluate(evaluated[0], split="train", checkpoint="best")
    assert set(result["leakage"].values()) == {result["support"]}


def test_patient_on_both_sides_is_refused(evaluated, make_data_set, tmp_path):
    folder = make_data_set(shared=3, train=12, validation=6, test=6)
    workdir = _changed(evaluated[0], tmp_path / "run", data={"dir": str(folder), "pool": 1})
    (workdir / "eval" / "test" / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"patient patient-0 and 2 more .* test split .*training"):
        evaluate(workdir, split="test", checkpoint="best")
    assert not (workdir / "eval" / "test" / "metrics.json").exists()


def test_run_on_copies_is_evaluated_on_copies_of_which_training_has_others(
    evaluated, make_data_set, tmp_path, capsys
):
    folder = make_data_set(train=20, validation=8, test=8)
    fields = {"data": {"dir": str(folder), "pool": 1, "copies": 4}, "protocol": "augmented"}
    workdir = _changed(evaluated[0], tmp_path / "run", **fields)
    result = evaluate(workdir, split="test", checkpoint="best")
    rows = _rows(workdir)
    copies = 4
    images = load_split(folder, "test", pool=1, cache_gib=1.0, copies=copies)
    expected = images.read(np.arange(len(images)))["image_id"].tolist()
    assert [row["image_id"] for row in rows] == expected
    train = load_split(folder, "train", pool=1, cache_gib=0.0, copies=copies)
    known = {name.rpartition("#")[0] for name in train.read(np.arange(len(train)))["image_id"]}
    with_copy = sum(name.rpartition("#")[0] in known for name in expected)
    assert result["protocol"] == "augmented"
    assert result["leakage"] == {
        "images": len(rows),
        "images_with_a_copy_in_training": with_copy,
        "images_of_a_patient_in_training": with_copy,
    }
    assert with_copy > 10
    print_table(result)
    assert "Copies of test images are in the training set" in capsys.readouterr().out


def test_network_that_was_trained_on_copies_is_tested_on_images_from_elsewhere(
    evaluated, make_data_set, tmp_path
):
    fields = {"protocol": "augmented", "data": {"pool": 1}}
    workdir = _changed(evaluated[0], tmp_path / "run", **fields)
    elsewhere = make_data_set(test=6)
    result = evaluate(workdir, split="test", checkpoint="best", data_dir=elsewhere)
    assert result["support"] == 6
    assert result["leakage"] is None
    assert result["protocol"] == "patient"


def test_share_of_the_training_patients_is_none_of_another_data_set(
    evaluated, make_data_set, tmp_path
):
    workdir = _changed(evaluated[0], tmp_path / "run", data={"training_share": 0.3, "pool": 1})
    elsewhere = make_data_set(train=9)
    result = evaluate(workdir, split="train", checkpoint="best", data_dir=elsewhere)
    assert result["support"] == 9


def test_data_set_in_folds_from_elsewhere_is_refused_with_what_to_build(
    evaluated, folds_dir, tmp_path
):
    workdir = _changed(evaluated[0], tmp_path / "run", data={"pool": 1})
    with pytest.raises(UserError, match=r"divided into 5 folds.*--split_fractions 0 0 1"):
        evaluate(workdir, split="test", checkpoint="best", data_dir=folds_dir)


def test_split_that_is_none_is_told_before_any_is_evaluated(evaluated, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"no split 'val'; .* did you mean validation"):
        evaluate_all(evaluated[0], splits=["test", "val"], checkpoint="best", out=out)
    assert not out.exists()


def test_results_are_kept_where_nobody_reads_the_tables(evaluated, tmp_path):
    words = ["--workdir", evaluated[0], "--out", tmp_path]
    command = [sys.executable, "-m", "dscint_jax.evaluate", *map(str, words)]
    done = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    done.stdout.close()
    assert done.stderr.read() == ""
    assert done.wait() == 0
    for name in ("metrics.json", "predictions.csv"):
        assert (tmp_path / "eval" / "test" / name).exists()


def test_data_set_that_was_moved_is_still_the_one_trained_on(evaluated, data_dir, tmp_path):
    workdir, result = tmp_path / "run", evaluated[1]
    shutil.copytree(evaluated[0], workdir)
    shutil.copytree(data_dir, tmp_path / "moved")
    moved = evaluate(workdir, split="test", checkpoint="best", data_dir=tmp_path / "moved")
    assert moved == result


def test_where_training_kept_its_images_does_not_matter_to_evaluation(evaluated, tmp_path):
    fields = {"cache": "host", "cache_gib": 1e-6}
    workdir = _changed(evaluated[0], tmp_path / "run", data=fields)
    assert evaluate(workdir, split="test", checkpoint="best") == evaluated[1]


def _files(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


ELSEWHERE = {
    "four classes": {"test": 40},
    "one class": {"test": 9, "classes": ("metastasis",)},
    "one patient": {"test": 7, "patients": 1},
    "two classes in another order": {"test": 30, "classes": ("metastasis", "normal")},
    "a class of which there is none": {"test": 12, "validation": 3, "classes": ("normal",)},
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(n, marks=() if n == "one patient" else pytest.mark.exhaustive)
        for n in ELSEWHERE
    ],
)
def test_results_on_another_data_set_lie_beside_the_runs_own(
    case, evaluated, make_data_set, tmp_path, recwarn
):
    own = make_data_set(train=40, validation=12, test=12)
    workdir = _changed(evaluated[0], tmp_path / "run", data={"pool": 1, "dir": str(own)})
    evaluate(workdir, split="test", checkpoint="best")
    write_report(workdir)
    before = _files(workdir)
    elsewhere = make_data_set(**ELSEWHERE[case])
    options = {"split": "test", "data_dir": elsewhere, "name": "hospital b"}
    result = evaluate(workdir, checkpoint="best", **options)
    print_table(result)
    page, baseline = write_report(workdir, **options)
    assert before == {path: data for path, data in _files(workdir).items() if path in before}
    assert page == workdir / "report" / "hospital b" / "index.html"
    assert json.loads((workdir / "eval/hospital b/test/metrics.json").read_text()) == result
    assert result["data_set"] == "hospital b"
    assert result["support"] == ELSEWHERE[case]["test"]
    rows = _rows(workdir, "hospital b/test")
    true, predicted = (np.array([row[field] for row in rows]) for field in ("label", "predicted"))
    expected = precision_recall_fscore_support(
        true, predicted, labels=sorted(set(true)), average="macro", zero_division=0
    )
    for name, value in zip(("precision", "recall", "f1"), expected, strict=False):
        assert result[name] == pytest.approx(value)
    assert result["accuracy"] == accuracy_score(true, predicted)
    assert (result["specificity"] is None) == (len(set(true)) == 1)
    assert sorted({*result["classes"]} - {*true}) == sorted(result["absent"])
    text = page.read_text()
    assert "data set trained on" in text
    assert "hospital b" in text
    assert baseline.scores["accuracy"] is not None
    assert not [w for w in recwarn if "sklearn" in str(w.filename)]


def test_several_splits_and_data_sets_in_one_process_are_as_one_by_one(
    evaluated, make_data_set, tmp_path
):
    own = make_data_set(train=40, validation=12, test=12)
    first, second = make_data_set(test=7, validation=3), make_data_set(test=9, validation=5)
    fields = {"pool": 1, "dir": str(own)}
    together = _changed(evaluated[0], tmp_path / "together", data=fields)
    splits = ("test", "validation")
    results = evaluate_all(
        together, splits=splits, checkpoint="best", external=(first, second), mirror=True
    )
    alone = _changed(evaluated[0], tmp_path / "alone", data=fields)
    expected = [
        evaluate(alone, split=split, checkpoint="best", data_dir=data_dir, mirror=True)
        for data_dir in (None, first, second)
        for split in splits
    ]
    assert results == expected
    names = [(result["data_set"], result["split"]) for result in results]
    assert names == [(n, s) for n in (None, first.name, second.name) for s in splits]
    for path, data in _files(alone / "eval").items():
        assert (together / path.relative_to(alone)).read_bytes() == data


def test_data_sets_whose_folders_have_the_same_name_are_not_mixed_up(
    evaluated, make_data_set, tmp_path
):
    workdir = _changed(evaluated[0], tmp_path / "run", data={"pool": 1})
    first, second = (tmp_path / place / "b" for place in "xy")
    for folder in (first, second):
        shutil.copytree(make_data_set(test=6), folder)
    with pytest.raises(UserError, match="would both lie in"):
        evaluate_all(workdir, splits=["test"], checkpoint="best", external=(first, second))
    assert not (workdir / "eval" / "b").exists()


def test_any_number_of_devices_gives_the_same_result(
    evaluated, make_data_set, monkeypatch, tmp_path
):
    # No number of devices divides 23, and a batch of each has padding.
    own = make_data_set(train=40, validation=12, test=23)
    workdir = _changed(evaluated[0], tmp_path / "run", data={"pool": 1, "dir": str(own)})
    found = {}
    for count in (1, 3, 8):
        devices = jax.devices()[:count]
        mesh = jax.make_mesh((count,), ("data",), axis_types=(AxisType.Auto,), devices=devices)
        monkeypatch.setattr(restored, "data_mesh", lambda mesh=mesh: mesh)
        result = evaluate(workdir, split="test", checkpoint="best")
        assert sum(map(sum, result["confusion_matrix"])) == result["support"] == 23
        found[count] = result, read_predictions(workdir / "eval" / "test" / "predictions.csv")
    for result, predictions in found.values():
        assert result["confusion_matrix"] == found[1][0]["confusion_matrix"]
        assert result["loss"] == pytest.approx(found[1][0]["loss"], rel=1e-5)
        np.testing.assert_allclose(
            predictions.probabilities, found[1][1].probabilities, rtol=1e-4, atol=1e-6
        )


def test_class_that_the_network_does_not_know_is_named(evaluated, make_data_set, tmp_path):
    workdir = _changed(evaluated[0], tmp_path / "run", data={"pool": 1})
    elsewhere = make_data_set(test=9, classes=("normal", "fracture"))
    with pytest.raises(UserError, match=r"images of fracture, which the network does not know"):
        evaluate(workdir, split="test", checkpoint="best", data_dir=elsewhere)
    assert not (workdir / "eval" / elsewhere.name).exists()


def test_names_of_other_data_sets_are_folders_of_their_own(evaluated, make_data_set, tmp_path):
    workdir = _changed(evaluated[0], tmp_path / "run", data={"pool": 1})
    elsewhere, other = make_data_set(test=6), make_data_set(test=7)
    options = {"split": "test", "checkpoint": "best"}
    for name in ("test", "", "..", "a/b", "index.html"):
        with pytest.raises(UserError, match="name of its own by --name"):
            evaluate(workdir, **options, data_dir=elsewhere, name=name)
    evaluate(workdir, **options, data_dir=elsewhere, name="b")
    with pytest.raises(UserError, match="holds results on another data set"):
        evaluate(workdir, **options, data_dir=other, name="b")
    with pytest.raises(UserError, match="is the one trained on"):
        evaluate(workdir, **options, name="b")


def test_no_baseline_where_the_data_set_trained_on_is_not_at_hand(
    evaluated, make_data_set, tmp_path
):
    workdir = _changed(evaluated[0], tmp_path / "run", data={"pool": 1})
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["dir"] = str(tmp_path / "gone")
    (workdir / "config.json").write_text(json.dumps(config))
    elsewhere = make_data_set(test=6)
    evaluate(workdir, split="test", checkpoint="best", data_dir=elsewhere)
    page, baseline = write_report(workdir, data_dir=elsewhere)
    assert baseline is None
    assert "No linear baseline" in page.read_text()


def test_run_is_evaluated_from_any_folder(config, tmp_path, monkeypatch):
    monkeypatch.chdir(Path(config.data.dir).parent)
    config = config.replaced({"data.dir": Path(config.data.dir).name, "steps": 4})
    train(config, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    assert evaluate(Path("run"), split="test", checkpoint="best")["step"] == 4


def test_any_split_of_another_data_set_is_shown_beside_the_runs_own_test(
    evaluated, make_data_set, tmp_path
):
    own = make_data_set(train=40, validation=12, test=12)
    workdir = _changed(evaluated[0], tmp_path / "run", data={"pool": 1, "dir": str(own)})
    last = evaluate(workdir, split="test", checkpoint="latest")["step"]
    evaluate(workdir, split="train", checkpoint="best")
    options = {"split": "train", "data_dir": make_data_set(train=6, test=3), "name": "b"}
    for step in Checkpointer(workdir, read_only=True).steps():
        evaluate(workdir, checkpoint=str(step), **options)
        text = write_report(workdir, **options)[0].read_text()
        title = "data set trained on, test" + (f", at step {last}" if step != last else "")
        assert f"<th>{title}</th>" in text


@pytest.mark.parametrize("absent", [False, True])
def test_published_figures_stand_beside_means_over_all_of_their_classes_alone(
    absent, evaluated, capsys
):
    confusion = np.array(evaluated[1]["confusion_matrix"]) + 1
    if absent:
        confusion[0] = 0
    print_table({**evaluated[1], **summary(confusion, evaluated[1]["classes"])})
    assert ("published" in capsys.readouterr().out) is not absent


@pytest.mark.parametrize("kind, words", [("one", "or one without another class"), ("few", "areas")])
def test_note_says_which_intervals_are_missing_and_which_are_rough(kind, words):
    result = {"records": "views", "absent": [], "never_predicted": []}
    bounds = {"classes_of_one_patient": [], "classes_of_few_patients": ["arthritis"]}
    result["intervals"] = bounds | ({"classes_of_one_patient": ["normal"]} if kind == "one" else {})
    (note,) = notes(result)
    assert words in note
