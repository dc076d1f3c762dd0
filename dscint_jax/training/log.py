"""What a run tells while it trains: metrics, speed, memory, progress.

In: the metrics of logged steps, still on the device, and validation scores. Out: lines of
train_metrics.jsonl and train_speed.jsonl, the trackers, the progress bar.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from dscint_jax.run.trackers.trackers import Trackers
from dscint_jax.training.finite import STEPS_TAKEN
from dscint_jax.training.nonfinite import NonFinite
from dscint_jax.training.state import TrainState
from dscint_jax.training.timing import LateMetrics, StepTimer, memory_in_use
from tfds_builder.commandline.progress import ProgressBar


class RunLog:
    """Writes each logged step when the next is on its way, after it was found finite.

    Args:
      trackers: where metrics go.
      timer: of the run's phases.
      progress: the bar.
      nonfinite: checks what is logged.
      schedule: learning rate by step.
      start: the step that the run goes on from.
    """

    def __init__(
        self,
        trackers: Trackers,
        timer: StepTimer,
        progress: ProgressBar,
        nonfinite: NonFinite,
        schedule: Callable[[int], Any],
        *,
        start: int,
    ):
        self._trackers, self._timer, self._progress = trackers, timer, progress
        self._nonfinite, self._schedule, self._start = nonfinite, schedule, start
        self._late = LateMetrics()

    def step(self, step: int, metrics: Mapping[str, jax.Array] | None, state: TrainState) -> None:
        """Takes the metrics of a step that is to be logged; None of any other.

        Raises:
          UserError: a step was not finite.
        """
        # The wait for an earlier step's metrics is time of the steps.
        with self._timer.measure("step"):
            ready = self._late.push(step, metrics)
        self._write(ready, state)

    def flush(self, state: TrainState) -> None:
        """Writes what is held back.

        Raises:
          UserError: a step was not finite.
        """
        with self._timer.measure("step"):
            ready = self._late.flush()
        self._write(ready, state)

    def validation(self, step: int, scores: Mapping[str, float]) -> None:
        """Writes the scores of a validation."""
        self._trackers.write(step, {f"validation_{name}": value for name, value in scores.items()})

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Says a validation's scores, once its checkpoint is on its way."""
        self._progress.say(
            f"step {step}: validation loss {scores['loss']:.3f}, "
            f"accuracy {scores['accuracy']:.3f}, F-1 {scores['f1']:.3f}"
        )

    def _write(self, ready: list[tuple[int, dict[str, float]]], state: TrainState) -> None:
        for step, values in ready:
            self._nonfinite.check(values.pop(STEPS_TAKEN), state)
            values["learning_rate"] = float(self._schedule(step - 1))
            self._trackers.write(step, values)
            speed = self._timer.report(step - self._start)
            self._trackers.write_speed(step, {**speed, **memory_in_use()})
            self._progress.update(
                step, f"loss {values['loss']:.3f}", seconds_each=speed.get("seconds_per_step")
            )
