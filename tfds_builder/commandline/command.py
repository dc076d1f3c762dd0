"""What the command lines share: one-line errors, the number of workers, how workers end."""

import argparse
import multiprocessing
import os
import signal
import threading
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NoReturn

from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.places import read_path


class CommandParser(argparse.ArgumentParser):
    """Reports a wrong option as every other mistake is reported, in one line; `type=Path` reads a
    path as `places.read_path` does.
    """

    def __init__(self, *args: Any, **options: Any):
        super().__init__(*args, **options)
        self.register("type", Path, read_path)

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}; see --help")


def available_cores() -> int:
    """Cores that this process may use, which can be fewer than the machine has."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def parent_of_worker() -> BaseProcess:
    """The process that started this worker; raises RuntimeError in what is none."""
    parent = multiprocessing.parent_process()
    if parent is None:
        raise RuntimeError("this process is no worker: it has no parent to follow")
    return parent


def follow_parent() -> None:
    """Makes this worker leave Ctrl-C to its parent, and end however the parent ended."""
    parent = parent_of_worker()
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
