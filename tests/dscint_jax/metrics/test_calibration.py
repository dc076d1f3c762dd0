import numpy as np
import pytest
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss, log_loss

from dscint_jax.metrics.calibration import (
    BINS,
    abstention_curve,
    brier_score,
    calibration_error,
    fit_temperature,
    reliability_curve,
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
    np.testing.assert_allclose(curve.accuracy, accuracy)
    np.testing.assert_allclose(curve.confidence, confidence)
    assert curve.images.sum() == len(labels)
    gaps = np.abs(curve.accuracy - curve.confidence) * curve.images / len(labels)
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
    np.testing.assert_array_equal(curve.images, [1, 1, 2])
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
