"""Metrics and speed as lines of JSON, which are always written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tfds_builder.commandline.files import write_error, write_text

METRICS_FILE = "train_metrics.jsonl"
SPEED_FILE = "train_speed.jsonl"


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

    def write(self, step: int, values: Mapping[str, Any]) -> None:
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
    """The lines of train_metrics.jsonl."""
    return read_lines(workdir / METRICS_FILE)
