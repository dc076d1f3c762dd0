"""Where a run's metrics go: JSON lines always, and TensorBoard, wandb or mlflow by the config.

In: a step and what was measured there. Out: train_metrics.jsonl (what the training gives: two runs
of one config have the same lines), train_speed.jsonl (how fast it was: no two have), and the same
in every tracker of `config.trackers`. Training never fails for a tracker: one that does is left
out after a warning. The JSON lines are the record, so a disk that cannot take them ends the run.
"""

import importlib
import json
import logging
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from dscint_jax.atomic import write_text
from dscint_jax.disk import write_error
from dscint_jax.errors import DscintError
from dscint_jax.event_file import EventFile
from dscint_jax.workdir import read_json, write_json

METRICS_FILE = "train_metrics.jsonl"
SPEED_FILE = "train_speed.jsonl"
SPEED_PREFIX = "speed/"
"""What names of speeds begin with in the trackers."""

RUN_IDS_FILE = "trackers.json"
"""The run's name in wandb and mlflow, so that a resumed run goes on in the same one."""

NEEDED_ATTRIBUTE = {"tensorboard": "SummaryWriter", "wandb": "init", "mlflow": "MlflowClient"}
PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "mlflow": "mlflow"}

OPEN_TIMEOUT_S, CLOSE_TIMEOUT_S = 30.0, 60.0
"""How long the start and the end of a run wait for a server that is looked after in a thread."""

MLFLOW_PARAMETERS_A_CALL = 100
MLFLOW_PARAMETER_LENGTH = 6000

Values = Mapping[str, float]


@runtime_checkable
class Tracker(Protocol):
    """Something that takes metrics. Any exception means that it can take no more."""

    def write(self, step: int, values: Values) -> None:
        """Takes the values of one step."""

    def close(self) -> None:
        """Sees to it that nothing is lost."""


def check_trackers(names: Sequence[str]) -> None:
    """Checks that every name is a tracker's.

    Raises:
      DscintError: names the one that is not.
    """
    for name in names:
        if name not in PACKAGES:
            known = ", ".join(f"'{known}'" for known in PACKAGES)
            raise DscintError(f"config.trackers has {name!r}; it may list {known}")


def require_packages(names: Sequence[str]) -> None:
    """Checks that the packages of the trackers can be imported.

    Raises:
      DscintError: names the first that is missing and how to install it.
    """
    for name in names:
        _import(name)


def open_trackers(
    names: Sequence[str],
    workdir: Path,
    start_step: int,
    config: Mapping[str, Any],
    project: str,
    *,
    writes: bool = True,
) -> "Trackers":
    """Opens the JSON lines and the named trackers.

    Args:
      names: of `config.trackers`.
      workdir: the run's directory; its name is the run's name.
      start_step: lines of later steps are dropped: a resumed run writes them again.
      config: the run's, shown beside its metrics.
      project: what wandb calls project and mlflow experiment.
      writes: False where another process writes, which leaves all of this out.

    Raises:
      DscintError: an unknown name, a missing package, files that cannot be written, or, at the
        start of a run, a tracker that cannot be reached. A resumed run goes on without it.
    """
    check_trackers(names)
    if not writes:
        return Trackers({})
    lines = {"json lines": JsonLines(workdir / METRICS_FILE, start_step=start_step)}
    speeds = JsonLines(workdir / SPEED_FILE, start_step=start_step)
    trackers = Trackers(lines, speeds=speeds)
    openers: dict[str, Callable[[], Tracker]] = {
        "tensorboard": lambda: TensorBoard(workdir, start_step=start_step),
        "wandb": lambda: Wandb(workdir, config, project),
        "mlflow": lambda: InBackground(lambda: Mlflow(workdir, config, project)),
    }
    for name in dict.fromkeys(names):
        try:
            trackers.add(name, openers[name]())
        except DscintError:
            trackers.close()
            raise
        # Each package has exceptions of its own.
        except Exception as error:
            if start_step == 0:
                trackers.close()
                raise DscintError(
                    f"{name} of config.trackers could not be started: {_one_line(error)}; "
                    f"mend that, or leave it out: --config.trackers=tensorboard"
                ) from error
            _warn(f"{name} could not be started ({_one_line(error)}); the run goes on without it")
    return trackers


class Trackers:
    """Hands what was measured to every tracker; one that fails is warned of once and left out.

    Args:
      required: trackers whose failure ends the run, by name.
      speeds: takes speeds, which the required ones do not.
    """

    def __init__(self, required: Mapping[str, Tracker], *, speeds: Tracker | None = None):
        self._required, self._speeds = dict(required), speeds
        self._optional: dict[str, Tracker] = {}

    def add(self, name: str, tracker: Tracker) -> None:
        """Adds one whose failure does not end the run."""
        self._optional[name] = tracker

    def write(self, step: int, values: Values) -> None:
        """Writes what the training gave: the same in every run of the same config.

        Raises:
          DscintError: the JSON lines cannot be written.
        """
        for tracker in self._required.values():
            tracker.write(step, values)
        self._write_optional(step, values)

    def write_speed(self, step: int, values: Values) -> None:
        """Writes how fast it went and what memory it took: never the same twice.

        Raises:
          DscintError: train_speed.jsonl cannot be written.
        """
        if self._speeds:
            self._speeds.write(step, values)
        self._write_optional(step, {SPEED_PREFIX + name: v for name, v in values.items()})

    def close(self) -> None:
        """Closes all."""
        required = [*self._required.values(), *([self._speeds] if self._speeds else [])]
        self._required, self._speeds = {}, None
        for tracker in required:
            tracker.close()
        while self._optional:
            name, tracker = self._optional.popitem()
            try:
                tracker.close()
            except Exception as error:
                _warn(f"{name} did not take its last values ({_one_line(error)})")

    def _write_optional(self, step: int, values: Values) -> None:
        for name, tracker in list(self._optional.items()):
            try:
                tracker.write(step, values)
            # Each package has exceptions of its own.
            except Exception as error:
                del self._optional[name]
                _warn(
                    f"{name} takes no more metrics after step {step} ({_one_line(error)}); "
                    f"training goes on, {METRICS_FILE} has them all"
                )


class JsonLines:
    """One JSON object a line, with its step; whole lines only, also after a kill.

    Args:
      path: of the file; it is made if missing.
      start_step: lines of later steps are dropped.

    Raises:
      WriteError: the file cannot be written, here and in `write`.
    """

    def __init__(self, path: Path, *, start_step: int):
        self._path = path
        kept = [line for line in read_lines(path) if line["step"] <= start_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        try:
            # Unbuffered: what the disk refused is not tried again when the file is forgotten.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise write_error(path, error) from error

    def write(self, step: int, values: Values) -> None:
        """Appends one line."""
        line = (json.dumps({"step": step, **values}) + "\n").encode()
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise write_error(self._path, error) from error

    def close(self) -> None:
        """Closes the file."""
        try:
            self._file.close()
        except OSError as error:
            raise write_error(self._path, error) from error


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines; a line cut short by a kill is left out."""
    lines = []
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(value, dict) and isinstance(value.get("step"), int):
            lines.append(value)
    return lines


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of train_metrics.jsonl; a line cut short by a kill is left out."""
    return read_lines(workdir / METRICS_FILE)


class TensorBoard:
    """Event files under `workdir/tensorboard`, written without TensorFlow."""

    def __init__(self, workdir: Path, *, start_step: int):
        _import("tensorboard")
        self._events = EventFile(workdir / "tensorboard", start_step=start_step)

    def write(self, step: int, values: Values) -> None:
        """Adds one scalar a value."""
        self._events.write(step, values)

    def close(self) -> None:
        """Flushes and closes the file."""
        self._events.close()


class Wandb:
    """A run of Weights & Biases; WANDB_MODE=offline and its like hold as they do elsewhere."""

    def __init__(self, workdir: Path, config: Mapping[str, Any], project: str):
        package = _import("wandb")
        self._run = package.init(
            project=project,
            name=workdir.resolve().name,
            id=_run_id(workdir, "wandb"),
            resume="allow",
            dir=str(workdir),
            config=_plain(config),
            settings=package.Settings(console="off", silent=True, disable_git=True),
        )
        if self._run.id != _run_id(workdir, "wandb"):
            _keep_run_id(workdir, "wandb", self._run.id)
        # Its own count of steps only goes up; a resumed run may go back to a checkpoint.
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def write(self, step: int, values: Values) -> None:
        """Logs the values over the axis 'step'."""
        self._run.log({"step": step, **values})

    def close(self) -> None:
        """Marks the run as finished; it can be resumed all the same."""
        self._run.finish()


class Mlflow:
    """A run of MLflow, where MLFLOW_TRACKING_URI says or where MLflow does by itself."""

    def __init__(self, workdir: Path, config: Mapping[str, Any], project: str):
        package = _import("mlflow")
        for name in ("mlflow", "alembic"):
            logging.getLogger(name).setLevel(logging.WARNING)
        self._entities = importlib.import_module("mlflow.entities")
        self._client = package.MlflowClient()
        self._id = self._resumed(_run_id(workdir, "mlflow"))
        if self._id is None:
            self._id = self._new(workdir.resolve().name, project)
            self._log_config(config)
            _keep_run_id(workdir, "mlflow", self._id)

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
            _warn(f"mlflow cannot resume its run {run} ({_one_line(error)}); it starts a new one")
            return None
        return run

    def _new(self, name: str, project: str) -> str:
        experiment = self._client.get_experiment_by_name(project)
        number = experiment.experiment_id if experiment else self._client.create_experiment(project)
        return self._client.create_run(number, run_name=name).info.run_id

    def _log_config(self, config: Mapping[str, Any]) -> None:
        parameters = [
            self._entities.Param(field, value[:MLFLOW_PARAMETER_LENGTH])
            for field, value in _flat(_plain(config))
        ]
        for first in range(0, len(parameters), MLFLOW_PARAMETERS_A_CALL):
            some = parameters[first : first + MLFLOW_PARAMETERS_A_CALL]
            self._client.log_batch(self._id, params=some)


class InBackground:
    """Lets a tracker that may wait for a network work in a thread, so that training never waits.

    What it failed at is raised by the next call; from then on it is given no more.

    Args:
      opener: makes the tracker, in the thread, which alone uses it.
      open_timeout_s: how long to wait for the opener.
      close_timeout_s: how long `close` waits for what is still to be written.

    Raises:
      TimeoutError: the opener takes too long; what the opener raises.
    """

    def __init__(
        self,
        opener: Callable[[], Tracker],
        *,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ):
        self._opener, self._timeout_s = opener, close_timeout_s
        self._waiting: queue.SimpleQueue[tuple[int, Values] | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._opened = threading.Event()
        # A daemon: a server that never answers must not keep the process alive.
        self._thread = threading.Thread(target=self._work, daemon=True, name="tracker")
        self._thread.start()
        if not self._opened.wait(open_timeout_s):
            raise TimeoutError(f"no answer within {open_timeout_s:.0f} s")
        self._raise()

    def write(self, step: int, values: Values) -> None:
        """Hands the values over and returns at once."""
        self._raise()
        self._waiting.put((step, dict(values)))

    def close(self) -> None:
        """Waits until all is written, but no longer than the timeout."""
        self._waiting.put(None)
        self._thread.join(self._timeout_s)
        self._raise()
        if self._thread.is_alive():
            raise TimeoutError(f"no answer within {self._timeout_s:.0f} s")

    def _work(self) -> None:
        try:
            tracker = self._opener()
            self._opened.set()
            while (item := self._waiting.get()) is not None:
                tracker.write(*item)
            tracker.close()
        # Kept for the thread that trains.
        except Exception as error:
            self._error = error
            self._opened.set()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error


def _import(name: str) -> ModuleType:
    package = PACKAGES[name]
    try:
        module = importlib.import_module(package)
    except ImportError:
        module = None
    # A folder called wandb in the working directory imports too, as an empty package.
    if module is None or not hasattr(module, NEEDED_ATTRIBUTE[name]):
        raise DscintError(
            f"config.trackers has '{name}', but the package {package} is not installed; install "
            f"it: {sys.executable} -m pip install {package}"
        )
    return module


def _run_id(workdir: Path, name: str) -> str | None:
    path = workdir / RUN_IDS_FILE
    ids = read_json(path) if path.exists() else {}
    run = ids.get(name) if isinstance(ids, dict) else None
    return run if isinstance(run, str) else None


def _keep_run_id(workdir: Path, name: str, run: str) -> None:
    path = workdir / RUN_IDS_FILE
    ids = read_json(path) if path.exists() else {}
    write_json(path, {**ids, name: run})


def _plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config as config.json has it: lists for tuples, no classes of ours."""
    return json.loads(json.dumps(config))


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value if isinstance(value, str) else json.dumps(value)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300].removesuffix(": ")


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
