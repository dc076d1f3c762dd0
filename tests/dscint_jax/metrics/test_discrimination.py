import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from dscint_jax.metrics.discrimination import (
    auroc,
    average_precision,
    best_point,
    operating_point,
)

CASES = [(20, 2), (60, 5), (200, 1000)]


def _images(seed, number, values):
    """Scores of few values have ties."""
    random = np.random.default_rng(seed)
    positive = random.random(number) < 0.4
    scores = np.round((random.random(number) + 0.3 * positive) * values) / values
    return random, scores, positive


@pytest.mark.parametrize("number, values", CASES)
def test_areas_are_those_of_scikit_learn_with_ties_and_weights(number, values):
    random, scores, positive = _images(number, number, values)
    assert auroc(scores, positive) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)
    expected = average_precision_score(positive, scores)
    assert average_precision(scores, positive) == pytest.approx(expected, abs=1e-12)
    weights = random.integers(0, 4, (6, number)).astype(float)
    for ours, theirs in (
        (auroc, roc_auc_score),
        (average_precision, average_precision_score),
    ):
        expected = [theirs(positive, scores, sample_weight=w) for w in weights]
        np.testing.assert_allclose(ours(scores, positive, weights), expected, atol=1e-12)


def test_area_without_one_of_the_two_is_not_defined():
    scores = np.array([0.1, 0.8, 0.3])
    for positive in (np.zeros(3, bool), np.ones(3, bool)):
        assert np.isnan(auroc(scores, positive))
    assert np.isnan(average_precision(scores, np.zeros(3, bool)))
    weights = np.array([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    found = auroc(scores, np.array([False, True, False]), weights)
    np.testing.assert_array_equal(found, [np.nan, 1])
    assert np.isnan(auroc(np.zeros(0), np.zeros(0, bool)))


@pytest.mark.parametrize("number, values", CASES)
@pytest.mark.parametrize("least", [0.0, 0.5, 0.95, 1.0])
def test_operating_points_are_the_best_on_the_curve_of_scikit_learn(number, values, least):
    _, scores, positive = _images(number + 1, number, values)
    false_alarms, hits, _ = roc_curve(positive, scores, drop_intermediate=False)
    point = best_point(scores, positive, "specificity", least)
    assert point.specificity >= least
    assert point.sensitivity == pytest.approx(hits[1 - false_alarms >= least].max())
    assert operating_point(scores, positive, point.threshold) == point
    point = best_point(scores, positive, "sensitivity", least)
    assert point.sensitivity >= least
    assert point.specificity == pytest.approx((1 - false_alarms)[hits >= least].max())


@pytest.mark.parametrize("aim", ["specificity", "sensitivity"])
@pytest.mark.parametrize("number, values", [*CASES, (80, 0)])
def test_no_threshold_does_better_by_both_than_an_operating_point(aim, number, values):
    _, scores, positive = _images(5, number, max(values, 1))
    if not values:  # Perfectly told apart: there is a threshold without any error.
        scores = positive + np.linspace(0, 0.5, number)
    point = best_point(scores, positive, aim, 0.8)
    for threshold in np.unique(scores):
        other = operating_point(scores, positive, threshold)
        higher = other.sensitivity > point.sensitivity, other.specificity > point.specificity
        lower = other.sensitivity < point.sensitivity, other.specificity < point.specificity
        assert getattr(other, aim) < 0.8 or not any(higher) or any(lower)
    if not values:
        assert (point.sensitivity, point.specificity) == (1, 1)


def test_threshold_chosen_on_some_images_is_carried_to_others():
    scores, positive = np.array([0.2, 0.6, 0.7, 0.9]), np.array([False, False, True, True])
    point = best_point(scores, positive, "specificity", 0.95)
    assert (point.threshold, point.sensitivity, point.specificity) == (0.7, 1.0, 1.0)
    drifted = operating_point(scores - 0.1, positive, point.threshold)
    assert (drifted.sensitivity, drifted.specificity) == (0.5, 1.0)
