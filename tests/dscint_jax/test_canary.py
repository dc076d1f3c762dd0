"""The check at the start, and an oracle: compiled training steps beside the same op by op."""

import functools

import jax
import jax.numpy as jnp
import jaxlib
import numpy as np
import optax
import pytest
from flax import nnx

from dscint_jax import canary, models
from dscint_jax.canary import check_backend
from dscint_jax.config import Augmentation
from dscint_jax.evaluate.evaluate import evaluate
from dscint_jax.training.losses import make_loss
from dscint_jax.training.state import TrainState
from dscint_jax.training.step import StepSpec, split_network, train_step
from dscint_jax.training.train import train
from tfds_builder.commandline.errors import UserError

EXAMPLES, CLASSES, SIZE = 6, 4, (96, 32)

DSCINT = {"widths": (4, 6, 8), "strides": (2, 1, 1), "pool_after": (2,), "attention_after": 2}

pytestmark = pytest.mark.usefixtures("optimised")

OPTIONS = {
    "dscint": {**DSCINT, "hidden": 8, "dropout": 0.0},
    "dual_view": {"encoder": "dscint", "encoder_options": DSCINT, "dropout": 0.0},
}
"""Few channels, where a network takes their number."""

NETWORKS = [
    pytest.param(name, marks=pytest.mark.slow if name == "dscint" else pytest.mark.exhaustive)
    for name in models.NETWORKS
]


def _off_by_a_row(vectors):
    return (vectors**2).sum(1).at[-1].set(0)


def test_backend_that_computes_right_passes():
    check_backend()


@pytest.fixture
def wrong_compiler(monkeypatch):
    monkeypatch.setattr(canary, "_squared_lengths", _off_by_a_row)


def test_backend_that_gets_one_row_wrong_is_refused_with_its_version_and_a_remedy(wrong_compiler):
    with pytest.raises(UserError) as raised:
        check_backend()
    assert f"jaxlib {jaxlib.__version__} computes wrongly on this cpu" in str(raised.value)
    assert "XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type=" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_nothing_is_trained_or_evaluated_on_it(config, trained, tmp_path, wrong_compiler):
    with pytest.raises(UserError, match="computes wrongly"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    with pytest.raises(UserError, match="computes wrongly"):
        evaluate(trained, split="test", checkpoint="latest")


def _kept_gradients():
    """An optimiser that keeps the gradients as its state and moves nothing."""
    return optax.chain(optax.trace(decay=0.0), optax.scale(0.0))


@functools.cache
def _state_and_step(name):
    # Nothing random, so that the order of a batch changes nothing but rounding.
    options = OPTIONS.get(name) or ({} if "net" in name and name != "alexnet" else {"dropout": 0.0})
    network = models.build(name, num_classes=CLASSES, rngs=nnx.Rngs(params=3), options=options)
    training, inference, params, batch_stats = split_network(network)
    optimizer = _kept_gradients()
    spec = StepSpec(
        training=training,
        inference=inference,
        optimizer=optimizer,
        augmentation=Augmentation(),
        loss=make_loss(class_weights=(1.0,) * CLASSES),
        clip=3.0,
        seed=0,
    )
    state = TrainState(jnp.zeros((), jnp.int32), params, batch_stats, optimizer.init(params))
    return state, functools.partial(train_step, spec=spec)


def _batch(name, order):
    random = np.random.default_rng(5)
    views = (2,) if name == "dual_view" else ()
    # Large counts: among small ones many are equal, and which of them is the maximum of a region,
    # and takes all of its gradient, hangs on rounding.
    counts = random.integers(1, 20_000, (EXAMPLES, *views, *SIZE, 1), np.int32)
    labels = np.arange(EXAMPLES, dtype=np.int32) % CLASSES
    scale = np.full((EXAMPLES, *views), 20_000, np.float32)
    batch = {"counts": counts[order], "scale": scale, "label": labels[order]}
    return jax.tree.map(jnp.asarray, batch)


def _gradients(step, state, batch):
    new, _ = step(state, batch)
    return [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(new.optimizer[0].trace)]


def _difference(first, second):
    """The largest difference of an array's gradients, as a part of their length.

    Arrays whose gradients are small beside all others', as those of a bias before BatchNorm, which
    are rounding and nothing else, count as a thousandth of all.
    """
    whole = np.sqrt(sum((array**2).sum() for array in first))
    return max(
        np.linalg.norm(a - b) / max(np.linalg.norm(a), whole / 1000)
        for a, b in zip(first, second, strict=True)
    )


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_step_has_the_gradients_of_the_step_op_by_op(name):
    state, step = _state_and_step(name)
    compiled = jax.jit(step)
    orders = [np.random.default_rng(n).permutation(EXAMPLES) for n in range(4)]
    batches = [_batch(name, order) for order in (np.arange(EXAMPLES), *orders)]
    expected, *permuted = (_gradients(compiled, state, batch) for batch in batches)
    noise = max(_difference(expected, gradients) for gradients in permuted)
    op_by_op = _gradients(step, state, batches[0])
    difference = _difference(expected, op_by_op)
    print(f"{name}: {difference:.1e} beside {noise:.1e}")
    # A gradient that rounding moves by more hangs on whether computed values happen to be equal.
    assert 0 < noise < 0.05
    # One unit that rounding moves across zero changes a gradient by up to a hundredth, in some
    # orders of the batch and not in others.
    assert difference < max(5 * noise, 0.02)
