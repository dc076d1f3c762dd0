"""SIGTERM and Ctrl-C as a wish that the loop reads where it can stop, so that nothing is lost.

While there is nothing to save, as during compilation, which can take longer than a scheduler waits,
a SIGTERM ends the process at once, and with success: it did as it was told.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from types import FrameType, TracebackType

SHOW_CURSOR = "\x1b[?25h"


class Interrupted(Exception):
    """An evaluation was abandoned because the process was told to stop."""


class Interruption:
    """While active, the first SIGTERM or SIGINT only sets `signal`; a second SIGINT acts at once.

    Once a SIGTERM has come, others are ignored, also after the context is left: they would break
    the save that the first asked for.

    Args:
      status: exit status of a process that is told to stop while there is nothing to save.

    Attributes:
      signal: the signal that asked for the stop, or None.
    """

    def __init__(self, status: int = 0) -> None:
        self.signal: signal.Signals | None = None
        self._status = status
        self._nothing_to_save, self._changing = False, threading.Lock()
        self._previous = {}

    @property
    def nothing_to_save(self) -> bool:
        """Whether a SIGTERM ends the process at once, whatever it is at, and SIGINT is prompt."""
        return self._nothing_to_save

    @nothing_to_save.setter
    def nothing_to_save(self, value: bool) -> None:
        with self._changing:
            self._nothing_to_save = value
        if value and self.signal is signal.SIGTERM:
            self._leave()
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
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            ignored = number == signal.SIGTERM and self.signal is signal.SIGTERM
            signal.signal(number, signal.SIG_IGN if ignored else handler)
        signal.set_wakeup_fd(self._previous_fd)
        self._telling.close()
        self._thread.join()
        self._told.close()

    def _remember(self, number: int, frame: FrameType | None) -> None:
        again = self.signal is signal.SIGINT or self._nothing_to_save
        if number == signal.SIGINT and again:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)

    def _watch(self) -> None:
        while numbers := self._told.recv(64):
            with self._changing:
                if self._nothing_to_save and signal.SIGTERM in numbers:
                    self._leave()

    def _leave(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            shown = SHOW_CURSOR if sys.stdout.isatty() else ""
            print(f"{shown}stopped by SIGTERM, nothing to save; the same command starts again")
            sys.stdout.flush()
        os._exit(self._status)
