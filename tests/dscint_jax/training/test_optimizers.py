import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from dscint_jax.config import Config, Optimizer
from dscint_jax.training.experiment import make_experiment
from dscint_jax.training.optimizers import make_optimizer, make_schedule, update_ema
from tfds_builder.commandline.errors import UserError


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
@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_kernels_decay_and_biases_do_not(name):
    optimizer = make_optimizer(Optimizer(name=name, weight_decay=0.5), optax.constant_schedule(0.1))
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert (updates["kernel"] < 0).all()
    np.testing.assert_array_equal(updates["bias"], 0)


@jax.numpy_dtype_promotion("standard")
@pytest.mark.parametrize("name", ["adamw", "muon", "sgd"])
def test_optimiser_descends(name):
    optimizer = make_optimizer(
        Optimizer(name=name, weight_decay=0.0), optax.constant_schedule(0.05)
    )
    params = {"bias": jnp.array([3.0, -2.0]), "kernel": jnp.array([[3.0, -2.0], [1.0, 4.0]])}
    state = optimizer.init(params)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(lambda p: 2 * p, params), state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(600):
        params, state = step(params, state)
    assert max(np.abs(value).max() for value in params.values()) < 0.1


@jax.numpy_dtype_promotion("standard")
def test_muon_moves_all_directions_of_a_kernel_alike_and_leaves_the_head_to_adamw():
    optimizer = make_optimizer(
        Optimizer(name="muon", weight_decay=0.0, clip_norm=1e9),
        optax.constant_schedule(1.0),
        head="top.head",
    )
    random = np.random.default_rng(0)
    shapes = {"conv": (3, 3, 4, 8), "hidden": (36, 8)}
    kernels = {name: jnp.asarray(random.normal(size=s), jnp.float32) for name, s in shapes.items()}
    head = jnp.asarray(random.normal(size=(8, 4)), jnp.float32)
    gradients = {**kernels, "top": {"head": head}}
    params = jax.tree.map(jnp.ones_like, gradients)
    updates, _ = optimizer.update(gradients, optimizer.init(params), params)
    for name in shapes:
        step = np.asarray(updates[name]).reshape(36, 8)
        singular = np.linalg.svd(step, compute_uv=False)
        # Five iterations bring them near 1, not to it; then scaled to the root mean square.
        assert singular.min() / singular.max() > 0.5
        assert 0.15 < np.sqrt(np.mean(step**2)) < 0.25
        assert (step * np.asarray(gradients[name]).reshape(36, 8)).sum() < 0
    # The first step of AdamW is as long for every weight, against the gradient's sign.
    signed = updates["top"]["head"] * np.sign(head)
    np.testing.assert_allclose(signed, np.full_like(signed, signed[0, 0]), rtol=1e-3)
    assert signed[0, 0] < 0


def test_muon_asks_a_network_of_ones_own_for_its_last_layer(tmp_path, monkeypatch):
    (tmp_path / "own_network.py").write_text(
        "from flax import nnx\n"
        "class Small(nnx.Module):\n"
        "    def __init__(self, num_classes, *, rngs):\n"
        "        self.top = nnx.Linear(1, num_classes, rngs=rngs)\n"
        "    def __call__(self, images, *, rngs=None):\n"
        "        return self.top(images.mean((1, 2)))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = Config(model="own_network:Small", steps=4, optimizer=Optimizer(name="muon"))
    with pytest.raises(UserError, match="give own_network:Small a HEAD"):
        make_experiment(config, (3, 3))


def test_average_follows_early_and_then_holds_on():
    start, now = (nnx.State({"w": jnp.array(value)}) for value in (0.0, 1.0))
    first = update_ema(start, now, jnp.int32(0), 0.999)["w"]
    late = update_ema(start, now, jnp.int32(10**6), 0.999)["w"]
    np.testing.assert_allclose([first, late], [0.9, 0.001], rtol=1e-4)


def test_a_count_among_the_statistics_is_taken_as_it_is():
    start, now = (nnx.State({"seen": jnp.array(value)}) for value in (0, 7))
    average = update_ema(start, now, jnp.int32(0), 0.999)["seen"]
    assert (average.dtype, int(average)) == (jnp.int32, 7)
