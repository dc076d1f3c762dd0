"""What test_workers.py runs in worker processes, and a program with a pool for it to kill.

Not a test module: workers import it by its own name, from the folder that the tests put on the
path. A task is a sequence of steps; a step is its number and what happens there.
"""

import ctypes
import importlib
import logging
import mmap
import os
import signal
import sys
import time
from pathlib import Path

from tfds_builder.commandline.errors import UserError
from tfds_builder.workers import Announce, Lost, WorkerPool

Steps = tuple[tuple[int, str], ...]


def run_steps(steps: Steps, announce: Announce) -> list[int]:
    """Returns the numbers of the steps."""
    for number, action in steps:
        announce(number)
        _ACTIONS[action]()
    return [number for number, _ in steps]


def without_the_lost_step(steps: Steps, lost: Lost) -> Steps:
    return tuple(step for step in steps if step[0] != lost.step)


def double_after(task: tuple[int, float], announce: Announce) -> int:
    number, seconds = task
    time.sleep(seconds)
    return 2 * number


def add(first: int, second: int, announce: Announce) -> int:
    return first + second


def double(number: int, announce: Announce) -> int:
    return 2 * number


def process_id(task: object, announce: Announce) -> int:
    return os.getpid()


def total(data: bytes, announce: Announce) -> int:
    return sum(data)


def bytes_of_length(length: int, announce: Announce) -> bytes:
    return bytes(length)


def crash_unannounced(task: str, announce: Announce) -> str:
    if task == "changed":
        return f"{task} in {os.getpid()}"
    os._exit(3)


def unpicklable(task: object, announce: Announce) -> object:
    return lambda: task


def hang(folder: str, announce: Announce) -> None:
    _leave_note(folder)
    _hang_with_the_lock()


def count_slowly(folder: str, announce: Announce) -> None:
    _leave_note(folder)
    for step in range(8):
        announce(step)
        time.sleep(0.1)


def make_noise(folder: str, announce: Announce) -> None:
    os.write(1, b"noise on stdout")
    os.write(2, b"noise on stderr")
    logging.getLogger("pydicom").error("noise in the log")
    _leave_note(folder)
    time.sleep(0.3)


def _leave_note(folder: str) -> None:
    (Path(folder) / str(os.getpid())).touch()


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)
    time.sleep(10)


def _hang_with_the_lock() -> None:
    ctypes.PyDLL(None).pause()


def _map_memory() -> None:
    mmap.mmap(-1, 4 << 30, flags=mmap.MAP_PRIVATE)


def _raise_data_error() -> None:
    raise UserError("scan.dcm: no pixels")


def _raise_file_not_found() -> None:
    Path("missing/scan.dcm").read_bytes()


def _raise_zero_division() -> None:
    _ = 1 // 0


_ACTIONS = {
    "fine": lambda: None,
    "slow": lambda: time.sleep(0.3),
    "crash": _crash,
    "hang": lambda: time.sleep(60),
    "hang with the lock": _hang_with_the_lock,
    "interrupt": lambda: os.kill(os.getpid(), signal.SIGINT),
    "allocate": lambda: bytearray(4 << 30),
    "map memory": _map_memory,
    "data error": _raise_data_error,
    "file not found": _raise_file_not_found,
    "bug": _raise_zero_division,
}


def main(function: str, folder: str) -> None:
    """Runs two tasks, and prints how many results came and how many tasks were lost."""
    tasks = importlib.import_module("worker_tasks")  # Workers cannot look into the main module.
    losses = []
    with WorkerPool(2, step_seconds=0.8, memory_bytes=1 << 30) as pool:
        results = list(
            pool.map(getattr(tasks, function), [folder, folder], lambda *lost: losses.append(lost))
        )
    print(len(results), len(losses))


if __name__ == "__main__":
    main(*sys.argv[1:])
