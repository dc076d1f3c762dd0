import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from dscint_jax.metrics.scores import five_metrics
from dscint_jax.metrics.summary import summarise
from tests.dscint_jax.metrics.test_predictions import some_predictions


def test_every_number_is_plain_and_every_value_lies_in_its_interval():
    result = summarise(some_predictions(patients=60), some_predictions(1, patients=60))
    json.dumps(result, allow_nan=False)

    def check(value):
        if not isinstance(value, dict):
            return
        for name, inner in value.items():
            bounds = value.get(f"{name}_interval")
            # A calibration error is biased upwards, and in a resample twice.
            if bounds and name != "ece":
                assert bounds[0] <= inner <= bounds[1], name
            check(inner)

    check(result)


def test_areas_and_groups_are_those_of_the_images():
    predictions = some_predictions()
    result = summarise(predictions)
    for i, label in enumerate(predictions.classes):
        positive, scores = predictions.labels == i, predictions.probabilities[:, i]
        found = result["areas"][label]
        assert found["auroc"] == pytest.approx(roc_auc_score(positive, scores))
        expected = average_precision_score(positive, scores)
        assert found["average_precision"] == pytest.approx(expected)
    assert set(result["groups"]) == {"view", "sex"}
    for view, found in result["groups"]["view"].items():
        own = predictions.only(predictions.facts["view"] == view)
        assert found["f1"] == pytest.approx(five_metrics(own.confusions().sum(0))["f1"])
        assert found["support"] == 60
    assert result["studies"]["support"] == 60
    assert result["patients"]["support"] == 30
    assert result["patients"]["accuracy"] > result["accuracy"]
    assert result["operating_points"] is None
    assert result["calibration"]["temperature"] is None


def test_thresholds_are_chosen_on_validation_and_carried_over():
    predictions, validation = some_predictions(0), some_predictions(1)
    points = summarise(predictions, validation)["operating_points"]
    for i, label in enumerate(predictions.classes):
        point = points[label]["specificity_95"]
        assert point["validation"]["specificity"] >= 0.95
        called = predictions.probabilities[:, i] >= point["threshold"]
        others = predictions.labels != i
        assert point["specificity"] == pytest.approx(np.mean(~called[others]))
        assert point["sensitivity"] == pytest.approx(np.mean(called[~others]))
        assert points[label]["sensitivity_95"]["validation"]["sensitivity"] >= 0.95


def test_overconfident_network_is_cooled_by_what_validation_says():
    def sharpened(seed):
        predictions = some_predictions(seed, patients=200)
        sharp = predictions.probabilities.astype(float) ** 3
        predictions.probabilities[:] = sharp / sharp.sum(1, keepdims=True)
        return predictions

    found = summarise(sharpened(0), sharpened(1))["calibration"]
    assert found["temperature"] > 1.5
    assert found["after"]["ece"] < found["ece"] / 2
    assert found["after"]["brier"] < found["brier"]


def test_surer_images_are_read_better():
    found = summarise(some_predictions(patients=100))["abstention"]
    coverages = [point["coverage"] for point in found]
    assert coverages == sorted(coverages, reverse=True)
    assert coverages[0] == 1
    assert found[-1]["accuracy"] > found[0]["accuracy"]


def test_one_class_or_one_patient_is_measured_where_it_can_be():
    predictions = some_predictions()
    for chosen in (predictions.labels == 1, predictions.patients == "patient004"):
        result = summarise(predictions.only(chosen), some_predictions(1))
        json.dumps(result, allow_nan=False)
        assert result["areas"]["metastasis"]["auroc"] is None
        point = result["operating_points"]["metastasis"]["specificity_95"]
        assert point["sensitivity"] is not None
        assert point["specificity"] is None
