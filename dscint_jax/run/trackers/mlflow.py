"""MLflow."""

import importlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dscint_jax.config import flat
from dscint_jax.run.trackers.tracker import (
    Values,
    import_tracker,
    keep_run_id,
    kept_run_id,
    one_line,
)
from tfds_builder.commandline.progress import warn

MLFLOW_PARAMETERS_A_CALL = 100
MLFLOW_PARAMETER_LENGTH = 6000


class Mlflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says or where MLflow does by itself."""

    def __init__(self, workdir: Path, config: Mapping[str, Any], project: str):
        package = import_tracker("mlflow")
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._entities = importlib.import_module("mlflow.entities")
        self._client = package.MlflowClient()
        self._id = self._resumed(kept_run_id(workdir, "mlflow"))
        if self._id is None:
            self._id = self._new(workdir.resolve().name, project)
            self._log_config(config)
            keep_run_id(workdir, "mlflow", self._id)

    def write(self, step: int, values: Values) -> None:
        """Logs the values at their step."""
        now = int(time.time() * 1000)
        self._client.log_batch(
            self._id,
            metrics=[self._entities.Metric(n, float(v), now, step) for n, v in values.items()],
        )

    def close(self) -> None:
        """Marks the run as finished; it can be resumed all the same."""
        self._client.set_terminated(self._id, status="FINISHED")

    def _resumed(self, run: str | None) -> str | None:
        """The run of the attempts before, if this store still has it."""
        if run is None:
            return None
        try:
            self._client.update_run(run, status="RUNNING")
        # A store says in its own way that it knows no such run.
        except Exception as error:
            warn(f"mlflow cannot resume its run {run} ({one_line(error)}); it starts a new one")
            return None
        return run

    def _new(self, name: str, project: str) -> str:
        experiment = self._client.get_experiment_by_name(project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(project)
        return self._client.create_run(number, run_name=name).info.run_id

    def _log_config(self, config: Mapping[str, Any]) -> None:
        parameters = [
            self._entities.Param(name, text[:MLFLOW_PARAMETER_LENGTH])
            for name, value in flat(config).items()
            for text in [value if isinstance(value, str) else json.dumps(value)]
        ]
        for first in range(0, len(parameters), MLFLOW_PARAMETERS_A_CALL):
            some = parameters[first : first + MLFLOW_PARAMETERS_A_CALL]
            self._client.log_batch(self._id, params=some)
