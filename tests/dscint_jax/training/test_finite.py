import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dscint_jax.training import step as steps
from dscint_jax.training.experiment import make_experiment
from dscint_jax.training.finite import STEPS_TAKEN, bad_step, guarded, rewound


def _batch(seed, size=8):
    random = np.random.default_rng(seed)
    return {
        "counts": random.poisson(20, (size, 64, 16, 1)).astype(np.int32),
        "scale": random.uniform(20, 60, size).astype(np.float32),
        "label": random.integers(0, 4, size).astype(np.int32),
        "mask": np.ones(size, bool),
    }


def _bad(seed):
    batch = _batch(seed)
    batch["scale"][3] = np.nan
    return batch


def _plain(state, batch, *, spec):
    """The step without the guard, whether `train_step` has it or not."""
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(steps, "guarded"):
            patch.setattr(steps, "guarded", lambda state, new, metrics: (new, metrics))
        return steps.train_step(state, batch, spec=spec)


def _guarded(state, batch, *, spec):
    return guarded(state, *_plain(state, batch, spec=spec))


@pytest.fixture
def experiment(config):
    return make_experiment(config, (4, 3, 2, 1))


def _take(step, experiment, batches):
    state, metrics = experiment.initial_state(), {}
    step = jax.jit(functools.partial(step, spec=experiment.spec), donate_argnums=0)
    for batch in batches:
        state, metrics = step(state, batch)
    return state, metrics


def _assert_same(first, second):
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.exhaustive
def test_good_steps_give_the_same_bits_with_the_guard_as_without(experiment):
    batches = [_batch(seed) for seed in range(10)]
    plain, _ = _take(_plain, experiment, batches)
    state, metrics = _take(_guarded, experiment, batches)
    _assert_same(plain, state)
    assert metrics[STEPS_TAKEN] == 10
    assert bad_step(float(metrics[STEPS_TAKEN])) is None
    _assert_same(rewound(state), state)


def test_bad_step_and_all_after_it_leave_the_state_of_before(experiment):
    good = [_batch(seed) for seed in range(4)]
    before, _ = _take(_guarded, experiment, good)
    later = [_bad(4), _batch(5), _bad(6), _batch(7)]
    state, metrics = _take(_guarded, experiment, good + later)
    assert bad_step(float(metrics[STEPS_TAKEN])) == 5
    _assert_same(rewound(state), before)


def test_very_first_step_may_be_the_bad_one(experiment):
    state, metrics = _take(_guarded, experiment, [_bad(0), _batch(1)])
    assert bad_step(float(metrics[STEPS_TAKEN])) == 1
    _assert_same(rewound(state), experiment.initial_state())


@pytest.mark.parametrize("where", ["loss", "gradient_norm", "batch_stats"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_whatever_is_not_finite_halts(experiment, where, value):
    state = experiment.initial_state()
    new = dataclasses.replace(state, step=state.step + 1)
    metrics = {"loss": jnp.float32(1), "gradient_norm": jnp.float32(1)}
    if where == "batch_stats":
        bad = jax.tree.map(lambda leaf: jnp.full_like(leaf, value), new.batch_stats)
        new = dataclasses.replace(new, batch_stats=bad)
    else:
        metrics[where] = jnp.float32(value)
    assert int(guarded(state, new, metrics)[0].step) == -1
