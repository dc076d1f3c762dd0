import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, precision_recall_fscore_support, recall_score

from dscint_jax.metrics.passes import confusion_matrix
from dscint_jax.metrics.scores import (
    METRIC_NAMES,
    PUBLISHED_DSCINT,
    five_metrics,
    summary,
)


def _from_scikit_learn(confusion):
    """The five metrics of the classes that are there, from lists of labels, by scikit-learn."""
    classes = range(len(confusion))
    present = [c for c in classes if confusion[c].sum()]
    true = np.concatenate([np.full(confusion[t].sum(), t) for t in classes])
    predicted = np.concatenate([np.repeat(list(classes), confusion[t]) for t in classes])
    precision, recall, f1, _ = precision_recall_fscore_support(
        true, predicted, labels=present, average="macro", zero_division=0
    )
    specificity = [
        recall_score(true != c, predicted != c, pos_label=True, zero_division=np.nan)
        for c in present
    ]
    return {
        "accuracy": accuracy_score(true, predicted),
        "precision": precision,
        "recall": recall,
        "specificity": np.mean(specificity),
        "f1": f1,
    }


def _random_matrix(seed, *, classes=4, never_predicted=None, absent=None):
    random = np.random.default_rng(seed)
    confusion = random.integers(0, 40, (classes, classes))
    if never_predicted is not None:
        confusion[:, never_predicted] = 0
    if absent is not None:
        confusion[absent] = 0
    return confusion


DEGENERATE = {
    "never predicted": {"never_predicted": 2},
    "absent": {"absent": 1},
    "absent and never predicted": {"absent": 3, "never_predicted": 3},
    "one absent, another never predicted": {"absent": 0, "never_predicted": 2},
}


def _assert_equal(confusion):
    expected = _from_scikit_learn(confusion)
    found = five_metrics(confusion)
    for name in METRIC_NAMES:
        np.testing.assert_allclose(found[name], expected[name], rtol=1e-12, err_msg=name)


@pytest.mark.parametrize("classes", [2, 3, 4, 6])
@pytest.mark.parametrize("seed", range(5))
def test_five_metrics_equal_scikit_learn(seed, classes):
    _assert_equal(_random_matrix(seed, classes=classes))


@pytest.mark.parametrize("present", [1, 2, 3])
def test_perfect_reader_of_some_of_the_classes_has_ones_and_nothing_else(present):
    confusion = np.diag([30, 20, 10][:present] + [0] * (4 - present))
    found = five_metrics(confusion)
    undefined = {"specificity"} if present == 1 else set()
    for name in METRIC_NAMES:
        assert np.isnan(found[name]) if name in undefined else found[name] == 1


def test_no_image_at_all_has_no_metrics_and_no_warning():
    assert all(np.isnan(v) for v in five_metrics(np.zeros((3, 3))).values())


@pytest.mark.parametrize("case", DEGENERATE)
def test_five_metrics_equal_scikit_learn_on_degenerate_matrices(case):
    for seed in range(5):
        _assert_equal(_random_matrix(seed, **DEGENERATE[case]))


def test_five_metrics_equal_scikit_learn_where_one_class_is_all_there_is():
    confusion = np.zeros((4, 4), int)
    confusion[1, 1] = 7
    _assert_equal(confusion)


def test_five_metrics_of_many_matrices_are_those_of_each():
    matrices = np.stack([_random_matrix(seed) for seed in range(6)])
    together = five_metrics(matrices)
    for i, matrix in enumerate(matrices):
        for name, value in five_metrics(matrix).items():
            assert together[name][i] == value


def test_published_specificity_fits_the_one_vs_rest_reading():
    published = PUBLISHED_DSCINT
    assert abs(1 - (1 - published["accuracy"]) / 3 - published["specificity"]) < 2e-4


def test_summary_names_classes_without_images_and_those_never_predicted():
    confusion = _random_matrix(0, never_predicted=2, absent=1)
    found = summary(confusion, ["a", "b", "c", "d"])
    assert found["never_predicted"] == ["c"]
    assert found["absent"] == ["b"]
    assert found["per_class"]["c"]["precision"] == 0
    assert found["per_class"]["b"] == {
        "precision": None,
        "recall": None,
        "specificity": None,
        "f1": None,
        "support": 0,
    }
    assert found["support"] == confusion.sum()


@pytest.mark.parametrize("batch", [1, 7, 50])
def test_confusion_matrix_is_the_same_for_any_batching_and_ignores_padding(batch):
    random = np.random.default_rng(batch)
    logits = random.normal(size=(50, 4)).astype(np.float32)
    labels = random.integers(0, 4, 50)
    expected = np.zeros((4, 4), int)
    np.add.at(expected, (labels, logits.argmax(-1)), 1)
    total = np.zeros((4, 4), int)
    for start in range(0, 50, batch):
        part = slice(start, start + batch)
        padded = np.concatenate([logits[part], random.normal(size=(3, 4))])
        mask = np.arange(len(padded)) < len(logits[part])
        padded_labels = jnp.array(np.concatenate([labels[part], [0, 1, 2]]))
        total += np.asarray(confusion_matrix(jnp.array(padded), padded_labels, jnp.array(mask)))
    np.testing.assert_array_equal(total, expected)
