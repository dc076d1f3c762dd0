"""Signals as a wish that the loop reads where it can stop, so that nothing is lost.

SIGTERM comes from schedulers and `kill`, SIGINT from Ctrl-C, SIGHUP from a terminal that closes,
and SIGUSR1 from SLURM before the time is over, where `#SBATCH --signal=SIGUSR1@90` asks for it:
then the job goes into the queue again. Of several processes all stop after the same step, or the
same evaluated batch.

A checkpoint is saved before the process ends. While there is nothing to save, as during
compilation, which can take longer than a scheduler waits, all but SIGINT end a process that trains
alone at once, and with success: it did as it was told. Of several, each goes on to its first step.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping
from types import FrameType

from tfds_builder.commandline.progress import let_go_of_readers, say

STOPPING = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Those that ask once and for all; SIGINT, from a person, may be repeated."""
SHOW_CURSOR = "\x1b[?25h"


class Interrupted(Exception):
    """An evaluation was abandoned because the process was told to stop."""


class Interruption:
    """While active, a signal only sets `signal`; a second SIGINT acts at once.

    Once one of `STOPPING` has come, these are ignored, also after the context is left: they would
    break the save that the first asked for. One that was ignored before, as nohup ignores SIGHUP,
    stays so.

    Args:
      status: exit status of a process that was told to stop, by all but SIGINT.

    Attributes:
      signal: the signal that asked for the stop, or None.
    """

    def __init__(self, status: int = 0) -> None:
        self.signal: signal.Signals | None = None
        self.status = status
        self._nothing_to_save, self._changing = False, threading.Lock()
        self._previous = {}

    def wish(self) -> str | None:
        """The name of the signal."""
        return self.signal.name if self.signal else None

    @property
    def nothing_to_save(self) -> bool:
        """Whether a SIGTERM ends the process at once, whatever it is at, and SIGINT is prompt."""
        return self._nothing_to_save

    @nothing_to_save.setter
    def nothing_to_save(self, value: bool) -> None:
        with self._changing:
            self._nothing_to_save = value
        if value and self.signal and self.signal in STOPPING:
            self._leave(self.signal)
        if value and self.signal is signal.SIGINT:
            raise KeyboardInterrupt

    def __enter__(self) -> "Interruption":
        # A handler runs when the interpreter is free, a thread that waits for this at once.
        self._told, told = socket.socketpair()
        told.setblocking(False)
        self._telling = told
        self._thread = threading.Thread(target=self._watch, name="interruption", daemon=True)
        self._thread.start()
        self._previous_fd = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
        for number in (*STOPPING, signal.SIGINT):
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            ignored = number in STOPPING and self.signal in STOPPING
            signal.signal(number, signal.SIG_IGN if ignored else handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._telling.close()
        self._thread.join()
        self._told.close()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        again = self.signal is signal.SIGINT or self._nothing_to_save
        if number == signal.SIGINT and again:
            raise KeyboardInterrupt
        if number == signal.SIGHUP:
            let_go_of_readers()
        # SLURM sends a SIGTERM after the SIGUSR1 that tells more.
        if number == signal.SIGINT or self.signal is None:
            self.signal = signal.Signals(number)

    def _watch(self) -> None:
        while numbers := self._told.recv(64):
            stopping = next((number for number in numbers if number in STOPPING), None)
            with self._changing:
                if self._nothing_to_save and stopping:
                    self._leave(signal.Signals(stopping))

    def _leave(self, number: signal.Signals) -> None:
        if number is signal.SIGHUP:
            let_go_of_readers()
        with contextlib.suppress(OSError, ValueError):
            shown = SHOW_CURSOR if sys.stdout.isatty() else ""
            say(f"{shown}stopped by {number.name}, nothing to save; the same command starts again")
            if number is signal.SIGUSR1:
                requeue()
        os._exit(self.status)


def requeue(environment: Mapping[str, str] = os.environ) -> None:
    """Has SLURM put this process's job into the queue again, and says so; elsewhere nothing."""
    job = environment.get("SLURM_JOB_ID")
    if not job:
        return
    if "SLURM_ARRAY_JOB_ID" in environment:
        job = f"{environment['SLURM_ARRAY_JOB_ID']}_{environment['SLURM_ARRAY_TASK_ID']}"
    try:
        done = subprocess.run(
            ["scontrol", "requeue", job], capture_output=True, text=True, timeout=60
        )
        failure = " ".join(done.stderr.split()) if done.returncode else None
    except (OSError, subprocess.TimeoutExpired) as error:
        failure = str(error)
    if failure is None:
        say(f"job {job} goes into the queue again")
    else:
        say(f"warning: job {job} does not go into the queue again: {failure}")
