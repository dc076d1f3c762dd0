import json

import numpy as np
import pytest

from dscint_jax.explain.lesions import GROUPS
from dscint_jax.explain.scores import BASELINES
from dscint_jax.explain.summary import agreement, mean_with_interval, score_table, verdicts
from dscint_jax.metrics.intervals import interval_of, patient_weights
from tests.dscint_jax.metrics.test_predictions import some_predictions

MAPS = ("grad_cam", *BASELINES)


def _scores(predictions, seed=0):
    random = np.random.default_rng(seed)
    scores = random.random((len(predictions), len(GROUPS), len(MAPS), 2))
    # A third of the images have no lesions, and of the others not all have lesions of all groups.
    scores[predictions.labels == 0] = np.nan
    scores[random.random(len(predictions)) < 0.5, 2] = np.nan
    return scores


def test_mean_and_interval_are_those_of_weighed_images():
    predictions = some_predictions()
    values = np.random.default_rng(1).random((len(predictions), 2))
    means, intervals = mean_with_interval(values, predictions)
    _, patient = np.unique(predictions.patients, return_inverse=True)
    weights = patient_weights(predictions.confusions())
    for n in range(2):
        column = values[:, n]
        expected = interval_of(lambda w, c=column: w @ c / w.sum(1), weights, patient)
        assert intervals[n] == pytest.approx(expected)
        assert means[n] == pytest.approx(column.mean())


def test_every_group_has_the_means_of_its_images():
    predictions = some_predictions()
    scores = _scores(predictions)
    table = score_table(scores, predictions, MAPS)
    json.dumps(table, allow_nan=False)
    assert set(table) == {"all", "site", "size", "contrast", "class", "view", "reading"}
    has = ~np.isnan(scores[:, 2, 0, 0])
    found = table[GROUPS[2][0]][GROUPS[2][1]]
    assert found["images"] == has.sum()
    assert found["patients"] == len(np.unique(predictions.patients[has]))
    assert found["energy"]["centre"]["mean"] == pytest.approx(scores[has, 2, 2, 1].mean())
    lesions = predictions.labels > 0
    assert table["all"]["images"] == lesions.sum()
    right = lesions & (predictions.predicted == predictions.labels)
    found = table["reading"]["right"]["pointing"]["grad_cam"]
    assert found["mean"] == pytest.approx(scores[right, 0, 0, 0].mean())
    assert found["interval"][0] < found["mean"] < found["interval"][1]
    assert table["class"]["normal"]["images"] == 0
    assert table["class"]["normal"]["pointing"]["grad_cam"] == {"mean": None, "interval": None}
    assert {name: group["images"] for name, group in table["view"].items()} == {
        "anterior": lesions.sum() / 2,
        "posterior": lesions.sum() / 2,
    }


def test_difference_from_a_baseline_is_that_of_the_same_images():
    predictions = some_predictions()
    scores = _scores(predictions)
    # The same on each image but for a little: what images share does not blur the difference.
    scores[:, :, 0] = scores[:, :, 1] + 0.02
    found = score_table(scores, predictions, MAPS)["all"]["pointing"]
    assert found["grad_cam - random"]["mean"] == pytest.approx(0.02)
    assert found["grad_cam - random"]["interval"] == pytest.approx([0.02, 0.02])
    assert np.ptp(found["grad_cam"]["interval"]) > 0.05
    assert set(found) == {*MAPS, *(f"grad_cam - {name}" for name in BASELINES)}


def test_verdict_is_of_the_whole_interval():
    intervals = {"random": [0.1, 0.2], "centre": [-0.1, 0.2], "brightest": [-0.3, -0.1]}
    means = {f"grad_cam - {name}": {"interval": bounds} for name, bounds in intervals.items()}
    means["grad_cam"] = {}
    assert verdicts(means) == ["Grad-CAM is not shown to point better than centre, brightest."]
    for name in intervals:
        means[f"grad_cam - {name}"] = {"interval": [0.1, 0.2]}
    assert verdicts(means) == ["Grad-CAM points better than random, centre, brightest."]
    means["grad_cam - random"] = {"interval": None}
    assert verdicts(means) == []


def test_constant_maps_are_counted_and_left_out_of_the_agreement():
    predictions = some_predictions()
    correlations = np.random.default_rng(2).random((len(predictions), 2))
    correlations[:7, 1] = np.nan
    found = agreement(correlations, predictions, ("attention", "grad_cam"))
    assert found["attention"]["constant"] == 0
    assert found["grad_cam"]["constant"] == 7
    assert found["grad_cam"]["images"] == len(predictions) - 7
    expected = correlations[7:, 1].mean()
    assert found["grad_cam"]["rank_correlation"] == pytest.approx(expected)
    nothing = agreement(np.full((len(predictions), 1), np.nan), predictions, ("grad_cam",))
    assert nothing["grad_cam"]["rank_correlation"] is None
