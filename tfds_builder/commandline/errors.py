"""The one exception for what a user can mend, and the words for what a machine does not allow.

In: whatever a command raises. Out: one line on stderr and exit status 2 where a user can mend it; a
traceback remains for what only a programmer can.
"""

import errno
import os
import resource
import sys
from collections.abc import Callable, Collection, Iterator

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

OUT_OF_ROOM = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota of the disk is full"}
"""In plainer words than the system's own."""

FEWEST_FILES = 256
"""Open files that the libraries and their threads may need at a time."""

PASSING = (
    errno.EACCES, errno.EPERM, errno.EMFILE, errno.ENFILE, errno.ENOMEM,
    errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN,
)  # fmt: skip
"""Why a file that is whole may be unreadable for now."""

REASON_LENGTH = 200
"""Characters of an error's own words in a message about a file."""

WORDS_LENGTH = 300
"""Characters of a library's own words in a message."""


class UserError(Exception):
    """Bad input. The message is one line that names the file, field or row and says what to do."""


def run_command(
    main: Callable[[], None], explain: Callable[[Exception], str | None] = lambda error: None
) -> None:
    """Runs a command line's `main`; a UserError becomes one line on stderr and exit status 2.

    So does a file or folder that the operating system refuses.

    Args:
      main: the command.
      explain: says in one line what a user can do about another error; None if nothing.
    """
    try:
        allow_open_files()
        main()
        return
    except UserError as error:
        line = str(error)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        line = explain(error)
        if line is None and (line := refusal(error)):
            # A full disk may hold the file that stdout goes to; what is left would be tried again.
            sys.stdout = None
        if line is None:
            raise
    print(f"error: {' '.join(line.split())}", file=sys.stderr)
    sys.exit(2)


def refusal(error: BaseException) -> str | None:
    """What the operating system refused, in one line; None if the error is about something else.

    Libraries pass such an error on as one of their own: as its cause, in a group, or only in words.
    """
    for one in with_causes(error):
        if isinstance(one, OSError) and one.errno in ADVICE:
            number = one.errno
        elif isinstance(one, OSError) and one.errno and one.filename:
            return f"{_name(one.filename)}: {_words(one.errno)}"
        else:
            number = next((n for n in IN_WORDS if os.strerror(n) in str(one)), None)
        if number is not None:
            files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            return f"{_place(one)}{_words(number)}; {ADVICE[number].format(files=files)}"
    return None


def allow_open_files() -> None:
    """Lets this process open as many files as it may need; raises UserError if it may not."""
    fewest, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if fewest == resource.RLIM_INFINITY or fewest >= FEWEST_FILES:
        return
    if most != resource.RLIM_INFINITY and most < FEWEST_FILES:
        raise UserError(
            f"only {most} files may be open at a time and {FEWEST_FILES} are needed; allow more by "
            f"ulimit -n 4096"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (FEWEST_FILES, most))


def with_causes(error: BaseException | None, *, contexts: bool = False) -> Iterator[BaseException]:
    """An error, those that a group holds, and what each was raised from.

    With `contexts`, also what was being handled when it was raised.
    """
    while error is not None:
        yield error
        if isinstance(error, BaseExceptionGroup):
            for one in error.exceptions:
                yield from with_causes(one, contexts=contexts)
        error = error.__cause__ or (error.__context__ if contexts else None)


def is_full(error: BaseException) -> bool:
    """Whether an error, or what it arose from, says that a disk or a quota is full."""
    return _says(error, OUT_OF_ROOM)


def is_passing(error: BaseException) -> bool:
    """Whether a file could not be read for a reason that lies not in the file: no permission, too
    little memory, a file server that does not answer.
    """
    out_of_memory = any(
        isinstance(one, MemoryError) or "RESOURCE_EXHAUSTED" in str(one)
        for one in with_causes(error, contexts=True)
    )
    return out_of_memory or _says(error, PASSING)


def reason(error: BaseException) -> str:
    """An error's own words, in one line of bounded length."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:REASON_LENGTH]


def _says(error: BaseException, numbers: Collection[int]) -> bool:
    """Whether an error, or what it arose from, is one of the operating system's by its number."""
    return any(
        getattr(one, "errno", None) in numbers or any(os.strerror(n) in str(one) for n in numbers)
        for one in with_causes(error, contexts=True)
    )


def _place(error: BaseException) -> str:
    if isinstance(error, OSError):
        return f"{_name(error.filename)}: " if error.filename else ""
    # Which file it is, stands somewhere in a library's words.
    return f"{' '.join(str(error).split())[:WORDS_LENGTH]}: "


def _name(place: str | bytes | int) -> str:
    return os.fsdecode(place) if isinstance(place, (str, bytes)) else f"file {place}"


def _words(number: int) -> str:
    return OUT_OF_ROOM.get(number, os.strerror(number).lower())
