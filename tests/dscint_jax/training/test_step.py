import functools
import math
import re

import jax
import numpy as np
import pytest
from jax.sharding import AxisType

from dscint_jax.mesh import AXIS, check_batch_size, data_mesh, replicate, shard_batch
from dscint_jax.training import parallel
from dscint_jax.training.experiment import make_experiment
from dscint_jax.training.losses import class_weights
from dscint_jax.training.step import train_step
from tfds_builder.commandline.errors import UserError


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


def _run(config, devices, steps=5, spmd="jit"):
    mesh = _mesh(devices)
    experiment = make_experiment(config, (4, 3, 2, 1), AXIS)
    state = replicate(experiment.initial_state(), mesh)
    step = parallel.compile_train_step(experiment.spec, mesh, spmd)
    losses = []
    for seed in range(steps):
        state, metrics = step(state, shard_batch(_batch(seed), mesh))
        losses.append(float(metrics["loss"]))
    return losses, state, step


@pytest.fixture
def everything(config):
    """All that is random, BatchNorm, and an optimiser with others within it."""
    names = ("rotated", "scaled", "intensified", "thinned")
    halves = {f"augmentation.{name}": 0.5 for name in names}
    options = {"model_options.dropout": 0.3, "optimizer.name": "muon"}
    return config.replaced({"steps": 20, **options, **halves})


@pytest.fixture(scope="module")
def losses_of_one_device():
    return {}


@pytest.mark.parametrize(
    ("devices", "spmd"),
    [
        pytest.param(
            *(devices, spmd),
            marks=pytest.mark.slow if (devices, spmd) == (2, "jit") else pytest.mark.exhaustive,
        )
        for devices in (1, 2, 4, 8)
        for spmd in ("jit", "pmap")
    ],
)
@pytest.mark.usefixtures("fused_loops")
def test_any_number_of_devices_trains_as_one_does_over_20_steps(
    everything, losses_of_one_device, devices, spmd
):
    if not losses_of_one_device:
        losses_of_one_device["jit"] = _run(everything, 1, 20)[0]
    losses = _run(everything, devices, 20, spmd)[0]
    np.testing.assert_allclose(losses, losses_of_one_device["jit"], rtol=1e-5)


@pytest.mark.exhaustive
@pytest.mark.parametrize("devices", [2, 8])
def test_devices_agree_with_accumulation_mixup_and_average_on(everything, devices):
    config = everything.replaced({"accumulation": 2, "mixup": 0.4, "ema": 0.9, "loss": "focal"})
    experiment = make_experiment(config, (4, 3, 2, 1), AXIS)
    meshes = _mesh(1), _mesh(devices)
    steps = [parallel.compile_train_step(experiment.spec, mesh) for mesh in meshes]
    state = experiment.initial_state()
    for seed in range(10):
        # Both from one state: over many steps, AdamW makes much of a difference in rounding where
        # a gradient is nearly zero.
        (one, of_one), (many, of_many) = (
            step(
                replicate(jax.tree.map(np.array, state), mesh),
                shard_batch(_batch(seed), mesh),
            )
            for step, mesh in zip(steps, meshes, strict=True)
        )
        assert float(of_many["loss"]) == pytest.approx(float(of_one["loss"]), rel=1e-6)
        gradients = [
            np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(new.optimizer)])
            for new in (one, many)
        ]
        error = np.linalg.norm(gradients[1] - gradients[0]) / np.linalg.norm(gradients[0])
        assert error < 1e-5
        state = one
    for a, b in zip(jax.tree.leaves(one.ema), jax.tree.leaves(many.ema), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


@pytest.mark.exhaustive
@pytest.mark.parametrize("spmd", ["jit", "pmap"])
def test_same_devices_twice_give_the_same_bits(everything, spmd):
    first, second = (_run(everything, 4, 5, spmd)[1] for _ in range(2))
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


def _all_reduces(config, devices, batch_size):
    """Sizes of what the devices send each other in a step, in numbers; nothing else is sent."""
    mesh = _mesh(devices)
    experiment = make_experiment(config, (4, 3, 2, 1), AXIS)
    step = parallel.compile_train_step(experiment.spec, mesh)
    state = replicate(experiment.initial_state(), mesh)
    batch = shard_batch(_batch(0, batch_size), mesh)
    program = step.lower(state, batch).compile().as_text()
    found = re.findall(
        r"= (.*?) (all-reduce|all-gather|reduce-scatter|all-to-all|collective-\w+)(?:-start)?\(",
        program,
    )
    assert {kind for _, kind in found} == {"all-reduce"}
    shapes = [re.fullmatch(r"f32\[([\d,]*)\]\S*", shape)[1] for shape, _ in found]
    return sorted(math.prod(int(n) for n in shape.split(",")) for shape in shapes), state.params


@pytest.mark.parametrize("accumulation", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_devices_send_each_other_the_gradients_once_and_norm_statistics(config, accumulation):
    config = config.replaced({"accumulation": accumulation})
    sizes, params = _all_reduces(config, 4, 16)
    loss_and_accuracy = 2
    assert sizes[-1] == sum(leaf.size for leaf in jax.tree.leaves(params)) + loss_and_accuracy
    # Mean and mean square of 8 and of 16 channels, forwards and backwards.
    assert sizes[:-1] == [16, 16, 32, 32]


@pytest.mark.exhaustive
def test_what_devices_send_grows_neither_with_the_batch_nor_with_their_number(config):
    sizes = _all_reduces(config, 2, 16)[0]
    assert _all_reduces(config, 2, 64)[0] == sizes
    assert _all_reduces(config, 8, 64)[0] == sizes


@pytest.mark.slow
def test_accumulation_gives_the_gradients_of_the_whole_batch(config):
    config = config.replaced({"model_options.norm": "group", "model_options.dropout": 0.0})
    whole = _run(config, 2)
    config = config.replaced({"accumulation": 4})
    parts = _run(config, 2)
    np.testing.assert_allclose(parts[0], whole[0], rtol=1e-5)


@pytest.mark.exhaustive
def test_mixup_trains_on_mixtures_and_average_lags_behind(config):
    plain = _run(config, 1)
    config = config.replaced({"mixup": 1.0})
    assert abs(_run(config, 1)[0][0] - plain[0][0]) > 1e-3
    config = config.replaced({"mixup": 0.0, "ema": 0.99})
    losses, state, _ = _run(config, 1)
    assert losses == plain[0]
    assert state.evaluated is state.ema
    for ema, now in zip(jax.tree.leaves(state.ema[0]), jax.tree.leaves(state.params), strict=True):
        assert not np.array_equal(ema, now)


@pytest.mark.parametrize("devices", [pytest.param(2, marks=pytest.mark.exhaustive), 8])
def test_batch_statistics_are_those_of_the_whole_batch(config, devices):
    # After one step: AdamW blows up the rounding of later ones.
    one, many = (_run(config, n, steps=1)[1].batch_stats for n in (1, devices))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(many), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_train_step_compiles_once(config):
    _, _, step = _run(config, 8)
    assert step._cache_size() == 1


def test_network_learns_one_batch_by_heart(config):
    config = config.replaced(
        {
            "steps": 150,
            "augmentation.rotation": 0.0,
            "augmentation.mirror": 0.0,
            "augmentation.translation": (0.0, 0.0),
            "model_options.dropout": 0.0,
            "optimizer.learning_rate": 1e-2,
            "label_smoothing": 0.0,
        }
    )
    experiment = make_experiment(config, (1, 1, 1, 1), AXIS)
    state = replicate(experiment.initial_state(), _mesh(1))
    step = parallel.compile_train_step(experiment.spec, _mesh(1))
    batch = shard_batch(_batch(0, 8), _mesh(1))
    for _ in range(150):
        state, metrics = step(state, batch)
    assert metrics["accuracy"] == 1.0
    assert metrics["loss"] < 0.1


def test_every_parameter_has_a_gradient_and_moves(config):
    experiment = make_experiment(config, (1, 1, 1, 1))
    before = experiment.initial_state()
    step = jax.jit(functools.partial(train_step, spec=experiment.spec))
    # The first step's learning rate is zero: warm-up starts there.
    after = before
    for seed in range(3):
        after, metrics = step(after, _batch(seed))
        assert np.isfinite(metrics["gradient_norm"])
    paths = jax.tree_util.tree_leaves_with_path(before.params)
    for (path, old), new in zip(paths, jax.tree.leaves(after.params), strict=True):
        assert not np.array_equal(old, new), jax.tree_util.keystr(path)
    assert int(after.step) == 3


def test_balanced_class_weights_give_every_class_the_same_total():
    counts = (10, 30, 40, 20)
    weights = class_weights("balanced", counts)
    totals = [w * c for w, c in zip(weights, counts, strict=True)]
    np.testing.assert_allclose(totals, 25.0)
    assert class_weights("none", counts) == (1.0,) * 4


def test_batch_that_does_not_fit_the_devices_is_named():
    with pytest.raises(UserError, match=r"batch_size 16.*in config\.accumulation 4 parts.*of 32"):
        check_batch_size(16, data_mesh(), accumulation=4)
    with pytest.raises(UserError, match=r"config\.mixup.*multiple of 16"):
        check_batch_size(24, data_mesh(), pairs=True)
    with pytest.raises(UserError, match=r"batch_size 12.*multiple of 8"):
        check_batch_size(12, data_mesh())
