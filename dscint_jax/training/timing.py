"""Where the time of a run goes, and how much memory it takes.

In: the loop's phases, each measured as it passes. Out: seconds a step, images a second and the
share of waiting for input since the last report, and one line at the end. Steps are dispatched
ahead of the device, so no single step is timed: what counts is the time between two reports, less
what other phases took of it.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping

import jax

from tfds_builder.commandline.command import peak_memory

INPUT_WAIT, STEP, COMPILATION, OTHER = "input_wait", "step", "compilation", "other"

PHRASES = {
    "evaluation": "validation",
    "checkpoint": "checkpoints",
    COMPILATION: "compilation and first step",
}
"""How a phase is called in the summary, where not by its own name."""

SHOWN_SHARE = 0.005
"""Phases that took less of the run than this are left out of the summary."""


class StepTimer:
    """Adds up the seconds of each phase of the loop; what no phase covers is 'other'.

    The first measured step is counted as compilation: it holds the compiler's work, or the wait for
    the compilation cache.
    Images are those of all processes together.
    """

    def __init__(self, images_per_step: int, *, clock: Callable[[], float] = time.perf_counter):
        self._images, self._clock = images_per_step, clock
        self._seconds: dict[str, float] = {}
        self._phase, self._since = OTHER, clock()
        self._compiled = False
        self._reported, self._reported_steps = dict[str, float](), 0

    @contextlib.contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Counts the time inside as that of a phase: 'input_wait', 'step', 'checkpoint', ...

        A phase within another takes its time from it. The wait for a step's result belongs in
        'step', so read metrics inside it.
        """
        if phase == STEP and not self._compiled:
            phase, self._compiled = COMPILATION, True
        before = self._phase
        self._switch(phase)
        try:
            yield
        finally:
            self._switch(before)

    def report(self, steps: int) -> dict[str, float]:
        """What was measured since the last report.

        Args:
          steps: how many this attempt has taken so far.

        Returns:
          seconds_per_step, images_per_second and input_wait_share (of the time of the steps);
          nothing if no step but the first was taken since the last report.
        """
        self._switch(self._phase)
        now, before = dict(self._seconds), self._reported
        taken = max(steps - 1, 0) - max(self._reported_steps - 1, 0)
        since = {name: now.get(name, 0.0) - before.get(name, 0.0) for name in (STEP, INPUT_WAIT)}
        self._reported, self._reported_steps = now, steps
        return self._speed(taken, since)

    def totals(self) -> dict[str, float]:
        """Seconds of every phase so far."""
        self._switch(self._phase)
        return dict(self._seconds)

    def summary(self, steps: int) -> str:
        """One line on the whole attempt.

        Such as '1200 steps in 402 s: steps 361 s (input wait 0.8 s, 0.2 %), validation 31 s,
        compilation and first step 10 s; 143 images/s'. The rate is that of the steps alone.
        """
        totals = self.totals()
        whole = sum(totals.values())
        waited = totals.pop(INPUT_WAIT, 0.0)
        stepped = totals.pop(STEP, 0.0) + waited
        speed = self._speed(max(steps - 1, 0), {STEP: stepped - waited, INPUT_WAIT: waited})
        parts = [
            f"steps {_seconds(stepped)} (input wait {_seconds(waited)}, "
            f"{100 * speed.get('input_wait_share', 0.0):.1f} %)"
        ]
        parts += [
            f"{PHRASES.get(phase, phase)} {_seconds(seconds)}"
            for phase, seconds in sorted(totals.items(), key=lambda item: -item[1])
            if seconds >= SHOWN_SHARE * whole
        ]
        rate = f"; {speed['images_per_second']:.0f} images/s" if speed else ""
        return f"{steps} step{'s' * (steps != 1)} in {_seconds(whole)}: {', '.join(parts)}{rate}"

    def _speed(self, steps: int, seconds: Mapping[str, float]) -> dict[str, float]:
        spent = seconds[STEP] + seconds[INPUT_WAIT]
        if steps < 1 or spent <= 0:
            return {}
        return {
            "seconds_per_step": spent / steps,
            "images_per_second": self._images * steps / spent,
            "input_wait_share": seconds[INPUT_WAIT] / spent,
        }

    def _switch(self, phase: str) -> None:
        now = self._clock()
        self._seconds[self._phase] = self._seconds.get(self._phase, 0.0) + now - self._since
        self._phase, self._since = phase, now


def memory_in_use() -> dict[str, float]:
    """Bytes, of the fullest of this process's devices and of the process itself.

    Returns:
      device_bytes, device_peak_bytes and device_limit_bytes, unless the devices do not tell, as the
      CPU does not; host_peak_bytes, the largest resident size so far.
    """
    statistics = [device.memory_stats() or {} for device in jax.local_devices()]
    found = {}
    for name, key in (
        ("device_bytes", "bytes_in_use"),
        ("device_peak_bytes", "peak_bytes_in_use"),
        ("device_limit_bytes", "bytes_limit"),
    ):
        values = [float(one[key]) for one in statistics if key in one]
        if values:
            found[name] = max(values)
    found["host_peak_bytes"] = float(peak_memory())
    return found


def _seconds(seconds: float) -> str:
    """Three digits, or minutes and seconds from ten minutes on."""
    if seconds >= 600:
        return f"{round(seconds) // 60} min {round(seconds) % 60} s"
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
