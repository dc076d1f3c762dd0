"""One training at a time in a work directory, and no checkpoint taken from who reads it.

In: the directory, or a checkpoint. Out: a lock that the system takes back when its process ends,
however it ends; of a work directory, with the holder's name in the error that another process gets.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from dscint_jax.disk import write_error
from dscint_jax.errors import DscintError

LOCK_FILE = ".lock"

PINNED_FILE = "_CHECKPOINT_METADATA"
"""File of a checkpoint whose lock readers share: Orbax writes it once, and nobody replaces it."""

TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


class WorkdirLock:
    """A context manager that holds a work directory's lock; it is made if it is not there.

    The file stays when the lock is given back: to remove it would let two processes lock two files
    of the same name. On a file system without locks there is a warning and no lock.

    Args:
      workdir: the run's directory.
    """

    def __init__(self, workdir: Path):
        self._workdir, self._file = workdir, None

    def check(self) -> None:
        """Leaves everything as it is; for the start, long before the directory is needed.

        Raises:
          DscintError: another process trains there.
        """
        try:
            descriptor = os.open(self._workdir / LOCK_FILE, os.O_RDWR)
        except OSError:
            return
        try:
            self._lock(descriptor, warn=False)
        finally:
            os.close(descriptor)

    def __enter__(self) -> "WorkdirLock":
        """Takes the lock.

        Raises:
          DscintError: another process trains there.
          WriteError: the directory cannot be written.
        """
        path = self._workdir / LOCK_FILE
        try:
            self._workdir.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise write_error(path, error) from error
        try:
            self._lock(self._file, warn=True)
            self._describe(_holder())
        except OSError as error:
            self._close()
            raise write_error(path, error) from error
        except DscintError:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()

    def _lock(self, descriptor: int, *, warn: bool) -> None:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in TAKEN:
                raise DscintError(
                    f"--workdir {self._workdir} is in use by {_read(descriptor)}; wait for it, "
                    "stop it, or use another --workdir"
                ) from error
            if warn:
                print(
                    f"warning: {self._workdir} lies on a file system without locks "
                    f"({error.strerror}); see to it that one training at a time uses it",
                    file=sys.stderr,
                )

    def _describe(self, holder: dict[str, Any]) -> None:
        text = json.dumps(holder).encode()
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, text, 0)

    def _close(self) -> None:
        os.close(self._file)
        self._file = None


@contextlib.contextmanager
def pinned(checkpoint: Path) -> Iterator[None]:
    """A context in which the training leaves a checkpoint where it is.

    To read suffices for it. On a file system without locks it has no effect.

    Raises:
      FileNotFoundError: the training is taking the checkpoint away, or has done so.
    """
    with _file_of(checkpoint) as descriptor:
        if descriptor is not None and not _take(descriptor, fcntl.LOCK_SH):
            raise FileNotFoundError(errno.ENOENT, "taken away", str(checkpoint))
        # It may have gone between the opening and the lock.
        checkpoint.stat()
        yield


def take_away(checkpoint: Path, place: Path) -> bool:
    """Moves a checkpoint to another place, at once and as a whole, unless somebody reads it.

    Returns:
      Whether it is gone.
    """
    with _file_of(checkpoint) as descriptor:
        if descriptor is not None and not _take(descriptor, fcntl.LOCK_EX):
            return False
        with contextlib.suppress(FileNotFoundError):
            checkpoint.rename(place)
        return True


@contextlib.contextmanager
def _file_of(checkpoint: Path) -> Iterator[int | None]:
    """The file to lock, open; None where there is none or it may not be opened."""
    path, descriptor = checkpoint / PINNED_FILE, None
    # An exclusive lock on NFS needs a file that is open for writing.
    for mode in (os.O_RDWR, os.O_RDONLY):
        with contextlib.suppress(OSError):
            descriptor = os.open(path, mode)
            break
    try:
        yield descriptor
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _take(descriptor: int, kind: int) -> bool:
    """Whether no other process holds the lock; on a file system without locks, none does."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in TAKEN
    return True


def _holder() -> dict[str, Any]:
    now = datetime.datetime.now().astimezone()
    return {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "since": now.isoformat(sep=" ", timespec="seconds"),
    }


def _read(descriptor: int) -> str:
    """The holder in words; it may not yet have written who it is."""
    try:
        holder = json.loads(os.pread(descriptor, 4096, 0))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another training"
