"""The one exception for what a user can mend: config fields, work directories, data sets."""

import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from tfds_builder import command
from tfds_builder.errors import DataError, allow_open_files, end_if_refused

OUT_OF_MEMORY = (
    "the memory of this machine or its accelerator does not suffice; lower config.batch_size, "
    "raise config.data.pool, or set config.model_options.dtype=bfloat16"
)


class DscintError(Exception):
    """A mendable failure. The message is one line: what is wrong, where, and what to do."""


class CommandParser(command.CommandParser):
    """The builder's, with an error of this package."""

    def error(self, message: str) -> NoReturn:
        """Raises DscintError."""
        raise DscintError(f"{message}; see --help")


def _tell_only_of_the_main_thread(unraisable: "sys.UnraisableHookArgs") -> None:
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(unraisable)


def run_command(main: Callable[[], None]) -> None:
    """Runs a command's `main`; a DscintError becomes one line on stderr and exit status 2.

    So does what the machine lacks or refuses: memory, a file, an accelerator.
    """
    # Orbax and TFDS log their inner life through absl; what a user must know, we say ourselves.
    logging.getLogger("absl").setLevel(logging.ERROR)
    # A save that fails does so in several of Orbax's threads at once, and we hear of the first.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    # A cache of compiled programs that cannot be used costs time and nothing else.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    sys.unraisablehook = _tell_only_of_the_main_thread
    try:
        allow_open_files()
        main()
    except (DscintError, DataError) as error:
        _end(str(error))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Exception as error:
        if _lacks_memory(error):
            _end(OUT_OF_MEMORY)
        if _lacks_backend(error):
            _end(
                f"JAX cannot start on JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} "
                f"({str(error).partition(' (set')[0].rstrip('.') or 'no such device is here'}); "
                "set it to cpu, or to what this machine has, or leave it out"
            )
        end_if_refused(error)
        raise


def _end(message: str) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def _lacks_memory(error: Exception) -> bool:
    # JAX says so in an error of its own, which this module need not import to know.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    )


def _lacks_backend(error: Exception) -> bool:
    """Whether JAX failed where it opens its devices: for an unknown platform it has many words."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).name == "xla_bridge.py"
