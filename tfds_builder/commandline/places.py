"""Places: what a folder or a file on the command line may be.

In: the text of an option. Out: a path of this machine's file system, or an error before anything
is written.
"""

import argparse
import errno
import os
import re
from pathlib import Path

from tfds_builder.commandline.errors import UserError

BUCKETS = ("gs", "s3", "az", "hf")
"""Folders directly under / that etils, which reads paths for Orbax and TFDS, takes for buckets."""

LONGEST_BELOW = 200
"""Characters that the names of our own files may add to a path."""

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)


def read_path(text: str) -> Path:
    """Reads a path, as argparse's `type`.

    A leading `~` is the home folder, also where the shell left it alone, as in `--workdir=~/runs`.

    Raises:
      ArgumentTypeError: it is empty, a URL, or no path that the libraries beneath can write to.
    """
    if not text:
        raise argparse.ArgumentTypeError("empty; give a folder or file, such as runs/dscint")
    if reason := _why_not(text):
        raise argparse.ArgumentTypeError(f"{_printable(text)}: {reason}")
    return home_expanded(text)


def path_of(text: str, name: str) -> Path:
    """Reads a path as `read_path`; UserError with the name of the option or field it stands in."""
    try:
        return read_path(text)
    except argparse.ArgumentTypeError as error:
        raise UserError(f"{name}: {error}") from None


def home_expanded(text: str) -> Path:
    """A path whose leading `~/` is the home folder; `./~` and `~name` are what they are."""
    path = Path(text)
    return path.expanduser() if text == "~" or text.startswith("~/") else path


def _why_not(text: str) -> str | None:
    if url := _URL.fullmatch(text):
        return _instead_of(*url.groups())
    path = home_expanded(text).absolute()
    try:
        path.as_posix().encode()
    except UnicodeEncodeError:
        return "no UTF-8, which checkpoints need; rename the folder"
    if len(path.parts) > 1 and path.parts[1] in BUCKETS:
        return f"/{path.parts[1]} is taken for a bucket; give a link to the folder from elsewhere"
    try:
        os.lstat(path / ("x" * LONGEST_BELOW))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return "too long for this file system; give a shorter path"
    return next((reason for part in path.parts if (reason := _why_no_part(part))), None)


def _why_no_part(name: str) -> str | None:
    """Why TensorStore, or Orbax in front of it, cannot have a name in its paths."""
    if "\\" in name:
        return "a backslash is taken for a slash; give another folder, or a link to it"
    if name.endswith("gs:"):
        return f"'{name}' is taken for a bucket; give another folder, or a link to it"
    if name.endswith(".__lock"):
        return f"names such as '{name}' are kept for locks; give another folder, or a link to it"
    return None


def _instead_of(scheme: str, rest: str) -> str:
    if scheme.lower() == "file":
        return f"give the path itself, {rest.removeprefix('localhost')}".rstrip(", ")
    return (
        "a URL is no folder, and a run needs locks and renames that a bucket lacks; give a folder "
        "and copy the run afterwards, or mount the bucket as a folder"
    )


def _printable(text: str) -> str:
    text = " ".join(text.split())
    return text if text.isprintable() else ascii(text)
