import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from dscint_jax.metrics.calibration import (
    BINS,
    abstention_curve,
    brier_score,
    calibration_error,
    fewest_read,
    fit_temperature,
    reliability_curve,
    threshold_of_accuracy,
    with_temperature,
)


def _images(seed, number=400, temperature=1.0, classes=4):
    """Images whose labels are drawn from the softmax of their logits over `temperature`."""
    random = np.random.default_rng(seed)
    logits = 2.5 * random.normal(size=(number, classes))
    true = with_temperature(np.exp(logits - logits.max(1, keepdims=True)), temperature)
    labels = np.array([random.choice(classes, p=row) for row in true])
    odds = np.exp(logits)
    return odds / odds.sum(1, keepdims=True), labels


@pytest.mark.parametrize("classes", [2, 4])
def test_brier_score_is_that_of_scikit_learn(classes):
    probabilities, labels = _images(0, classes=classes)
    expected = brier_score_loss(
        labels, probabilities, scale_by_half=False, labels=list(range(classes))
    )
    assert brier_score(probabilities, labels) == pytest.approx(expected)
    weights = np.random.default_rng(1).integers(0, 3, (3, len(labels))).astype(float)
    for weight, found in zip(weights, brier_score(probabilities, labels, weights), strict=True):
        repeated = np.repeat(np.arange(len(labels)), weight.astype(int))
        assert found == pytest.approx(brier_score(probabilities[repeated], labels[repeated]))


def test_reliability_curve_is_that_of_scikit_learn_and_gives_the_calibration_error():
    probabilities, labels = _images(2, temperature=2.0)
    curve = reliability_curve(probabilities, labels)
    right = probabilities.argmax(1) == labels
    accuracy, confidence = calibration_curve(right, probabilities.max(1), n_bins=BINS)
    np.testing.assert_allclose(curve["accuracy"], accuracy)
    np.testing.assert_allclose(curve["confidence"], confidence)
    assert curve["images"].sum() == len(labels)
    gaps = np.abs(curve["accuracy"] - curve["confidence"]) * curve["images"] / len(labels)
    assert calibration_error(probabilities, labels) == pytest.approx(gaps.sum())
    weights = np.random.default_rng(3).integers(0, 3, (4, len(labels))).astype(float)
    found = calibration_error(probabilities, labels, weights)
    for weight, error in zip(weights, found, strict=True):
        repeated = np.repeat(np.arange(len(labels)), weight.astype(int))
        expected = calibration_error(probabilities[repeated], labels[repeated])
        assert error == pytest.approx(expected)


def test_bins_hold_zero_and_one_and_their_upper_bound():
    probabilities = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.4], [0.5, 0.5]])
    curve = reliability_curve(probabilities, np.array([0, 1, 0, 0]))
    np.testing.assert_array_equal(curve["images"], [1, 1, 2])
    assert calibration_error(probabilities, np.array([0, 1, 0, 0])) == pytest.approx(0.225)


@pytest.mark.parametrize("temperature", [0.6, 1.0, 2.5])
def test_temperature_of_the_labels_is_found_and_has_the_least_cross_entropy(temperature):
    probabilities, labels = _images(4, 6000, temperature)
    found = fit_temperature(probabilities, labels)
    assert found == pytest.approx(temperature, rel=0.1)
    grid = np.linspace(0.3, 4, 60)
    losses = [log_loss(labels, with_temperature(probabilities, t)) for t in grid]
    assert log_loss(labels, with_temperature(probabilities, found)) <= min(losses) + 1e-9
    warmed = with_temperature(probabilities, found)
    np.testing.assert_array_equal(warmed.argmax(1), probabilities.argmax(1))
    assert calibration_error(warmed, labels) < 0.03


def test_perfect_and_certain_reader_has_a_temperature_and_no_class_is_impossible():
    probabilities, labels = np.eye(3)[[0, 1, 2, 0]], np.array([0, 1, 2, 0])
    assert np.isfinite(fit_temperature(probabilities, labels))
    assert (with_temperature(probabilities, 1.0) > 0).all()


def test_abstention_leaves_the_sure_images_and_ends_with_all():
    probabilities = np.array([[0.9, 0.1], [0.8, 0.2], [0.2, 0.8], [0.4, 0.6]])
    curve = abstention_curve(probabilities, np.array([0, 1, 1, 0]))
    np.testing.assert_allclose(curve.threshold, [0.9, 0.8, 0.6])
    np.testing.assert_allclose(curve.coverage, [0.25, 0.75, 1.0])
    np.testing.assert_allclose(curve.accuracy, [1, 2 / 3, 0.5])


def _read(confidence, right):
    """Images of two classes: their confidence, and whether it is in the true class."""
    confidence = np.array(confidence, float)
    return np.stack([confidence, 1 - confidence], 1), np.where(right, 0, 1)


def test_threshold_is_the_smallest_that_an_exact_test_shows_to_keep_the_accuracy():
    random = np.random.default_rng(0)
    confidence = np.linspace(0.99, 0.51, 300)
    right = random.random(300) < np.where(confidence > 0.7, 0.98, 0.4)
    found = threshold_of_accuracy(*_read(confidence, right), 0.9)
    kept = []
    for n in range(75, 301):
        test = binomtest(int(right[:n].sum()), n, 0.9, alternative="greater")
        if test.pvalue > 0.05:
            break
        kept.append(confidence[n - 1])
    assert found == pytest.approx(kept[-1])
    assert 0.55 < found < 0.7


def test_threshold_needs_enough_answers_and_is_nought_where_all_may_be_read():
    assert [fewest_read(target) for target in (0.9, 0.95)] == [29, 59]
    for number, threshold in ((58, None), (59, 0.0)):
        sure = _read(np.linspace(0.9, 0.6, number), np.ones(number, bool))
        assert threshold_of_accuracy(*sure, 0.95) == threshold
    one_wrong = np.arange(60) != 59
    assert threshold_of_accuracy(*_read(np.full(60, 0.8), one_wrong), 0.95) is None
    ordered = _read(np.linspace(0.9, 0.6, 60), one_wrong)
    assert threshold_of_accuracy(*ordered, 0.95) == pytest.approx(np.linspace(0.9, 0.6, 60)[58])
    assert threshold_of_accuracy(np.zeros((0, 2)), np.zeros(0, int), 0.95) is None


def test_accuracy_of_what_is_read_is_below_the_target_in_one_choice_of_twenty_at_most():
    many, true = _images(9, 40_000)
    confidence, right = many.max(1), many.argmax(1) == true
    below = 0
    for seed in range(200):
        chosen = np.random.default_rng(seed).integers(0, len(true), 300)
        threshold = threshold_of_accuracy(many[chosen], true[chosen], 0.9)
        read = confidence >= (np.inf if threshold is None else threshold)
        below += read.any() and right[read].mean() < 0.9
    # Of 200 with a chance of 1 in 20, more than 18 come once in about 100.
    assert below <= 18
