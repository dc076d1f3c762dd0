"""What every tracker is and shares."""

import contextlib
import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, runtime_checkable

from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import read_json, write_json

RUN_IDS_FILE = "trackers.json"
"""The run's name in wandb and mlflow, so that a resumed run goes on in the same one."""
PACKAGES = {
    "tensorboard": ("tensorboardX", "SummaryWriter"),
    "wandb": ("wandb", "init"),
    "mlflow": ("mlflow", "MlflowClient"),
}
"""The package of each tracker, and what it must have."""
Values = Mapping[str, float]


@runtime_checkable
class Tracker(Protocol):
    """Something that takes metrics. Any exception means that it can take no more."""

    def write(self, step: int, values: Values) -> None:
        """Takes the values of one step."""

    def close(self) -> None:
        """Sees to it that nothing is lost."""


def import_tracker(name: str) -> ModuleType:
    """The package of a tracker.

    Raises:
      UserError: it is not installed, or is another package of that name.
    """
    package, needed = PACKAGES[name]
    try:
        with _hidden("torch") if name == "tensorboard" else contextlib.nullcontext():
            module = importlib.import_module(package)
    except ImportError:
        module = None
    # A folder called wandb in the working directory imports too, as an empty package.
    if module is None or not hasattr(module, needed):
        raise UserError(
            f"config.trackers has '{name}', but the package {package} is not installed; install "
            f"it: {sys.executable} -m pip install {package}"
        )
    return module


@contextlib.contextmanager
def _hidden(package: str) -> Iterator[None]:
    """Nothing imports the package meanwhile, unless it is imported already.

    tensorboardX imports PyTorch where that is installed, which takes two seconds and 200 MB, for
    what is not used here.
    """
    if package in sys.modules:
        yield
        return
    sys.modules[package] = None  # pyright: ignore[reportArgumentType]
    try:
        yield
    finally:
        del sys.modules[package]


def kept_run_id(workdir: Path, name: str) -> str | None:
    """The id under which a tracker knows this run; None before it does."""
    run = _run_ids(workdir).get(name)
    return run if isinstance(run, str) else None


def keep_run_id(workdir: Path, name: str, run: str) -> None:
    """Keeps the id under which a tracker knows this run, so that it is resumed there too."""
    write_json(workdir / RUN_IDS_FILE, {**_run_ids(workdir), name: run})


def _run_ids(workdir: Path) -> dict[str, Any]:
    path = workdir / RUN_IDS_FILE
    ids = read_json(path) if path.exists() else {}
    return ids if isinstance(ids, dict) else {}


def one_line(error: Exception) -> str:
    """An error's kind and words, in one line of bounded length."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300].removesuffix(": ")
