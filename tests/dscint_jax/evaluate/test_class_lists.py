"""Class lists of one's own, from a folder and a label table to the report."""

import csv
import itertools
import json
import shutil

import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, recall_score

from dscint_jax.evaluate.evaluate import evaluate
from dscint_jax.report.page import write_report
from dscint_jax.training.train import train
from tfds_builder import build
from tfds_builder.scan import __main__ as scan

LISTS = {
    "as in BS-80K": ("normal", "abnormal"),
    "two of the published and one of its own": ("normal", "metastasis", "fracture"),
    "six": ("normal", "benign", "metastasis", "fracture", "paget", "infection"),
}


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", LISTS)
def test_classes_of_a_label_table_are_those_of_metrics_and_report(name, cohort, config, tmp_path):
    classes, folder = LISTS[name], tmp_path / "hospital"
    folder.mkdir()
    with (cohort / "manifest.csv").open(newline="") as file:
        patients = [(row["patient_id"], cohort / row["path"]) for row in csv.DictReader(file)]
    for _, path in patients:
        shutil.copy(path, folder)
    label_of = dict(zip(sorted({patient for patient, _ in patients}), itertools.cycle(classes)))
    with (tmp_path / "labels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("patient_id", "label"), *label_of.items()])
    manifest, listed = folder / "manifest.csv", ["--classes", ",".join(classes)]
    labels = ["--labels", str(tmp_path / "labels.csv")]
    scan.main([str(folder), "--out", str(manifest), *labels, *listed, "--workers", "1"])
    data_dir = tmp_path / "data"
    build.main(["--manifest", str(manifest), "--data_dir", str(data_dir), *listed])
    config = config.replaced({"data.dir": str(data_dir)})
    train(config, tmp_path / "run")
    result = evaluate(tmp_path / "run", split="test", checkpoint="best")
    page, _ = write_report(tmp_path / "run")
    assert tuple(result["classes"]) == classes
    with (tmp_path / "run/eval/test/predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [field for field in rows[0] if field.startswith("p_")] == [f"p_{c}" for c in classes]
    true, predicted = ([row[field] for row in rows] for field in ("label", "predicted"))
    assert {row["label"] for row in rows} == {label_of[p] for p in label_of} - {*result["absent"]}
    present = sorted(set(true))
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, predicted, labels=present, average="macro", zero_division=0
    )
    specificity = [
        recall_score([t != c for t in true], [p != c for p in predicted]) for c in present
    ]
    expected = {
        "accuracy": accuracy_score(true, predicted),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "specificity": sum(specificity) / len(specificity),
    }
    for metric, value in expected.items():
        assert result[metric] == pytest.approx(value), metric
    assert json.loads((tmp_path / "run/eval/test/metrics.json").read_text()) == result
    assert all(label in page.read_text() for label in classes)
