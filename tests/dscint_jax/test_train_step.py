import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from dscint_jax import parallel
from dscint_jax.errors import DscintError
from dscint_jax.experiment import class_weights, make_experiment
from dscint_jax.train_step import classification_loss, train_step, warmup_cosine


def _batch(seed, size=16):
    random = np.random.default_rng(seed)
    return {
        "counts": random.poisson(20, (size, 32, 16, 1)).astype(np.int32),
        "scale": random.uniform(20, 60, size).astype(np.float32),
        "label": random.integers(0, 4, size).astype(np.int32),
        "mask": np.ones(size, bool),
    }


def _mesh(devices):
    return jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )


def _run(config, devices, steps=5):
    mesh = _mesh(devices)
    experiment = make_experiment(config, (4, 3, 2, 1))
    state = parallel.replicate(experiment.initial_state(), mesh)
    step = parallel.compile_train_step(experiment.recipe, mesh)
    losses = []
    for seed in range(steps):
        state, metrics = step(state, parallel.shard_batch(_batch(seed), mesh))
        losses.append(float(metrics["loss"]))
    return losses, state, step


@pytest.mark.parametrize("devices", [2, 8])
def test_many_devices_train_as_one_does(config, devices):
    one, many = (_run(config, n)[0] for n in (1, devices))
    np.testing.assert_allclose(many, one, rtol=1e-5)


@pytest.mark.parametrize("devices", [2, 8])
def test_batch_statistics_are_those_of_the_whole_batch(config, devices):
    # After one step: AdamW blows up the rounding of later ones.
    one, many = (_run(config, n, steps=1)[1].statistics for n in (1, devices))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_same_devices_twice_give_the_same_bits(config):
    first, second = (_run(config, 4)[1] for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def test_train_step_compiles_once(config):
    _, _, step = _run(config, 8)
    assert step._cache_size() == 1


def test_network_learns_one_batch_by_heart(config):
    config.steps, config.augmentation.rotation, config.augmentation.mirror = 150, 0.0, 0.0
    config.augmentation.translation, config.model_options.dropout = (0.0, 0.0), 0.0
    config.optimizer.learning_rate = 1e-2
    experiment = make_experiment(config, (1, 1, 1, 1))
    recipe = dataclasses.replace(experiment.recipe, label_smoothing=0.0)
    state = parallel.replicate(experiment.initial_state(), _mesh(1))
    step = parallel.compile_train_step(recipe, _mesh(1))
    batch = parallel.shard_batch(_batch(0, 8), _mesh(1))
    for _ in range(150):
        state, metrics = step(state, batch)
    assert metrics["accuracy"] == 1.0
    assert metrics["loss"] < 0.1


def test_every_parameter_has_a_gradient_and_moves(config):
    experiment = make_experiment(config, (1, 1, 1, 1))
    before = experiment.initial_state()
    step = jax.jit(functools.partial(train_step, recipe=experiment.recipe))
    # The first step's learning rate is zero: warm-up starts there.
    after = before
    for seed in range(3):
        after, metrics = step(after, _batch(seed))
        assert np.isfinite(metrics["gradient_norm"])
    paths = jax.tree_util.tree_leaves_with_path(before.params)
    for (path, old), new in zip(paths, jax.tree.leaves(after.params), strict=True):
        assert not np.array_equal(old, new), jax.tree_util.keystr(path)
    assert int(after.step) == 3


def test_loss_is_weighted_cross_entropy():
    logits = jnp.array([[2.0, 0.0, -1.0], [0.5, 0.5, 0.5]])
    loss = classification_loss(logits, jnp.array([0, 2]), jnp.array([1.0, 1.0, 3.0]), 0.0)
    expected = [-jax.nn.log_softmax(logits)[0, 0], 3 * np.log(3)]
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def test_balanced_class_weights_give_every_class_the_same_total():
    counts = (10, 30, 40, 20)
    weights = class_weights("balanced", counts)
    totals = [w * c for w, c in zip(weights, counts, strict=True)]
    np.testing.assert_allclose(totals, 25.0)
    assert class_weights("none", counts) == (1.0,) * 4
    with pytest.raises(DscintError, match="class_weights 'even'"):
        class_weights("even", counts)


def test_learning_rate_warms_up_then_falls_to_zero():
    schedule = warmup_cosine(0.1, steps=100, warmup_steps=10)
    values = np.array([float(schedule(step)) for step in range(101)])
    assert values[0] == 0
    assert abs(values.max() - 0.1) < 1e-7
    assert values.argmax() == 10
    assert values[-1] < 1e-7


def test_batch_that_does_not_fit_the_devices_is_named():
    with pytest.raises(DscintError, match=r"batch_size 12.*multiple of 8"):
        parallel.check_batch_size(12, parallel.data_mesh())
