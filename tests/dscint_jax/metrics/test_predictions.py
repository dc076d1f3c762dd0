import dataclasses

import numpy as np
import pytest

from dscint_jax.metrics.predictions import (
    MIXED,
    Predictions,
    predictions_text,
    read_predictions,
)
from tfds_builder.commandline.errors import UserError


def some_predictions(seed=0, patients=30, classes=("normal", "metastasis", "arthritis")):
    """Two studies a patient, two views a study; a patient's images have one class."""
    random = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), 4)
    labels = patient % len(classes)
    logits = random.normal(size=(len(labels), len(classes))) + 1.5 * np.eye(len(classes))[labels]
    odds = np.exp(logits)
    probabilities = (odds / odds.sum(1, keepdims=True)).astype(np.float32)
    return Predictions(
        classes=classes,
        labels=labels,
        predicted=probabilities.argmax(1),
        probabilities=probabilities,
        facts={
            "image_id": np.array([f"image{n:04d}" for n in range(len(labels))]),
            "patient_key": np.array([f"patient{n:03d}" for n in patient]),
            "study_key": np.array([f"study{n // 2:04d}" for n in range(len(labels))]),
            "view": np.array(["anterior", "posterior"] * (2 * patients)),
            "sex": np.array(["F", "M"])[patient % 2],
        },
    )


def test_table_is_read_as_it_was_written(tmp_path):
    written = some_predictions()
    (tmp_path / "predictions.csv").write_text(predictions_text(written))
    read = read_predictions(tmp_path / "predictions.csv")
    assert read.classes == written.classes
    for field in ("labels", "predicted"):
        np.testing.assert_array_equal(getattr(read, field), getattr(written, field))
    np.testing.assert_array_equal(read.probabilities.astype(np.float32), written.probabilities)
    assert {n: v.tolist() for n, v in read.facts.items()} == {
        n: v.tolist() for n, v in written.facts.items()
    }


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda t: t.replace("study_key", "studykey", 1), "lacks the column study_key"),
        (lambda t: t.replace(",label,", ",truth,", 1), "lacks the column label"),
        (lambda t: t.replace("p_normal", "normal", 1), "column p_CLASS"),
        (lambda t: t.partition("\n")[0] + "\n", "has no rows"),
        (lambda t: "", "lacks the column image_id"),
        (lambda t: t.replace(",arthritis,", ",gout,", 1), "row 1?.*not in tuple"),
        (lambda t: t.rpartition(",")[0] + "\n", "row 121"),
        (lambda t: t.rpartition(",")[0] + ",7\n", "row 121: the probabilities do not add up"),
        (lambda t: t.rpartition(",")[0] + ",nan\n", "row 121"),
        (lambda t: t.rpartition(",")[0] + ",much\n", "row 121.*much"),
        (lambda t: "\x00\xff" + t, "lacks the column image_id"),
    ],
)
def test_table_that_was_changed_is_refused_with_column_or_row(tmp_path, change, words):
    path = tmp_path / "predictions.csv"
    path.write_text(change(predictions_text(some_predictions())))
    with pytest.raises(UserError, match=words) as error:
        read_predictions(path)
    assert str(path) in str(error.value)


def test_table_that_is_missing_or_no_text(tmp_path):
    with pytest.raises(UserError, match="is not there"):
        read_predictions(tmp_path / "predictions.csv")
    (tmp_path / "predictions.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(UserError, match="no CSV file"):
        read_predictions(tmp_path / "predictions.csv")


@pytest.mark.parametrize("unit, count", [("study_key", 60), ("patient_key", 30)])
def test_images_of_a_unit_are_read_by_the_mean_of_their_probabilities(unit, count):
    images = some_predictions()
    combined, left_out = images.combined(unit)
    assert (len(combined), left_out) == (count, 0)
    for n, name in enumerate(combined.facts[unit]):
        own = images.facts[unit] == name
        np.testing.assert_allclose(
            combined.probabilities[n], images.probabilities[own].mean(0), rtol=1e-6
        )
        assert set(images.labels[own]) == {combined.labels[n]}
    np.testing.assert_array_equal(combined.predicted, combined.probabilities.argmax(1))
    assert set(combined.facts["view"]) == {MIXED}
    assert set(combined.facts["sex"]) == {"F", "M"}


def test_unit_of_images_of_several_classes_is_left_out():
    images = some_predictions()
    labels = images.labels.copy()
    labels[1] = (labels[1] + 1) % 3
    combined, left_out = dataclasses.replace(images, labels=labels).combined("study_key")
    assert (len(combined), left_out) == (59, 1)
    assert "study0000" not in combined.facts["study_key"]
