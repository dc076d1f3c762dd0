"""The training loop: batches in, checkpoints and metrics out.

In this order, at every step: its batch is taken; the step is dispatched; the metrics of the logged
step before are written; all processes agree on whether to stop; where a validation is due, the
state is scored and saved. Who stops saves first.
"""

import dataclasses
import signal
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

import jax

from dscint_jax.cluster import AgreedStop, Cluster
from dscint_jax.mesh import DeviceBatch
from dscint_jax.run.checkpoint import Checkpointer
from dscint_jax.run.provenance import Ending
from dscint_jax.training import parallel
from dscint_jax.training.finite import STEPS_TAKEN
from dscint_jax.training.log import RunLog
from dscint_jax.training.profiling import Profiler
from dscint_jax.training.state import TrainState
from dscint_jax.training.stopping import Interrupted, Interruption, requeue
from dscint_jax.training.timing import StepTimer
from tfds_builder.commandline.progress import say


@dataclasses.dataclass(frozen=True)
class Loop:
    """The steps of one attempt.

    Attributes:
      steps: of the whole run.
      log_every, evaluate_every: steps between two logged ones, and between two validations.
      take_step: the compiled step; it is given the state and must alone have it.
      batches: of the steps to come.
      check_finite: of the metric `STEPS_TAKEN` and the state; raises UserError.
      validate: scores the state after a step.
      interruption: told when there is nothing to save.
    """

    steps: int
    log_every: int
    evaluate_every: int
    take_step: parallel.TrainStep
    batches: Iterator[DeviceBatch]
    log: RunLog
    check_finite: Callable[[float, TrainState], None]
    validate: Callable[[int, TrainState], dict[str, float]]
    checkpointer: Checkpointer
    stop: AgreedStop
    timer: StepTimer
    profiler: Profiler
    ending: Ending
    interruption: Interruption
    cluster: Cluster

    def run(self, state: TrainState, start: int) -> None:
        """Takes all steps after `start`, or those until it is asked to stop.

        Raises:
          UserError: a loss was not finite, or a disk is full.
          SystemExit: the run was asked to stop, and was saved.
        """
        step = start
        try:
            if start and self._is_due(start) and not self.checkpointer.has_scores(start):
                # Its validation was interrupted.
                self._validate_and_save(start, state)
            for step in range(start + 1, self.steps + 1):
                state, metrics = self._take(step, state, first=step == start + 1)
                stopping = self.stop.asked()
                if stopping or self._is_due(step):
                    self.log.flush(state)
                    self.check_finite(float(metrics[STEPS_TAKEN]), state)
                if stopping:
                    raise Interrupted
                if self._is_due(step):
                    self._validate_and_save(step, state)
        except Interrupted:
            self._save_and_stop(step, state)
        with self.timer.measure("checkpoint"):
            self.checkpointer.close()

    def _take(
        self, step: int, state: TrainState, *, first: bool
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        self.profiler.before(step)
        with self.timer.measure("input_wait"):
            batch = next(self.batches)
        # The first step is compiled, which may take minutes; of several, no process leaves alone.
        self.interruption.nothing_to_save = first and self.cluster.process_count == 1
        if first:
            self.log.compiling()
        with self.timer.measure("step"):
            if first:
                parallel.compile_ahead(self.take_step, state, batch)
            state, metrics = self.take_step(state, batch)
        logged = step % self.log_every == 0 or step == self.steps
        self.log.step(step, metrics if logged else None, state)
        self.interruption.nothing_to_save = False
        self.profiler.after(step, metrics)
        self.ending.step = step
        self.checkpointer.raise_if_failed()
        return state, metrics

    def _is_due(self, step: int) -> bool:
        return step % self.evaluate_every == 0 or step == self.steps

    def _validate_and_save(self, step: int, state: TrainState) -> None:
        with self.timer.measure("evaluation"):
            scores = self.validate(step, state)
        self.log.validation(step, scores)
        with self.timer.measure("checkpoint"):
            self.checkpointer.save(step, state.items, scores)
        self.log.validated(step, scores)

    def _save_and_stop(self, step: int, state: TrainState) -> NoReturn:
        self.ending.why = reason = str(self.stop.reason)
        if self.checkpointer.last_step() != step:
            self.checkpointer.save(step, state.items)
        self.checkpointer.close()
        if self.cluster.is_first:
            say(f"stopped by {reason} after step {step}, saved; the same command resumes it")
            if reason == signal.SIGUSR1.name:
                requeue()
        # A scheduler's SIGTERM was obeyed, which is success; a person's Ctrl-C is told apart.
        sys.exit(130 if reason == signal.SIGINT.name else self.interruption.status)
