import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dscint_jax.training.finite import STEPS_TAKEN
from dscint_jax.training.log import RunLog
from dscint_jax.training.timing import StepTimer


@pytest.fixture
def written():
    return []


@pytest.fixture
def timer():
    return StepTimer(8)


@pytest.fixture
def log(written, timer):
    trackers = types.SimpleNamespace(
        write=lambda step, values: written.append((step, values)),
        write_speed=lambda step, values: None,
    )
    progress = types.SimpleNamespace(update=lambda *_, **__: None)
    return RunLog(trackers, timer, progress, lambda *_: None, lambda step: step / 4, start=0)


def _metrics(loss, **others):
    return {"loss": loss, STEPS_TAKEN: np.int32(1), **others}


pytestmark = pytest.mark.usefixtures("unchecked")


def test_metrics_are_read_one_step_late(log, written):
    log.step(1, _metrics(jnp.array(0.5)), None)
    assert not written
    log.step(2, None, None)
    assert written == [(1, {"loss": 0.5, "learning_rate": 0.0})]
    log.step(3, None, None)
    log.step(4, _metrics(jnp.array(0.25), accuracy=np.float32(1)), None)
    assert len(written) == 1
    log.flush(None)
    assert written[1:] == [(4, {"loss": 0.25, "accuracy": 1.0, "learning_rate": 0.75})]
    log.flush(None)
    assert len(written) == 2


def test_logging_a_step_does_not_wait_for_it(log, written):
    waited = []

    class Slow:
        def __array__(self, dtype=None, copy=None):
            waited.append(True)
            return np.array(2.0)

    log.step(1, _metrics(Slow()), None)
    assert not waited
    log.step(2, None, None)
    assert waited
    assert written[0][1]["loss"] == 2.0


def test_time_waited_for_a_result_is_the_steps(log, timer):
    slow = jax.jit(lambda x: jax.lax.fori_loop(0, 30, lambda _, y: jnp.tanh(y @ y), x).mean())
    images = jnp.ones((300, 300))
    for step in range(1, 6):
        with timer.measure("input_wait"):
            time.sleep(0.001)
        with timer.measure("step"):
            metrics = _metrics(slow(images))
        log.step(step, metrics, None)
    log.flush(None)
    totals = timer.totals()
    assert totals["step"] > 2 * totals["input_wait"]
