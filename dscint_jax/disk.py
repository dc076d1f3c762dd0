"""What is said when a file cannot be written: which folder, why, and how much room there is.

In: an error that writing raised, of the operating system's or of a library that wraps one. Out: a
`WriteError`, one line that a user can act on.
"""

import errno
import os
import shutil
from collections.abc import Collection, Iterator
from pathlib import Path

from dscint_jax.errors import DscintError

FULL = (errno.ENOSPC, errno.EDQUOT)

PASSING = (
    *(errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
)
"""Why a file that is whole may be unreadable for now."""

REASON_LENGTH = 200
"""Characters of a library's own words in a message."""


class WriteError(DscintError):
    """A file of a run could not be written; what was there before is as it was."""


def is_full(error: BaseException) -> bool:
    """Whether an error, or what it arose from, says that a disk or a quota is full."""
    return _says(error, FULL)


def is_passing(error: BaseException) -> bool:
    """Whether a file could not be read for a reason that lies not in the file: no permission, too
    little memory, a file server that does not answer.
    """
    out_of_memory = any(
        isinstance(one, MemoryError) or "RESOURCE_EXHAUSTED" in str(one)
        for one in _with_causes(error)
    )
    return out_of_memory or _says(error, PASSING)


def write_error(path: Path, error: BaseException) -> WriteError:
    """What to raise where `path` could not be written because of `error`."""
    if is_full(error):
        folder = existing_folder(path)
        return WriteError(
            f"{path} cannot be written: the disk is full ({free_space(folder)} free in {folder})"
        )
    return WriteError(f"{path} cannot be written: {reason(error)}")


def check_writable(folder: Path) -> None:
    """Looks at the rights alone; for the start, long before the folder is needed.

    Args:
      folder: may not be there yet.

    Raises:
      WriteError: files cannot be written in it, or it cannot be made.
    """
    nearest = existing_folder(folder / "file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise WriteError(
            f"{folder} cannot be written: this user may not write in {nearest}; ask for the "
            "permission, or use another place"
        )


def reason(error: BaseException) -> str:
    """An error's own words, in one line of bounded length."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:REASON_LENGTH]


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


def _says(error: BaseException, numbers: Collection[int]) -> bool:
    """Whether an error, or what it arose from, is one of the operating system's by its number."""
    return any(
        getattr(one, "errno", None) in numbers or any(os.strerror(n) in str(one) for n in numbers)
        for one in _with_causes(error)
    )


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
