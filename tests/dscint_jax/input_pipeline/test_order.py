import numpy as np
import pytest

from dscint_jax.input_pipeline import index_batches, load_split, training_order
from tfds_builder.commandline.errors import UserError


def test_every_epoch_holds_each_index_once_in_another_order():
    batches = index_batches(12, batch_size=4, seed=7)
    epochs = [np.concatenate([batches[3 * e + i] for i in range(3)]) for e in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(12))
    assert len({epoch.tobytes() for epoch in epochs}) == 3


def test_order_is_a_function_of_seed_and_step_alone():
    first, again, other = (index_batches(50, batch_size=8, seed=seed) for seed in (3, 3, 4))
    steps = [17, 2, 9, 40]
    for step in steps:
        np.testing.assert_array_equal(first[step], again[step])
    assert any(not np.array_equal(first[step], other[step]) for step in steps)


def test_shuffled_order_is_the_one_that_earlier_runs_had():
    batches = index_batches(12, batch_size=4, seed=7)
    assert batches[0].tolist() == [4, 11, 3, 7]
    assert batches[100].tolist() == [6, 0, 5, 7]


LABELS = np.repeat([0, 2, 3], [11, 3, 6])[np.random.default_rng(5).permutation(20)]


def _balanced(batch_size, steps, seed=3, start=0):
    order = index_batches(len(LABELS), batch_size=batch_size, seed=seed, labels=LABELS)
    return [order[step] for step in range(start, start + steps)]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7, 8])
def test_balanced_batches_hold_every_class_as_evenly_as_they_can(batch_size):
    batches = _balanced(batch_size, 30)
    for batch in batches:
        counts = np.bincount(LABELS[batch], minlength=4)
        assert counts[1] == 0
        assert np.ptp(counts[[0, 2, 3]]) <= 1
    drawn = np.bincount(LABELS[np.concatenate(batches)], minlength=4)
    assert np.ptp(drawn[[0, 2, 3]]) <= 1


@pytest.mark.parametrize("batch_size", [1, 4, 6])
def test_balanced_order_has_every_image_of_a_class_before_any_comes_again(batch_size):
    drawn = np.concatenate(_balanced(batch_size, 240 // batch_size))
    for label in (0, 2, 3):
        times = np.bincount(drawn[LABELS[drawn] == label], minlength=20)[label == LABELS]
        assert np.ptp(times) <= 1
        for step in range(1, 240 // batch_size + 1):
            so_far = drawn[: step * batch_size]
            times = np.bincount(so_far[LABELS[so_far] == label], minlength=20)[label == LABELS]
            assert np.ptp(times) <= 1


def test_balanced_order_is_a_function_of_seed_and_step_and_changes_from_round_to_round():
    whole = _balanced(4, 60)
    for step in (31, 0, 59, 7):
        np.testing.assert_array_equal(_balanced(4, 1, start=step)[0], whole[step])
    assert any(not np.array_equal(a, b) for a, b in zip(whole, _balanced(4, 60, 4), strict=True))
    drawn = np.concatenate(_balanced(1, 330))
    rounds = drawn[LABELS[drawn] == 0].reshape(10, 11)
    assert len({tuple(images) for images in rounds}) > 1


def test_classes_have_no_place_of_their_own_in_balanced_batches():
    places = np.stack([LABELS[batch] for batch in _balanced(6, 40)])
    assert all(set(place) == {0, 2, 3} for place in places.T)


def test_training_order_reads_the_labels_that_balance_needs(data_dir):
    images = load_split(data_dir, "train", pool=16, cache_gib=0)
    order = training_order(images, batch_size=8, seed=1, sampling="balanced")
    labels = images.read(np.arange(len(images)))["label"]
    assert np.bincount(labels[order[5]], minlength=4).tolist() == [2, 2, 2, 2]
    shuffled = training_order(images, batch_size=8, seed=1)
    expected = index_batches(len(images), batch_size=8, seed=1)
    np.testing.assert_array_equal(shuffled[5], expected[5])


def test_split_smaller_than_a_batch_is_named(data_dir):
    images = load_split(data_dir, "train", pool=16, cache_gib=0)
    with pytest.raises(UserError, match=r"batch_size 999"):
        training_order(images, batch_size=999, seed=0)


def test_balanced_order_is_the_one_that_earlier_runs_had():
    assert [batch.tolist() for batch in _balanced(4, 2)] == [[13, 9, 18, 12], [8, 7, 6, 14]]
