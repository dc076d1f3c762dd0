import numpy as np
import pytest
from scipy.stats import norm
from statsmodels.stats import contingency_tables, multitest

from dscint_jax.metrics.discrimination import auroc
from dscint_jax.metrics.intervals import (
    bootstrap_intervals,
    patient_confusions,
    patient_weights,
    percentile_interval,
)
from dscint_jax.metrics.paired_tests import (
    compare_areas,
    compare_metrics,
    delong,
    holm,
    mcnemar,
    seed_mean_intervals,
)
from dscint_jax.metrics.scores import five_metrics


def _readers(seed, patients=40, images_each=3, skills=(0.8, 0.8), classes=3):
    """Readers of the same images; what is hard in a patient is hard in all of his images."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(patients) % classes, images_each)
    names = np.repeat(np.arange(patients), images_each)
    ease = np.repeat(random.normal(size=patients), images_each)
    confusions = []
    for skill in skills:
        right = ease + random.normal(size=len(labels)) < np.sqrt(2) * norm.ppf(skill)
        wrong = (labels + random.integers(1, classes, len(labels))) % classes
        predicted = np.where(right, labels, wrong)
        confusions.append(patient_confusions(labels, predicted, names, classes)[None])
    return confusions


def test_difference_is_that_of_the_metrics_and_lies_in_its_interval():
    first, second = _readers(0, skills=(0.9, 0.7))
    found = compare_metrics(first, second)
    for name, value in five_metrics(first[0].sum(0)).items():
        expected = value - five_metrics(second[0].sum(0))[name]
        assert found[name].value == pytest.approx(expected)
        assert found[name].low <= found[name].value <= found[name].high
        assert found[name].p < 0.05
    assert found == compare_metrics(first, second)


def test_reader_against_itself_differs_by_nothing():
    first, _ = _readers(1)
    for difference in compare_metrics(first, first).values():
        assert (difference.value, difference.low, difference.high) == (0, 0, 0)
        assert difference.p == 1


def test_patients_of_one_reader_alone_are_drawn_within_their_class():
    first, second = _readers(4, patients=60, skills=(0.9, 0.6))
    first[:, 20:40], second[:, :20] = 0, 0
    weights = patient_weights((first + second)[0])
    assert weights[:, np.arange(60) % 3 == 1].sum(1) == pytest.approx(20)
    drawn = [
        five_metrics(np.tensordot(weights, reader[0], axes=1))["accuracy"]
        for reader in (first, second)
    ]
    found = compare_metrics(first, second)["accuracy"]
    assert [found.low, found.high] == pytest.approx(percentile_interval(drawn[0] - drawn[1]))


def test_permutation_test_is_the_share_of_all_ways_to_swap():
    first, second = _readers(2, patients=9, images_each=2, skills=(0.9, 0.5))
    observed = {
        name: value - five_metrics(second[0].sum(0))[name]
        for name, value in five_metrics(first[0].sum(0)).items()
    }
    as_far = dict.fromkeys(observed, 0)
    for code in range(2**9):
        swap = (code >> np.arange(9) & 1).astype(bool)[:, None, None]
        one = five_metrics(np.where(swap, second[0], first[0]).sum(0))
        other = five_metrics(np.where(swap, first[0], second[0]).sum(0))
        for name in observed:
            as_far[name] += abs(one[name] - other[name]) >= abs(observed[name]) - 1e-12
    found = compare_metrics(first, second, resamples=20_000)
    for name, count in as_far.items():
        assert found[name].p == pytest.approx(count / 2**9, abs=0.012)


@pytest.mark.slow
def test_permutation_test_gives_three_to_seven_percent_of_false_alarms():
    alarms = [compare_metrics(*_readers(seed), resamples=400)["f1"].p < 0.05 for seed in range(600)]
    assert 0.03 <= np.mean(alarms) <= 0.07


def test_metrics_of_several_seeds_are_their_means_and_need_as_many_of_both():
    a, b = _readers(3, skills=(0.85, 0.8))
    c, d = _readers(4, skills=(0.7, 0.6))
    first, second = np.concatenate([a, b]), np.concatenate([c, d])
    found = compare_metrics(first, second)["accuracy"]
    accuracy = [five_metrics(m[0].sum(0))["accuracy"] for m in (a, b, c, d)]
    assert found.value == pytest.approx(np.mean(accuracy[:2]) - np.mean(accuracy[2:]))
    uneven = compare_metrics(first, c)["accuracy"]
    assert np.isnan(uneven.p)
    assert uneven.low < uneven.value < uneven.high


def test_class_of_one_patient_leaves_no_interval_but_a_test():
    labels = np.array([0, 0, 0, 1])
    first = patient_confusions(labels, labels, np.arange(4), 2)[None]
    second = patient_confusions(labels, np.zeros(4, int), np.arange(4), 2)[None]
    found = compare_metrics(first, second)["recall"]
    assert np.isnan(found.low)
    assert found.p == 1


def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_patients():
    random = np.random.default_rng(5)
    for size in (10, 60):
        first, second = random.random((2, size)) < np.array([[0.8], [0.6]])
        table = [[np.sum(first & second), np.sum(first & ~second)]]
        table.append([np.sum(~first & second), np.sum(~first & ~second)])
        expected = contingency_tables.mcnemar(table, exact=True).pvalue
        only_first, only_second, p = mcnemar(first, second)
        assert (only_first, only_second) == (table[0][1], table[1][0])
        assert p == pytest.approx(expected)
    assert mcnemar(first, first) == (0, 0, 1.0)


def _scored(seed, patients=30, images_each=1):
    random = np.random.default_rng(seed)
    names = np.repeat(np.arange(patients), images_each)
    positive = np.repeat(random.random(patients) < 0.4, images_each)
    signal = np.repeat(random.normal(size=patients), images_each) + positive
    readers = [np.round(signal + random.normal(size=len(names)), 1) for _ in range(2)]
    return readers, positive, names


def test_delong_is_its_direct_computation():
    readers, positive, names = _scored(6)
    areas, covariance = delong(readers, positive, names)
    kernels = []
    for scores in readers:
        high, low = scores[positive][:, None], scores[~positive][None]
        kernels.append((high > low) + 0.5 * (high == low))
    for area, kernel, scores in zip(areas, kernels, readers, strict=True):
        assert area == pytest.approx(kernel.mean())
        assert area == pytest.approx(float(auroc(scores, positive)))
    for i, j in np.ndindex(2, 2):
        of_positive = np.cov(kernels[i].mean(1), kernels[j].mean(1))[0, 1] / positive.sum()
        of_others = np.cov(kernels[i].mean(0), kernels[j].mean(0))[0, 1] / (~positive).sum()
        assert covariance[i, j] == pytest.approx(of_positive + of_others)


def test_delong_of_copies_of_every_image_knows_that_they_are_no_new_patients():
    readers, positive, names = _scored(7, patients=50)
    areas, covariance = delong(readers, positive, names)
    copies = [np.repeat(scores, 3) for scores in readers]
    again, clustered = delong(copies, np.repeat(positive, 3), np.repeat(names, 3))
    np.testing.assert_allclose(again, areas)
    np.testing.assert_allclose(clustered, covariance)
    _, independent = delong(copies, np.repeat(positive, 3), np.arange(150))
    assert independent[0, 0] < 0.4 * clustered[0, 0]


@pytest.mark.slow
def test_delong_of_repeated_images_gives_three_to_seven_percent_of_false_alarms():
    alarms = []
    for seed in range(600):
        (first, second), positive, names = _scored(seed, patients=60, images_each=3)
        alarms.append(compare_areas([first], [second], positive, names).p < 0.05)
    assert 0.03 <= np.mean(alarms) <= 0.07


def test_areas_of_patients_who_do_not_vary_are_not_tested():
    positive, patients = np.array([True, True, False, False]), np.arange(4)
    found = compare_areas([np.array([0.9, 0.8, 0.2, 0.1])], [np.full(4, 0.5)], positive, patients)
    assert found.value == 0.5
    assert np.isnan([found.low, found.high, found.p]).all()


def test_areas_of_one_reader_twice_or_of_too_few_patients():
    readers, positive, names = _scored(8)
    same = compare_areas(readers[:1], readers[:1], positive, names)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    one = np.arange(30) == 3
    assert np.isnan(compare_areas(readers[:1], readers[1:], one, names).p)


def test_areas_of_seeds_are_their_means_and_copies_of_a_seed_add_nothing():
    readers, positive, names = _scored(10)
    alone = compare_areas(readers[:1], readers[1:], positive, names)
    twice = compare_areas(readers[:1] * 2, readers[1:] * 3, positive, names)
    assert twice.value == pytest.approx(alone.value)
    assert twice.p == pytest.approx(alone.p)
    mixed = compare_areas(readers, readers[1:], positive, names)
    assert mixed.value == pytest.approx(alone.value / 2)


def test_holm_is_that_of_statsmodels_and_leaves_what_was_not_tested():
    p_values = np.random.default_rng(9).random(12) ** 3
    expected = multitest.multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(holm(list(p_values)), expected)
    assert holm([0.01, float("nan"), 0.04])[::2] == [0.02, 0.04]
    assert np.isnan(holm([0.01, float("nan")])[1])


def test_interval_of_one_seed_is_the_bootstraps_and_that_of_several_holds_their_mean():
    confusions = np.concatenate(_readers(3, skills=(0.7, 0.8, 0.9)))
    alone, several = seed_mean_intervals(confusions[:1]), seed_mean_intervals(confusions)
    for name, bounds in bootstrap_intervals(confusions[0]).items():
        assert alone[name] == pytest.approx(bounds)
    means = {name: values.mean() for name, values in five_metrics(confusions.sum(1)).items()}
    for name, (low, high) in several.items():
        assert low < means[name] < high


def test_class_of_one_patient_leaves_no_interval_of_the_mean():
    confusions = np.concatenate(_readers(3, patients=4))
    assert {*seed_mean_intervals(confusions).values()} == {None}
