import dataclasses
import json

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from dscint_jax.metrics.calibration import with_temperature
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


def test_least_confidence_is_chosen_on_validation_studies_and_carried_over():
    predictions, validation = some_predictions(0, patients=200), some_predictions(1, patients=200)
    result = summarise(predictions, validation)
    temperature = result["calibration"]["temperature"]
    for point in result["answers"]:
        for source, told in ((validation, point["validation"]), (predictions, point)):
            warmed = with_temperature(source.probabilities, temperature)
            studies = warmed.reshape(-1, 2, 3).mean(1)
            answered = studies.max(1) >= point["least_confidence"]
            right = studies.argmax(1) == source.labels[::2]
            assert told["studies"] == 400
            assert told["coverage"] == pytest.approx(answered.mean())
            assert told["accuracy"] == pytest.approx(right[answered].mean())
        assert point["validation"]["accuracy"] > point["accuracy_target"]
        of_normal = answered[predictions.labels[::2] == 0]
        assert point["coverage_by_class"]["normal"] == pytest.approx(of_normal.mean())
    assert summarise(predictions)["answers"] is None


def test_labels_of_the_test_images_do_not_touch_the_least_confidence():
    predictions, validation = some_predictions(0, patients=200), some_predictions(1, patients=200)
    shuffled = dataclasses.replace(
        predictions,
        labels=(predictions.labels + 1) % 3,
        probabilities=predictions.probabilities[::-1],
        predicted=predictions.predicted[::-1],
    )
    chosen = [
        [point["least_confidence"] for point in summarise(source, validation)["answers"]]
        for source in (predictions, shuffled)
    ]
    assert None not in chosen[0]
    assert chosen[0] == chosen[1]
    other = summarise(predictions, some_predictions(2, patients=200))["answers"]
    assert [point["least_confidence"] for point in other] != chosen[0]


def test_too_few_validation_studies_choose_no_least_confidence():
    result = summarise(some_predictions(0), some_predictions(1, patients=5))
    json.dumps(result, allow_nan=False)
    for point in result["answers"]:
        assert point["least_confidence"] is point["accuracy"] is None
        assert point["coverage"] == point["validation"]["coverage"] == 0
