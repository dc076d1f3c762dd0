"""Weights & Biases."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dscint_jax.run.trackers.tracker import Values, import_tracker, keep_run_id, kept_run_id


class Wandb:
    """A run of Weights & Biases; WANDB_MODE=offline and its like hold as they do elsewhere."""

    def __init__(self, workdir: Path, config: Mapping[str, Any], project: str):
        package = import_tracker("wandb")
        self._run = package.init(
            project=project,
            name=workdir.resolve().name,
            id=kept_run_id(workdir, "wandb"),
            resume="allow",
            dir=str(workdir),
            config=dict(config),
            settings=package.Settings(console="off", silent=True, disable_git=True),
        )
        if self._run.id != kept_run_id(workdir, "wandb"):
            keep_run_id(workdir, "wandb", self._run.id)
        # Its own count of steps only goes up; a resumed run may go back to a checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Values) -> None:
        """Logs the values over the axis 'step'."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Marks the run as finished; it can be resumed all the same."""
        self._run.finish()
