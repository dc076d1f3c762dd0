"""Where files go: what a folder or a file on the command line may be.

In: the text of an option. Out: a path of this machine's file system; or an error before anything
is written.
"""

import errno
import os
import re
from collections.abc import Callable
from pathlib import Path

from dscint_jax.errors import DscintError

BUCKETS = ("gs", "s3", "az", "hf")
"""Folders directly under / that etils, which reads paths for Orbax and TFDS, takes for buckets."""

LONGEST_BELOW = 200
"""Characters that the names of our own files may add to a path."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def place(option: str) -> Callable[[str], Path]:
    """What reads an option's path, as argparse's `type`.

    A leading `~` is the home folder, also where the shell left it alone, as in `--workdir=~/runs`.

    Raises:
      DscintError: it is empty, a URL, or a path that the libraries beneath cannot write to.
    """

    def read(text: str) -> Path:
        if not text:
            raise DscintError(f"{option} is empty; name a folder or file, such as {option} runs/x")
        if url := _URL.fullmatch(text):
            raise DscintError(f"{option} {text}: {_instead_of(*url.groups())}")
        try:
            path = Path(text).expanduser()
        except RuntimeError as error:
            raise DscintError(f"{option} {text}: there is no such user's home folder") from error
        check_place(path, option)
        return path

    return read


def check_place(path: Path, option: str) -> None:
    """Raises DscintError if a path cannot be written to, or not by TensorStore and etils."""
    whole = path.absolute()
    try:
        whole.as_posix().encode()
    except UnicodeEncodeError as error:
        raise DscintError(
            f"{option} {ascii(str(path))} is no UTF-8, which checkpoints need; rename the folder"
        ) from error
    reason = next((text for part in whole.parts if (text := _unfit(part))), None)
    if len(whole.parts) > 1 and whole.parts[1] in BUCKETS:
        reason = f"/{whole.parts[1]} is taken for a bucket; give a link to the folder from elsewhere"
    try:
        os.lstat(whole / ("x" * LONGEST_BELOW))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            reason = "it is too long for this file system; give a shorter one"
    if reason:
        raise DscintError(f"{option} {' '.join(str(path).split())}: {reason}")


def _unfit(part: str) -> str | None:
    """Why TensorStore cannot have a folder of this name in its paths."""
    if "\\" in part:
        return "a backslash is taken for a slash; give another folder, or a link to it"
    if part.endswith("gs:"):
        return f"'{part}' is taken for a bucket; give another folder, or a link to it"
    if part.endswith(".__lock"):
        return f"names such as '{part}' are kept for locks; give another folder, or a link to it"
    return None


def _instead_of(scheme: str, rest: str) -> str:
    if scheme.lower() == "file":
        folder = rest.removeprefix("localhost")
        return f"give the path itself, {folder}" if folder else "give the path itself"
    return (
        "a URL is no folder, and a run needs locks and renames that a bucket has not; give a folder"
        ", copy the run afterwards, or mount the bucket as a folder"
    )
