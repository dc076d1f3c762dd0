"""The one exception for what a user can mend, and the words for what a machine does not allow.

In: whatever a command raises. Out: one line on stderr and exit status 2 where a user can mend it; a
traceback remains for what only a programmer can.
"""

import errno
import os
import resource
import sys
from collections.abc import Callable, Iterator

NOT_ALLOWED = "ask for the permission, or use another place"
FULL = "make room, then start again"

ADVICE = {
    errno.EACCES: NOT_ALLOWED,
    errno.EPERM: NOT_ALLOWED,
    errno.EROFS: "use another place",
    errno.EMFILE: "allow more by ulimit -n 4096 (now {files})",
    errno.ENFILE: "end other programs",
    errno.EIO: "the disk or file server does not answer as it should; mend it, then start again",
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
}
"""What to do where the operating system refuses, whatever was asked of it."""

IN_WORDS = tuple(number for number in ADVICE if number != errno.EPERM)
"""What is told from the words of a library too: those that mean nothing else."""

WORDS = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota of the disk is full"}
"""Plainer than the system's own."""

FEWEST_FILES = 256
"""Open files that the libraries and their threads may need at a time."""

WORDS_LENGTH = 300
"""Characters of a library's own words in a message."""


class DataError(Exception):
    """Bad input. The message is one line that names the file, field or row and says what to do."""


def run_command(main: Callable[[], None]) -> None:
    """Runs a command line's `main`; a DataError becomes one line on stderr and exit status 2.

    So does a file or folder that the operating system refuses.
    """
    try:
        allow_open_files()
        main()
    except DataError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        end_if_refused(error)
        raise


def end_if_refused(error: BaseException) -> None:
    """Ends the process in one line, with status 2, if the operating system refused something."""
    line = refusal(error)
    if line is None:
        return
    # A full disk may hold the file that stdout goes to; what is left of it would be tried again.
    sys.stdout = None
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(2)


def refusal(error: BaseException) -> str | None:
    """What the operating system refused, in one line; None if the error is about something else.

    Libraries pass such an error on as one of their own: as its cause, in a group, or only in words.

    Args:
      error: any.
    """
    for one in with_causes(error):
        if isinstance(one, OSError) and one.errno in ADVICE:
            number = one.errno
        elif isinstance(one, OSError) and one.errno and one.filename:
            return f"{_name(one.filename)}: {_words(one.errno)}"
        else:
            number = next((n for n in IN_WORDS if os.strerror(n) in str(one)), None)
        if number is not None:
            return f"{_place(one)}{_words(number)}; {_advice(number)}"
    return None


def allow_open_files() -> None:
    """Lets this process open as many files as it may need, as far as it is allowed to.

    Raises:
      DataError: that is too few.
    """
    fewest, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if fewest == resource.RLIM_INFINITY or fewest >= FEWEST_FILES:
        return
    if most != resource.RLIM_INFINITY and most < FEWEST_FILES:
        raise DataError(
            f"only {most} files may be open at a time and {FEWEST_FILES} are needed; allow more by "
            f"ulimit -n 4096"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEWEST_FILES, most))


def with_causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error, those that a group holds, and what each was raised from."""
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for one in error.exceptions:
                yield from with_causes(one)
        error = error.__cause__


def _place(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{_name(error.filename)}: " if error.filename else ""
    # Which file it is, stands somewhere in a library's words.
    return f"{' '.join(str(error).split())[:WORDS_LENGTH]}: "


def _name(place: str | bytes | int) -> str:
    return os.fsdecode(place) if isinstance(place, (str, bytes)) else f"file {place}"


def _words(number: int) -> str:
    return WORDS.get(number, os.strerror(number).lower())


def _advice(number: int) -> str:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return ADVICE[number].format(files=files)
