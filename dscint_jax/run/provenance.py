"""provenance.json: how each attempt at a run was made, and how it ended."""

import contextlib
import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from dscint_jax.weights.import_torch import ImportReport
from tfds_builder.commandline.command import available_cores, installed_version
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import read_json, write_json

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
X64 = "enable_x64"
RECORDED_SETTINGS = (X64, "default_matmul_precision", "threefry_partitionable")
"""JAX's settings that change the numbers."""
WIDE_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
"""What XLA compiles other programs for."""
ERROR_LENGTH = 500
"""Characters of an error that are kept."""


def attempts_of(workdir: Path) -> list[dict[str, Any]]:
    """What provenance.json tells of every attempt, oldest first; UserError if it is damaged."""
    path = workdir / "provenance.json"
    attempts = read_json(path) if path.exists() else []
    whole = isinstance(attempts, list) and all(
        isinstance(attempt, dict) and isinstance(attempt.get("dataset_fingerprint"), str)
        for attempt in attempts
    )
    if not whole:
        raise UserError(f"{path} does not list the attempts of a run; restore it")
    return attempts


def classes_of(workdir: Path) -> tuple[str, ...]:
    """The classes a run was trained on, in the network's order; UserError if they are not told."""
    attempts = attempts_of(workdir)
    if not attempts or not attempts[-1].get("classes"):
        raise UserError(f"{workdir / 'provenance.json'} names no classes; restore it")
    return tuple(attempts[-1]["classes"])


def record_attempt(
    workdir: Path,
    *,
    fingerprint: str,
    classes: tuple[str, ...],
    start_step: int,
    steps: int,
    batch_size: int | None = None,
    imported: ImportReport | None = None,
    spmd: str = "jit",
) -> None:
    """Appends to provenance.json what this attempt ran with and where it started.

    Of several processes, the first writes. The machine's name is nobody's business and left out.

    Args:
      workdir: the run's directory.
      fingerprint, classes: of the data set, the classes in the order of the network's outputs.
      start_step: of the checkpoint that was resumed; 0 for none.
      steps: that the run is to have in all; an attempt may have more than the one before.
      batch_size: fewer than config.batch_size where the training split is smaller.
      imported: the weights that it started from instead of random ones.
      spmd: of the config.
    """
    if jax.process_index() != 0:
        return
    attempts = attempts_of(workdir)
    attempts.append(
        {
            "started": _now(),
            "ended": None,
            "start_step": start_step,
            "steps": steps,
            "batch_size": batch_size,
            "arguments": sys.argv[1:],
            "init_from": imported and {"file": imported.file, "sha256": imported.sha256},
            "dataset_fingerprint": fingerprint,
            "classes": classes,
            "versions": {p: installed_version(p) or "unknown" for p in RECORDED_PACKAGES},
            "python": platform.python_version(),
            "platform": platform.platform(),
            "processor": processor(),
            "cores": available_cores(),
            "git": _git_commit(),
            "backend": jax.default_backend(),
            "devices": [str(device.device_kind) for device in jax.devices()],
            "device_count": jax.device_count(),
            "local_device_count": jax.local_device_count(),
            "processes": jax.process_count(),
            "xla_flags": os.environ.get("XLA_FLAGS", ""),
            "jax_config": {
                "spmd": spmd,
                "compilation_cache": _loads_compiled(),
                **{name: getattr(jax.config, f"jax_{name}") for name in RECORDED_SETTINGS},
            },
        }
    )
    write_json(workdir / "provenance.json", attempts)


class Ending:
    """A context manager around the loop that adds to provenance.json how the newest attempt ended.

    A kill leaves no time for it, and `ended` as it was: null. The first process writes.

    Args:
      workdir: the run's directory.
      step: the one that the attempt starts after.
      details: gives what else is to be recorded, from the last step.

    Attributes:
      step: the last one taken; the loop keeps it up to date.
      why: to be set where the reason is known, such as a signal's name.
    """

    def __init__(self, workdir: Path, step: int, details: Callable[[int], Mapping[str, Any]]):
        self._workdir, self._details = workdir, details
        self.step, self.why = step, ""

    def __enter__(self) -> "Ending":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if jax.process_index() != 0:
            return
        ended = {"why": self.why or _reason(error), "step": self.step, "when": _now()}
        try:
            attempts = attempts_of(self._workdir)
            attempts[-1]["ended"] = {**ended, **self._details(self.step)}
            write_json(self._workdir / "provenance.json", attempts)
        except (OSError, UserError):
            # What ended the attempt, such as a full disk, says more.
            if error is None:
                raise


def _reason(error: BaseException | None) -> str:
    if error is None:
        return "completed"
    if isinstance(error, KeyboardInterrupt):
        return "SIGINT"
    text = " ".join(str(error).split())
    return f"error: {type(error).__name__}: {text}"[:ERROR_LENGTH].removesuffix(": ")


def note_completed(workdir: Path, step: int) -> None:
    """Has the newest attempt ended as complete, where it took all steps and says otherwise.

    After the last checkpoint a kill, or a tracker that fails, may leave another end, or none; what
    else was recorded of it stays.
    """
    attempts = attempts_of(workdir)
    if attempts and not is_complete(workdir):
        before = attempts[-1].get("ended") or {}
        kept = {name: before[name] for name in before if name not in ("why", "step", "when")}
        with Ending(workdir, step, lambda step: kept):
            pass


def is_complete(workdir: Path) -> bool:
    """Whether the newest attempt took all of its steps; UserError where nothing tells."""
    attempts = attempts_of(workdir)
    ended = attempts[-1].get("ended") if attempts else None
    return bool(ended) and ended.get("why") == "completed"


def check_data(workdir: Path, fingerprint: str) -> None:
    """Raises UserError of a data set with other images, labels or splits than a run's."""
    attempts = attempts_of(workdir)
    if attempts and attempts[-1]["dataset_fingerprint"] != fingerprint:
        raise UserError(
            f"{workdir} was trained on another data set (fingerprint "
            f"{attempts[-1]['dataset_fingerprint'][:12]}, now {fingerprint[:12]}); use a new "
            f"--workdir, or the data set of then"
        )


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def processor() -> str:
    """The processor's model, with those of WIDE_INSTRUCTIONS that it has."""
    model, flags = platform.processor() or platform.machine(), set()
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                model = value.strip()
            elif name.strip() == "flags":
                flags = set(value.split())
    return " ".join([model, *(name for name in WIDE_INSTRUCTIONS if name in flags)])


def _loads_compiled() -> bool:
    """Whether programs may come from JAX's persistent cache instead of the compiler."""
    folder, on = jax.config.jax_compilation_cache_dir, jax.config.jax_enable_compilation_cache  # pyright: ignore[reportAttributeAccessIssue]
    return bool(folder and on)


def _git_commit() -> str:
    """The commit of the checkout that this file lies in, '+changes' if it differs from it."""
    command = ["git", "-C", str(Path(__file__).parent)]

    def run(*words: str) -> str:
        done = subprocess.run(
            [*command, *words], capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        # An installed copy may lie in an environment within somebody's own repository.
        run("ls-files", "--error-unmatch", Path(__file__).name)
        return run("rev-parse", "HEAD") + ("+changes" if run("status", "--porcelain") else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"
