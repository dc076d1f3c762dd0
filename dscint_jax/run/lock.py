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
from collections.abc import Iterator
from pathlib import Path

from tfds_builder.commandline import progress
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import write_error

LOCK_FILE = ".lock"

PINNED_FILE = "_CHECKPOINT_METADATA"
"""File of a checkpoint whose lock readers share: Orbax writes it once, and nobody replaces it."""

TAKEN = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES)


def check_free(workdir: Path) -> None:
    """Raises UserError where another process trains; for the start, before the lock is needed."""
    with _opened(workdir / LOCK_FILE) as descriptor:
        if descriptor is not None and not _take(descriptor, fcntl.LOCK_EX):
            raise _in_use(workdir)


@contextlib.contextmanager
def held(workdir: Path) -> Iterator[None]:
    """A context that holds a work directory's lock; the directory is made if it is not there.

    The file stays when the lock is given back: to remove it would let two processes lock two files
    of the same name. On a file system without locks there is a warning and no lock.

    Raises:
      UserError: another process trains there.
      WriteError: the directory cannot be written.
    """
    path = workdir / LOCK_FILE
    with contextlib.ExitStack() as stack:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            # Unbuffered, and not emptied: what it says of a holder is for whoever is refused.
            file = stack.enter_context(path.open("ab", buffering=0))
            if not _take(file.fileno(), fcntl.LOCK_EX, warn=True):
                raise _in_use(workdir)
            since = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
            holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": since}
            file.truncate(0)
            file.write(json.dumps(holder).encode())
        except OSError as error:
            raise write_error(path, error) from error
        yield


@contextlib.contextmanager
def pinned(checkpoint: Path) -> Iterator[None]:
    """A context in which the training leaves a checkpoint where it is.

    To read suffices for it. On a file system without locks it has no effect.

    Raises:
      FileNotFoundError: the training is taking the checkpoint away, or has done so.
    """
    with _opened(checkpoint / PINNED_FILE) as descriptor:
        if descriptor is not None and not _take(descriptor, fcntl.LOCK_SH):
            raise FileNotFoundError(errno.ENOENT, "taken away", str(checkpoint))
        # It may have gone between the opening and the lock.
        checkpoint.stat()
        yield


def take_away(checkpoint: Path, place: Path) -> bool:
    """Moves a checkpoint as a whole, unless somebody reads it; returns whether it is gone."""
    with _opened(checkpoint / PINNED_FILE) as descriptor:
        if descriptor is not None and not _take(descriptor, fcntl.LOCK_EX):
            return False
        with contextlib.suppress(FileNotFoundError):
            checkpoint.rename(place)
        return True


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int | None]:
    """The file to lock; None where there is none or it may not be opened."""
    descriptor = None
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


def _take(descriptor: int, kind: int, *, warn: bool = False) -> bool:
    """Whether no other process holds the lock; on a file system without locks, none does."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if warn and error.errno not in TAKEN:
            progress.warn(
                f"the work directory lies on a file system without locks ({error.strerror}); see "
                f"to it that one training at a time uses it"
            )
        return error.errno not in TAKEN
    return True


def _in_use(workdir: Path) -> UserError:
    """Names the holder, which may not yet have written who it is."""
    try:
        holder = json.loads((workdir / LOCK_FILE).read_bytes())
        who = f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another training"
    return UserError(
        f"--workdir {workdir} is in use by {who}; wait for it, stop it, or use another --workdir"
    )
