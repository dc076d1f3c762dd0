import contextlib

import pytest

from dscint_jax.training import timing
from dscint_jax.training.timing import StepTimer, memory_in_use


class Clock:
    """Moved by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def _spend(timer, clock, phase, seconds):
    with timer.measure(phase):
        clock.now += seconds


def test_report_tells_speed_and_input_wait_since_the_last_one(clock):
    timer = StepTimer(32, clock=clock)
    _spend(timer, clock, "step", 20.0)
    assert timer.report(1) == {}
    for _ in range(10):
        _spend(timer, clock, "input_wait", 0.1)
        _spend(timer, clock, "step", 0.3)
    _spend(timer, clock, "evaluation", 7.0)
    report = timer.report(11)
    assert report["seconds_per_step"] == pytest.approx(0.4)
    assert report["images_per_second"] == pytest.approx(80.0)
    assert report["input_wait_share"] == pytest.approx(0.25)
    for _ in range(5):
        _spend(timer, clock, "step", 0.2)
    assert timer.report(16)["seconds_per_step"] == pytest.approx(0.2)
    assert timer.report(16) == {}


def test_first_step_is_compilation_and_in_no_rate(clock):
    timer = StepTimer(10, clock=clock)
    for seconds in (30.0, 0.5, 0.5):
        _spend(timer, clock, "step", seconds)
    assert timer.report(3)["seconds_per_step"] == pytest.approx(0.5)
    assert timer.totals()["compilation"] == pytest.approx(30.0)


def test_every_second_is_counted_once(clock):
    timer = StepTimer(10, clock=clock)
    _spend(timer, clock, "step", 1.0)
    clock.now += 2.0
    with timer.measure("evaluation"):
        clock.now += 3.0
        _spend(timer, clock, "checkpoint", 4.0)
        clock.now += 5.0
    with contextlib.suppress(KeyError), timer.measure("step"):
        clock.now += 6.0
        raise KeyError
    assert timer.totals() == {
        "compilation": 1.0, "other": 2.0, "evaluation": 8.0, "checkpoint": 4.0, "step": 6.0
    }  # fmt: skip


def test_summary_is_one_line_with_every_phase_that_counts(clock):
    timer = StepTimer(48, clock=clock)
    _spend(timer, clock, "step", 21.0)
    _spend(timer, clock, "step", 360.2)
    _spend(timer, clock, "input_wait", 0.8)
    _spend(timer, clock, "evaluation", 31.0)
    _spend(timer, clock, "checkpoint", 9.0)
    clock.now += 0.5
    assert timer.summary(1200) == (
        "1200 steps in 422 s: steps 361 s (input wait 0.8 s, 0.2 %), validation 31 s, "
        "compilation and first step 21 s, checkpoints 9.0 s; 159 images/s"
    )


def test_summary_of_a_run_without_steps_is_a_line_too(clock):
    timer = StepTimer(48, clock=clock)
    assert timer.summary(0).startswith("0 steps in 0.0 s")
    _spend(timer, clock, "step", 3.0)
    assert timer.summary(1) == (
        "1 step in 3.0 s: steps 0.0 s (input wait 0.0 s, 0.0 %), compilation and first step 3.0 s"
    )
    clock.now += 3600.0
    assert timer.summary(1).startswith("1 step in 60 min 3 s")


def test_memory_is_told_where_devices_know_it(monkeypatch):
    assert set(memory_in_use()) == {"host_peak_bytes"}
    assert 1e8 < memory_in_use()["host_peak_bytes"] < 1e12

    class Device:
        def __init__(self, used):
            self.used = used

        def memory_stats(self):
            return {"bytes_in_use": self.used, "peak_bytes_in_use": 2 * self.used}

    monkeypatch.setattr(timing.jax, "local_devices", lambda: [Device(5), Device(9), Device(7)])
    found = memory_in_use()
    assert (found["device_bytes"], found["device_peak_bytes"]) == (9.0, 18.0)
    assert "device_limit_bytes" not in found
