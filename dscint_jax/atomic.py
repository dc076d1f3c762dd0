"""Writes a file that is there whole or not at all.

In: a path, and its content. Out: the file, put in place at once when all of it is on the disk. So
nothing that reads it sees half of it, and a write that is interrupted or meets a full disk leaves
the earlier file.
"""

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from dscint_jax.disk import write_error

SUFFIX = ".part"


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Has a file written under another name, and renames it when it is whole.

    Args:
      path: where it is to be; its folder is made.
      write: writes a file to the path that it is given, in the same folder.

    Raises:
      WriteError: it cannot be written.
    """
    # Two processes may write the same file; neither may rename what the other has begun.
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}{SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(part)
        _to_disk(part)
        part.replace(path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file of bytes, whole or not at all.

    Raises:
      WriteError: it cannot be written.
    """
    write_whole(path, lambda part: part.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, whole or not at all.

    Raises:
      WriteError: it cannot be written.
    """
    write_bytes(path, text.encode())


def remove_parts(folder: Path) -> None:
    """Removes what killed processes left of unfinished files, where no other process writes now."""
    for part in folder.glob(f".*{SUFFIX}"):
        with suppress(OSError):
            part.unlink()


def _to_disk(path: Path) -> None:
    """Some disks say only now that they are full; and a rename may outrun its file's content."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
