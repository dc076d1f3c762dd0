"""The one exception for what a user can mend: config fields, work directories, data sets."""

import argparse
import errno
import logging
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from dscint_jax.places import read_path

OUT_OF_MEMORY = (
    "the memory of this machine or its accelerator does not suffice; lower config.batch_size, "
    "raise config.data.pool, or set config.model_options.dtype=bfloat16"
)


class DscintError(Exception):
    """A mendable failure. The message is one line: what is wrong, where, and what to do."""


class CommandParser(argparse.ArgumentParser):
    """Reports a wrong option as every other mistake is reported, in one line; `type=Path` reads a
    path as `places.read_path` does.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.register("type", Path, read_path)

    def error(self, message: str) -> NoReturn:
        """Raises DscintError."""
        raise DscintError(f"{message}; see --help")


def _tell_only_of_the_main_thread(unraisable: "sys.UnraisableHookArgs") -> None:
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(unraisable)


def run_command(main: Callable[[], None]) -> None:
    """Runs a command's `main`; a DscintError becomes one line on stderr and exit status 2."""
    # Orbax and TFDS log their inner life through absl; what a user must know, we say ourselves.
    logging.getLogger("absl").setLevel(logging.ERROR)
    # A save that fails does so in several of Orbax's threads at once, and we hear of the first.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    sys.unraisablehook = _tell_only_of_the_main_thread
    try:
        main()
    except DscintError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except (MemoryError, RuntimeError) as error:
        # JAX says so in an error of its own, which this module need not import to know.
        if not isinstance(error, MemoryError) and "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"error: {OUT_OF_MEMORY}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        # It may be the file that stdout goes to; what is left of it would be tried again.
        sys.stdout = None
        place = f" ({error.filename})" if error.filename else ""
        print(f"error: the disk is full{place}; make room, then start again", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
