"""Writes a file that is there whole or not at all.

In: a path, and its content. Out: the file, put in place at once when all of it is on the disk. So
nothing that reads it sees half of it, and a write that is interrupted or meets a full disk leaves
the earlier file.
"""

import json
import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from tfds_builder.commandline.errors import UserError, is_full, reason

SUFFIX = ".part"


class WriteError(UserError):
    """A file of a run could not be written; what was there before is as it was."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Has a file written under another name, and renames it when it is whole.

    The folder of `path` is made; `write` writes a file to the path, in that folder, that it is
    given. Raises WriteError where it cannot be written.
    """
    # Two processes may write the same file; neither may rename what the other has begun.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        # Some disks say only now that they are full; and a rename may outrun its file's content.
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file of bytes; raises as `write_whole`."""
    write_whole(path, lambda part: part.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8; raises as `write_whole`."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Writes JSON with sorted keys; raises as `write_whole`."""
    write_text(path, json.dumps(value, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON; raises UserError where the file is missing or is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise UserError(f"{path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore or delete it") from error


def remove_parts(folder: Path) -> None:
    """Removes what killed processes left of unfinished files, where no other process writes now."""
    for part in folder.glob(f".*{SUFFIX}"):
        with suppress(OSError):
            part.unlink()


def write_error(path: Path, error: BaseException) -> WriteError:
    """What to raise where `path` could not be written because of `error`."""
    if is_full(error):
        folder = existing_folder(path)
        return WriteError(
            f"{path} cannot be written: the disk is full ({free_space(folder)} free in {folder})"
        )
    return WriteError(f"{path} cannot be written: {reason(error)}")


def check_writable(folder: Path) -> None:
    """Raises WriteError where the rights do not allow to make a folder, or to write files in it.

    For the start, long before the folder is needed.
    """
    nearest = existing_folder(folder / "file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise WriteError(
            f"{folder} cannot be written: this user may not write in {nearest}; ask for the "
            "permission, or use another place"
        )


def free_space(folder: Path) -> str:
    """Room on the disk that a folder lies on, as '3.2 MiB'."""
    free, units = float(shutil.disk_usage(folder).free), ("bytes", "KiB", "MiB", "GiB", "TiB")
    for unit in units[:-1]:
        if free < 1024:
            return f"{free:.{0 if unit == 'bytes' else 1}f} {unit}"
        free /= 1024
    return f"{free:.1f} {units[-1]}"


def existing_folder(path: Path) -> Path:
    """The folder of a path, or the nearest above it that is there."""
    return next(folder for folder in path.absolute().parents if folder.is_dir())
