import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dscint_jax.config import Optimizer
from dscint_jax.training.optimizers import make_optimizer, make_schedule, update_ema


@pytest.mark.parametrize(
    ("name", "half_way", "end"),
    [("cosine", 0.05, 0.0), ("linear", 0.05, 0.0), ("constant", 0.1, 0.1)],
)
def test_learning_rate_warms_up_then_follows_the_schedule(name, half_way, end):
    schedule = make_schedule(
        Optimizer(schedule=name, learning_rate=0.1, warmup_steps=10), steps=110
    )
    values = np.array([float(schedule(step)) for step in range(111)])
    assert values[0] == 0
    assert abs(values.max() - 0.1) < 1e-7
    assert values.argmax() == 10
    np.testing.assert_allclose(values[5], 0.05, rtol=1e-5)
    np.testing.assert_allclose([values[60], values[-1]], [half_way, end], atol=1e-7)


@pytest.mark.parametrize("name", ["cosine", "linear", "constant"])
def test_warm_up_longer_than_the_training_leaves_a_schedule(name):
    schedule = make_schedule(Optimizer(schedule=name, warmup_steps=40), steps=1)
    assert np.isfinite([float(schedule(step)) for step in range(3)]).all()


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_kernels_decay_and_biases_do_not(name):
    optimizer = make_optimizer(Optimizer(name=name, weight_decay=0.5), optax.constant_schedule(0.1))
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert (updates["kernel"] < 0).all()
    np.testing.assert_array_equal(updates["bias"], 0)


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_optimiser_descends(name):
    optimizer = make_optimizer(
        Optimizer(name=name, weight_decay=0.0), optax.constant_schedule(0.05)
    )
    params = jnp.array([3.0, -2.0])
    state = optimizer.init(params)
    for _ in range(300):
        updates, state = optimizer.update(2 * params, state, params)
        params = optax.apply_updates(params, updates)
    assert np.abs(params).max() < 0.1


def test_average_follows_early_and_then_holds_on():
    start, now = (nnx.State({"w": jnp.array(value)}) for value in (0.0, 1.0))
    first = update_ema(start, now, jnp.int32(0), 0.999)["w"]
    late = update_ema(start, now, jnp.int32(10**6), 0.999)["w"]
    np.testing.assert_allclose([first, late], [0.9, 0.001], rtol=1e-4)
