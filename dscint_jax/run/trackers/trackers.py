"""Where a run's metrics go: JSON lines always, and TensorBoard, wandb or mlflow by the config.

In: a step and what was measured there. Out: train_metrics.jsonl (what the training gives: two runs
of one config have the same lines), train_speed.jsonl (how fast it was: no two have), and the same
in every tracker of `config.trackers`. Training never fails for a tracker: one that does is left
out after a warning. The JSON lines are the record, so a disk that cannot take them ends the run.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dscint_jax.run.trackers.in_background import InBackground
from dscint_jax.run.trackers.json_lines import METRICS_FILE, SPEED_FILE, JsonLines
from dscint_jax.run.trackers.mlflow import Mlflow
from dscint_jax.run.trackers.tensorboard import TensorBoard
from dscint_jax.run.trackers.tracker import PACKAGES, Tracker, Values, one_line
from dscint_jax.run.trackers.weights_and_biases import Wandb
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.progress import warn

SPEED_PREFIX = "speed/"
"""What names of speeds begin with in the trackers."""


def check_trackers(names: Sequence[str]) -> None:
    """Raises UserError of a name that is no tracker's."""
    for name in names:
        if name not in PACKAGES:
            known = ", ".join(f"'{known}'" for known in PACKAGES)
            raise UserError(f"config.trackers has {name!r}; it may list {known}")


def open_trackers(
    names: Sequence[str],
    workdir: Path,
    start_step: int,
    config: Mapping[str, Any],
    project: str,
) -> "Trackers":
    """Opens the JSON lines and the named trackers.

    Args:
      names: of `config.trackers`, as `check_trackers` lets them pass.
      workdir: the run's directory; its name is the run's name.
      start_step: lines of later steps are dropped: a resumed run writes them again.
      config: the run's, shown beside its metrics.
      project: what wandb calls project and mlflow experiment.

    Raises:
      UserError: a missing package, files that cannot be written, or, at the start of a run, a
        tracker that cannot be reached. A resumed run goes on without it.
    """
    trackers = Trackers(
        JsonLines(workdir / METRICS_FILE, start_step=start_step),
        JsonLines(workdir / SPEED_FILE, start_step=start_step),
    )
    # As config.json has it: lists for tuples.
    config = json.loads(json.dumps(config))
    openers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(workdir, start_step=start_step),
        "wandb": lambda: Wandb(workdir, config, project),
        "mlflow": lambda: InBackground(lambda: Mlflow(workdir, config, project)),
    }
    for name in dict.fromkeys(names):
        try:
            trackers.add(name, openers[name]())
        except UserError:
            trackers.close()
            raise
        # Each package has exceptions of its own.
        except Exception as error:
            if start_step == 0:
                trackers.close()
                raise UserError(
                    f"{name} of config.trackers could not be started: {one_line(error)}; "
                    f"mend that, or leave it out: --config.trackers=tensorboard"
                ) from error
            warn(f"{name} could not be started ({one_line(error)}); the run goes on without it")
    return trackers


class Trackers:
    """Hands what was measured to every tracker; one that fails is warned of once and left out.

    Args:
      lines: takes what the training gave; its failure ends the run, as does that of `speeds`.
      speeds: takes how fast it was. Both are None where another process writes.
    """

    def __init__(self, lines: Tracker | None = None, speeds: Tracker | None = None):
        self._lines, self._speeds = lines, speeds
        self._optional: dict[str, Tracker] = {}

    def add(self, name: str, tracker: Tracker) -> None:
        """Adds one whose failure does not end the run."""
        self._optional[name] = tracker

    def write(self, step: int, values: Values) -> None:
        """Writes what the training gave: the same in every run of the same config.

        Raises:
          UserError: the JSON lines cannot be written.
        """
        if self._lines:
            self._lines.write(step, values)
        self._write_optional(step, values)

    def write_speed(self, step: int, values: Values) -> None:
        """Writes how fast it went and what memory it took: never the same twice.

        Raises:
          UserError: train_speed.jsonl cannot be written.
        """
        if self._speeds:
            self._speeds.write(step, values)
        self._write_optional(step, {SPEED_PREFIX + name: v for name, v in values.items()})

    def close(self) -> None:
        """Closes all."""
        required = self._lines, self._speeds
        self._lines = self._speeds = None
        for tracker in required:
            if tracker:
                tracker.close()
        while self._optional:
            name, tracker = self._optional.popitem()
            try:
                tracker.close()
            except Exception as error:
                warn(f"{name} did not take its last values ({one_line(error)})")

    def _write_optional(self, step: int, values: Values) -> None:
        for name, tracker in list(self._optional.items()):
            try:
                tracker.write(step, values)
            # Each package has exceptions of its own.
            except Exception as error:
                del self._optional[name]
                warn(
                    f"{name} takes no more metrics after step {step} ({one_line(error)}); "
                    f"training goes on, {METRICS_FILE} has them all"
                )
