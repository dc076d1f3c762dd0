"""Runs a command that uses JAX: what an accelerator lacks or refuses is one line too."""

import logging
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tfds_builder.commandline import errors

OUT_OF_MEMORY = (
    "the memory of this machine or its accelerator does not suffice; lower config.batch_size, "
    "raise config.data.pool, or set config.model_options.dtype=bfloat16"
)


def run_command(main: Callable[[], None]) -> None:
    """Runs a command's `main` as `commandline.errors.run_command` does.

    Too little memory and an accelerator that is not there become one line and exit status 2, too.
    """
    # Orbax and TFDS log their inner life through absl; what a user must know, we say ourselves.
    logging.getLogger("absl").setLevel(logging.ERROR)
    # A save that fails does so in several of Orbax's threads at once, and we hear of the first.
    logging.getLogger("asyncio").setLevel(logging.CRITICAL + 1)
    # A cache of compiled programs that cannot be used costs time and nothing else.
    warnings.filterwarnings("ignore", message="Error (reading|writing) persistent compilation")
    sys.unraisablehook = _tell_only_of_the_main_thread
    try:
        errors.run_command(main, _explain)
    except SystemExit as end:
        if isinstance(end.__context__, KeyboardInterrupt):
            # A compilation goes on in threads of XLA's, and may crash as the interpreter ends.
            sys.stdout.flush()
            os._exit(130)
        raise


def _tell_only_of_the_main_thread(unraisable: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        sys.__unraisablehook__(unraisable)


def _explain(error: Exception) -> str | None:
    # JAX says so in an error of its own, which this module need not import to know.
    out_of_memory = isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    if out_of_memory or isinstance(error, MemoryError):
        return OUT_OF_MEMORY
    if _lacks_backend(error):
        return (
            f"JAX cannot start on JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')} "
            f"({str(error).partition(' (set')[0].rstrip('.') or 'no such device is here'}); "
            "set it to cpu, or to what this machine has, or leave it out"
        )
    return None


def _lacks_backend(error: Exception) -> bool:
    """Whether JAX failed where it opens its devices: for an unknown platform it has many words."""
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).name == "xla_bridge.py"
