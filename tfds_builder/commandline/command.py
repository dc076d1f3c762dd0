"""What the command lines share: types of options, cores and memory, how workers end."""

import argparse
import difflib
import importlib.metadata
import multiprocessing
import os
import re
import resource
import signal
import sys
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

    def parse_known_args(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, args: Any = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """As argparse has it; an option that does not exist is told before one that is missing."""
        for word in sys.argv[1:] if args is None else args:
            name = word.partition("=")[0]
            if word == "--":
                break
            if " " in word:
                # A value, as argparse has it, such as the options of a Beam runner.
                continue
            known = self._option_string_actions
            short = self.allow_abbrev and any(option.startswith(name) for option in known)
            if name.startswith("--") and name not in known and not short:
                near = difflib.get_close_matches(name, known, n=1)
                self.error(
                    f"there is no option {name}" + (f"; is {near[0]} meant?" if near else "")
                )
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """Raises UserError."""
        raise UserError(f"{message}; see --help")


def installed_version(package: str) -> str | None:
    """A package's version; None where it is not installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def positive_number(text: str) -> int:
    """The type of an option that takes a whole number from 1 on."""
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"'{text}' is no number from 1 on")
    return int(text)


def height_and_width(text: str) -> tuple[int, int]:
    """The type of an option that takes the size of an image, as 1024x256."""
    sides = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", text)
    if sides is None:
        raise argparse.ArgumentTypeError(f"'{text}' is no height and width, such as 1024x256")
    return int(sides[1]), int(sides[2])


def peak_memory() -> int:
    """The largest resident size of this process so far, in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


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
