"""What a run tells while it trains: metrics, speed, memory, progress.

In: the metrics of logged steps, still on the device, and validation scores. Out: lines of
train_metrics.jsonl and train_speed.jsonl, the trackers, the progress bar.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from dscint_jax.run.trackers.trackers import Trackers
from dscint_jax.training.finite import STEPS_TAKEN
from dscint_jax.training.state import TrainState
from dscint_jax.training.timing import StepTimer, memory_in_use
from tfds_builder.commandline.progress import ProgressBar


class RunLog:
    """Writes each logged step when the next is on its way, after it was found finite.

    To read its metrics at once would leave the device without work while the host logs.

    Args:
      check_finite: of the metric `STEPS_TAKEN` and the state; raises UserError.
      schedule: learning rate by step.
      start: the step that the run goes on from.
    """

    def __init__(
        self,
        trackers: Trackers,
        timer: StepTimer,
        progress: ProgressBar,
        check_finite: Callable[[float, TrainState], None],
        schedule: Callable[[int], Any],
        *,
        start: int,
    ):
        self._trackers, self._timer, self._progress = trackers, timer, progress
        self._check_finite, self._schedule, self._start = check_finite, schedule, start
        self._held: tuple[int, Mapping[str, jax.Array]] | None = None

    def compiling(self) -> None:
        """Says why nothing moves for a while."""
        self._progress.say("compiling the training step; on CPUs this may take minutes")

    def step(self, step: int, metrics: Mapping[str, jax.Array] | None, state: TrainState) -> None:
        """Takes the metrics of a step that is to be logged; None of any other.

        Raises:
          UserError: a step was not finite.
        """
        self.flush(state)
        if metrics is not None:
            self._held = (step, metrics)

    def flush(self, state: TrainState) -> None:
        """Writes what is held back, before an evaluation and at the end.

        Raises:
          UserError: a step was not finite.
        """
        if self._held is None:
            return
        (step, metrics), self._held = self._held, None
        # The wait for an earlier step's metrics is time of the steps.
        with self._timer.measure("step"):
            values = {n: float(np.asarray(v)) for n, v in jax.device_get(dict(metrics)).items()}
        self._check_finite(values.pop(STEPS_TAKEN), state)
        values["learning_rate"] = float(self._schedule(step - 1))
        self._trackers.write(step, values)
        speed = self._timer.report(step - self._start)
        self._trackers.write_speed(step, {**speed, **memory_in_use()})
        self._progress.update(
            step, f"loss {values['loss']:.3f}", seconds_each=speed.get("seconds_per_step")
        )

    def validation(self, step: int, scores: Mapping[str, float]) -> None:
        """Writes the scores of a validation."""
        self._trackers.write(step, {f"validation_{name}": value for name, value in scores.items()})

    def validated(self, step: int, scores: Mapping[str, float]) -> None:
        """Says a validation's scores, once its checkpoint is on its way."""
        self._progress.say(
            f"step {step}: validation loss {scores['loss']:.3f}, "
            f"accuracy {scores['accuracy']:.3f}, F-1 {scores['f1']:.3f}"
        )
