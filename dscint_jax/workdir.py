"""The files of a run: the config it belongs to, how each attempt was made, what it measured.

config.json            the resolved config; another config is refused
provenance.json        one entry an attempt
train_metrics.jsonl    one object a logging step, and one an evaluation
tensorboard/           the same for TensorBoard
"""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import jax

from dscint_jax.config import add_later_fields
from dscint_jax.errors import DscintError
from dscint_jax.models.import_torch import ImportReport

RECORDED_PACKAGES = (
    "dscint-jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "tensorflow-datasets",
    "array_record",
    "numpy",
)


MAY_MOVE = ("data.dir", "init_from")
"""Fields that may name another place when a run is resumed."""


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or nothing: under a temporary name first, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
      DscintError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise DscintError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DscintError(f"{path} is not valid JSON ({error}); restore or delete it") from error


def claim(workdir: Path, config: dict[str, Any]) -> None:
    """Marks a new work directory with its config, or checks that an old one has the same.

    The data set may have moved: its fingerprint counts (`check_data`), not its path.

    Raises:
      DscintError: the directory belongs to another config, or cannot be written.
    """
    config = json.loads(json.dumps(config))
    path = workdir / "config.json"
    old = _read_config(path) if path.exists() else config
    differences = [d for d in _differences(old, config) if d[0] not in MAY_MOVE]
    # The same file may lie elsewhere; a resumed run does not read it.
    if Path(old["init_from"]).name != Path(config["init_from"]).name:
        differences.append(("init_from", old["init_from"], config["init_from"]))
    if differences:
        field, old, new = differences[0]
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise DscintError(
            f"{workdir} holds another config: config.{field} is {old} there and {new} here{more}; "
            f"use another --workdir, or the same config to resume"
        )
    try:
        if not path.exists() or old != config:
            write_json(path, config)
    except OSError as error:
        raise DscintError(f"--workdir {workdir} cannot be written: {error.strerror}") from error


def config_of(workdir: Path) -> dict[str, Any]:
    """The config a work directory was trained with.

    Raises:
      DscintError: the directory holds none.
    """
    if not (workdir / "config.json").exists():
        raise DscintError(
            f"{workdir} holds no config.json, so no run; train first: python -m dscint_jax.main "
            f"--config ... --workdir {workdir}"
        )
    return _read_config(workdir / "config.json")


def _read_config(path: Path) -> dict[str, Any]:
    config = read_json(path)
    try:
        return add_later_fields(config)
    except (AttributeError, TypeError, KeyError):
        raise DscintError(f"{path} is no config of a run; restore it") from None


def attempts_of(workdir: Path) -> list[dict[str, Any]]:
    """What provenance.json tells of every attempt, oldest first; nothing before the first.

    Raises:
      DscintError: the file is damaged.
    """
    path = workdir / "provenance.json"
    attempts = read_json(path) if path.exists() else []
    whole = isinstance(attempts, list) and all(
        isinstance(attempt, dict) and isinstance(attempt.get("dataset_fingerprint"), str)
        for attempt in attempts
    )
    if not whole:
        raise DscintError(f"{path} does not list the attempts of a run; restore it")
    return attempts


def record_attempt(
    workdir: Path,
    *,
    fingerprint: str,
    classes: tuple[str, ...],
    start_step: int,
    imported: ImportReport | None = None,
) -> None:
    """Appends to provenance.json what this attempt ran with and where it started.

    Args:
      workdir: the run's directory.
      fingerprint: of the data set.
      classes: of the data set, in the order of the network's outputs.
      start_step: of the checkpoint that was resumed; 0 for none.
      imported: the weights that it started from instead of random ones.
    """
    attempts = attempts_of(workdir)
    attempts.append(
        {
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "start_step": start_step,
            "init_from": imported and {"file": imported.file, "sha256": imported.sha256},
            "dataset_fingerprint": fingerprint,
            "classes": classes,
            "versions": {p: _version(p) for p in RECORDED_PACKAGES},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "git": _git_commit(),
            "backend": jax.default_backend(),
            "devices": [str(device.device_kind) for device in jax.devices()],
            "processes": jax.process_count(),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
        }
    )
    write_json(workdir / "provenance.json", attempts)


def check_data(workdir: Path, fingerprint: str) -> None:
    """Checks that a data set is the one that a run was trained on.

    Raises:
      DscintError: it has other images, labels or splits.
    """
    attempts = attempts_of(workdir)
    if attempts and attempts[-1]["dataset_fingerprint"] != fingerprint:
        raise DscintError(
            f"{workdir} was trained on another data set (fingerprint "
            f"{attempts[-1]['dataset_fingerprint'][:12]}, now {fingerprint[:12]}); use a new "
            f"--workdir, or the data set of then"
        )


class MetricsLog:
    """Appends to train_metrics.jsonl and mirrors the values to TensorBoard.

    Args:
      workdir: the run's directory.
      start_step: lines of later steps are dropped: a resumed run writes them again.
    """

    def __init__(self, workdir: Path, *, start_step: int):
        # Imported late: it is slow, and only training writes event files.
        from tensorboardX import SummaryWriter

        path = workdir / "train_metrics.jsonl"
        kept = [line for line in read_metrics(workdir) if line["step"] <= start_step]
        write_text(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._lines = path.open("a")
        self._events = SummaryWriter(str(workdir / "tensorboard"), purge_step=start_step + 1)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Writes one step's values."""
        self._lines.write(json.dumps({"step": step, **values}) + "\n")
        self._lines.flush()
        for name, value in values.items():
            self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """Flushes and closes both."""
        self._lines.close()
        self._events.close()


def read_metrics(workdir: Path) -> list[dict[str, Any]]:
    """The lines of train_metrics.jsonl; a line cut short by a kill is left out."""
    path = workdir / "train_metrics.jsonl"
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return lines


def _differences(old: Any, new: Any, field: str = "") -> list[tuple[str, str, str]]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            difference
            for name in sorted({*old, *new})
            for difference in _differences(
                old.get(name, "absent"), new.get(name, "absent"), f"{field}.{name}".lstrip(".")
            )
        ]
    return [] if old == new else [(field, json.dumps(old), json.dumps(new))]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _git_commit() -> str:
    """The commit of the checkout that this file lies in, '+changes' if it differs from it."""
    try:
        here = Path(__file__).parent
        run = lambda *args: subprocess.run(  # noqa: E731
            ["git", "-C", str(here), *args], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        return run("rev-parse", "HEAD") + ("+changes" if run("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
