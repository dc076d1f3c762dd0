import functools

import numpy as np
import pytest
from scipy.stats import binomtest, norm

from dscint_jax.metrics.discrimination import auroc
from dscint_jax.metrics.intervals import (
    bootstrap_intervals,
    classes_of_few_patients,
    classes_of_one_patient,
    interval_of,
    patient_confusions,
    patient_weights,
    share_interval,
)
from dscint_jax.metrics.scores import five_metrics, one_vs_rest
from tests import interval_coverage


def _sample(random, patients, images_each, accuracy):
    """Images of one patient are all right or all wrong: the strongest clustering."""
    labels = np.repeat(random.integers(0, 4, patients), images_each)
    right = np.repeat(random.random(patients) < accuracy, images_each)
    predicted = np.where(right, labels, (labels + 1) % 4)
    names = np.repeat([f"patient{i:03d}" for i in range(patients)], images_each)
    return labels, predicted, names


def test_patient_confusions_add_up_to_the_whole():
    random = np.random.default_rng(0)
    labels, predicted, names = _sample(random, 30, 3, 0.7)
    matrices = patient_confusions(labels, predicted, names, 4)
    assert matrices.shape == (30, 4, 4)
    assert (matrices.sum((1, 2)) == 3).all()
    whole = np.zeros((4, 4), int)
    np.add.at(whole, (labels, predicted), 1)
    np.testing.assert_array_equal(matrices.sum(0), whole)


def test_intervals_cover_the_true_accuracy_about_as_often_as_they_claim():
    random = np.random.default_rng(1)
    covered = 0
    for trial in range(120):
        matrices = patient_confusions(*_sample(random, 60, 4, 0.8), 4)
        low, high = bootstrap_intervals(matrices, resamples=400, seed=trial)["accuracy"]
        covered += low <= 0.8 <= high
    assert 0.85 <= covered / 120 <= 1.0


@pytest.mark.exhaustive
def test_intervals_of_repeated_images_hold_the_truth_and_those_over_images_do_not():
    held = {"patients": 0, "images": 0, "area": 0}
    for trial in range(500):
        random = np.random.default_rng([1, trial])
        labels, predicted, names = _sample(random, 90, 4, 0.8)
        for unit, owners in (("patients", names), ("images", np.arange(len(labels)))):
            matrices = patient_confusions(labels, predicted, owners, 4)
            low, high = bootstrap_intervals(matrices, resamples=500, seed=trial)["accuracy"]
            held[unit] += low <= 0.8 <= high
        # Scores of two normal distributions a unit apart, alike for all images of a patient.
        positive = labels < 2
        scores = np.repeat(random.normal(size=90), 4) + positive + 0.1 * random.normal(size=360)
        matrices = patient_confusions(labels, labels, names, 4)
        weights = patient_weights(matrices, resamples=500, seed=trial)
        patient = np.unique(names, return_inverse=True)[1]
        area = functools.partial(auroc, scores, positive)
        low, high = interval_of(area, weights, patient)
        held["area"] += low <= norm.cdf(1 / np.sqrt(2 * 1.01)) <= high
    assert 0.92 <= held["patients"] / 500 <= 0.98
    assert 0.92 <= held["area"] / 500 <= 0.98
    assert held["images"] / 500 < 0.80


def test_intervals_are_wider_than_if_images_were_independent():
    random = np.random.default_rng(2)
    labels, predicted, names = _sample(random, 60, 6, 0.8)
    clustered = patient_confusions(labels, predicted, names, 4)
    independent = patient_confusions(labels, predicted, np.arange(len(labels)), 4)
    width = lambda m: np.diff(bootstrap_intervals(m)["accuracy"])[0]  # noqa: E731
    assert width(clustered) > 1.8 * width(independent)


def test_intervals_contain_the_estimate_and_repeat_with_the_seed():
    matrices = patient_confusions(*_sample(np.random.default_rng(3), 50, 2, 0.75), 4)
    intervals = bootstrap_intervals(matrices, seed=5)
    assert intervals == bootstrap_intervals(matrices, seed=5)
    for name, value in five_metrics(matrices.sum(0)).items():
        assert intervals[name][0] <= value <= intervals[name][1]


@pytest.mark.parametrize("sizes", [(3, 3, 3, 3), (40, 5, 0, 0), (9, 2, 2), (50, 50)])
def test_perfect_reader_has_an_upper_bound_of_one_and_a_lower_one_by_the_patients(sizes):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    matrices = patient_confusions(labels, labels, np.arange(len(labels)), len(sizes))
    intervals = bootstrap_intervals(matrices)
    assert {high for _, high in intervals.values()} == {1}
    low, _ = _recalls(matrices)["recall 0"]
    exact = binomtest(sizes[0], sizes[0]).proportion_ci(method="exact").low
    assert low == pytest.approx(exact, abs=0.01)
    assert intervals["recall"][0] < 1


def test_no_interval_where_a_class_has_one_patient():
    labels = np.array([0, 0, 0, 2])
    matrices = patient_confusions(labels, labels, list("abcd"), 3)
    assert set(bootstrap_intervals(matrices).values()) == {None}
    assert classes_of_one_patient(matrices) == [2]
    assert classes_of_few_patients(matrices) == [0]


def test_one_class_has_intervals_of_all_but_specificity():
    labels, predicted = np.zeros(20, int), np.arange(20) % 5 // 4
    matrices = patient_confusions(labels, predicted, np.arange(20), 2)
    intervals = bootstrap_intervals(matrices)
    assert intervals.pop("specificity") is None
    assert intervals["recall"][0] < 0.8 < intervals["recall"][1]
    assert classes_of_one_patient(matrices) == classes_of_few_patients(matrices) == []


def _recalls(matrices):
    recalls = lambda m: {f"recall {n}": v for n, v in enumerate(one_vs_rest(m)["recall"].T)}  # noqa: E731
    return bootstrap_intervals(matrices, recalls, resamples=20_000)


@pytest.mark.parametrize("patients, right", [(10, 0), (10, 10), (30, 29), (40, 20), (100, 97)])
def test_recall_of_one_image_a_patient_has_the_exact_interval_of_clopper_and_pearson(
    patients, right
):
    labels = np.repeat([0, 1], [patients, 20])
    predicted = np.where(np.arange(patients + 20) < right, 0, 1)
    matrices = patient_confusions(labels, predicted, np.arange(len(labels)), 2)
    exact = binomtest(right, patients).proportion_ci(method="exact")
    assert _recalls(matrices)["recall 0"] == pytest.approx([exact.low, exact.high], abs=0.01)
    shared = share_interval(predicted[:patients] == 0, np.arange(patients))
    assert shared == pytest.approx([exact.low, exact.high], abs=0.015)


def test_share_of_images_of_the_same_patients_is_as_uncertain_as_that_of_the_patients():
    right = np.random.default_rng(4).random(40) < 0.9
    alone = share_interval(right, np.arange(40))
    assert share_interval(np.repeat(right, 5), np.repeat(np.arange(40), 5)) == pytest.approx(alone)
    assert share_interval(right[:3], np.zeros(3)) is None
    assert share_interval(right[:0], np.zeros(0)) is None


@pytest.mark.slow
@pytest.mark.parametrize("right", interval_coverage.READERS.values())
def test_intervals_hold_the_truth_as_often_as_they_claim_near_one_too(right):
    held = interval_coverage.coverage(right, patients=10, trials=200, resamples=300)
    assert min(held.values()) >= 0.92


def _mixed(patients, predicted_of_1):
    """Ten patients of class 0, of whom some have an image of class 1 too."""
    labels = np.array([0] * 20 + [1] * patients)
    predicted = np.where(labels == 1, predicted_of_1, 0)
    names = np.array([*np.repeat(np.arange(10), 2), *range(patients)])
    return patient_confusions(labels, predicted, names, 2)


def test_no_interval_where_one_patient_has_a_class_beside_another():
    matrices = _mixed(1, predicted_of_1=0)
    assert set(bootstrap_intervals(matrices).values()) == {None}
    assert classes_of_one_patient(matrices) == [1]


def test_patients_of_several_classes_are_drawn_within_the_rarest_so_that_none_is_lost():
    weights = patient_weights(_mixed(2, 0))
    # Two patients have class 1; of each resample one of them counts twice.
    np.testing.assert_array_equal(np.sort(weights[:, :2]), [[0, 2]] * len(weights))
