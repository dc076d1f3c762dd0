"""SIGTERM and Ctrl-C as a wish that the loop reads between steps, so that nothing is lost."""

import signal
from types import FrameType, TracebackType


class Interruption:
    """While active, the first SIGTERM or SIGINT only sets `signal`; a second SIGINT acts at once.

    Attributes:
      signal: the signal that asked for the stop, or None.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous = {}

    def __enter__(self) -> "Interruption":
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
            signal.signal(number, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.signal is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = signal.Signals(number)
