import numpy as np
import pytest

from dscint_jax.evaluate.restored import load_trained
from dscint_jax.explain.maps import (
    ATTENTION,
    GRAD_CAM,
    METHODS,
    Explained,
    explain,
    full_batch,
    resize,
)


@pytest.fixture(scope="module")
def network(trained):
    return load_trained(trained, split="train", checkpoint="best")


def _explained(**maps):
    views = np.ones((2, 4, 3), np.float32)
    return Explained(views, np.array([1.0]), 0, "both", 0, maps)


def test_heat_is_between_0_and_1_over_both_views_together():
    maps = np.random.default_rng(0).normal(5, 2, (2, 4, 3)).astype(np.float32)
    maps[1] -= 10
    heat = _explained(attention=maps, grad_cam=np.full((2, 4, 3), 0.3)).heat
    low, high = maps.min(), maps.max()
    np.testing.assert_allclose(heat[ATTENTION], (maps - low) / (high - low), atol=1e-6)
    assert heat[ATTENTION][0].min() > heat[ATTENTION][1].max()
    assert not heat[GRAD_CAM].any()
    assert list(_explained(grad_cam=maps).heat) == [GRAD_CAM]
    assert _explained().heat == {}


def test_every_image_has_all_maps_at_its_size_in_any_order(network):
    count = network.batch_size + 3
    indices = np.random.default_rng(1).permutation(count)
    explained = list(explain(network, indices))
    batch_labels = network.images.read(indices)["label"]
    batch = full_batch(network, indices[:2])
    maps = np.asarray(network.maps(batch).attention.spatial)[..., 0]
    for n, item in enumerate(explained):
        assert set(item.heat) == set(METHODS)
        for heat in item.heat.values():
            assert heat.shape == item.views.shape == (1, 64, 16)
            assert heat.min() >= 0
            assert heat.max() <= 1
        assert item.target == item.label == batch_labels[n]
        if n < 2:
            np.testing.assert_allclose(
                item.maps[ATTENTION][0], resize(maps[n], (64, 16)), rtol=1e-5
            )
    alone = next(explain(network, indices[-1:]))
    np.testing.assert_allclose(
        alone.maps[GRAD_CAM], explained[-1].maps[GRAD_CAM], rtol=1e-4, atol=1e-7
    )


def test_maps_are_of_the_class_that_is_asked_for(network):
    indices = np.arange(len(network.images))
    of_true = list(explain(network, indices))
    predicted = np.array([item.probabilities.argmax() for item in of_true])
    of_read = list(explain(network, indices, predicted))
    assert [item.target for item in of_true] == [item.label for item in of_true]
    assert [item.target for item in of_read] == predicted.tolist()
    for true, read in zip(of_true, of_read, strict=True):
        same = np.allclose(true.maps[GRAD_CAM], read.maps[GRAD_CAM])
        assert same or true.target != read.target
    wrong = [n for n, item in enumerate(of_read) if item.target != item.label]
    for name in ("grad_cam", "gradient_input"):
        assert not all(np.allclose(of_true[n].maps[name], of_read[n].maps[name]) for n in wrong)
    n = wrong[0]
    batch = full_batch(network, indices[n : n + 1])
    maps = np.asarray(network.maps(batch).grad_cam)[0]
    np.testing.assert_allclose(of_true[n].maps[GRAD_CAM][0], resize(maps, (64, 16)), rtol=1e-5)


def test_random_weights_are_others_and_the_network_keeps_its_own(network):
    batch = full_batch(network, np.arange(4))
    before = np.asarray(network.evaluate(batch).probabilities)
    untrained = network.with_random_weights()
    assert not np.allclose(np.asarray(untrained.evaluate(batch).probabilities), before)
    np.testing.assert_array_equal(np.asarray(network.evaluate(batch).probabilities), before)
    again = network.with_random_weights()
    np.testing.assert_array_equal(
        np.asarray(again.evaluate(batch).probabilities),
        np.asarray(untrained.evaluate(batch).probabilities),
    )
