"""Writes a file that is there whole or not at all.

In: a path, and its text or what writes it. Out: the file, put in place at once, so that nothing
that reads it ever sees half of it, and an interrupted command leaves the earlier one.
"""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tfds_builder.errors import DataError


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Has a file written under another name, and moves it into place when it is whole.

    Args:
      path: where it is to be; its folder is there.
      write: writes a file to the path that it is given, in the same folder.

    Raises:
      DataError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        write(part)
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from None
    finally:
        with suppress(OSError):  # Where its name is too long, for one.
            part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text file in UTF-8, its line ends as they are in the text.

    Raises:
      DataError: it cannot be written.
    """
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8", newline=""))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file of bytes.

    Raises:
      DataError: it cannot be written.
    """
    write_whole(path, lambda part: part.write_bytes(content))
