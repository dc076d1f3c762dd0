"""A tracker whose server does not answer holds nobody up."""

import queue
import threading
from collections.abc import Callable

from dscint_jax.run.trackers.tracker import Tracker, Values

OPEN_TIMEOUT_S, CLOSE_TIMEOUT_S = 30.0, 60.0
"""How long the start and the end of a run wait for a server that is looked after in a thread."""


class InBackground:
    """Lets a tracker that may wait for a network work in a thread, so that training never waits.

    What it failed at is raised by the next call; from then on it is given no more.

    Args:
      opener: makes the tracker, in the thread, which alone uses it.
      open_timeout_s, close_timeout_s: how long to wait for the opener, and for what is still to be
        written at the end.

    Raises:
      TimeoutError: the opener takes too long; what the opener raises.
    """

    def __init__(
        self,
        opener: Callable[[], Tracker],
        *,
        open_timeout_s: float = OPEN_TIMEOUT_S,
        close_timeout_s: float = CLOSE_TIMEOUT_S,
    ):
        self._opener, self._timeout_s = opener, close_timeout_s
        self._waiting: queue.SimpleQueue[tuple[int, Values] | None] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._opened = threading.Event()
        # A daemon: a server that never answers must not keep the process alive.
        self._thread = threading.Thread(target=self._work, daemon=True, name="tracker")
        self._thread.start()
        if not self._opened.wait(open_timeout_s):
            raise TimeoutError(f"no answer within {open_timeout_s:.0f} s")
        self._raise()

    def write(self, step: int, values: Values) -> None:
        """Hands the values over and returns at once."""
        self._raise()
        self._waiting.put((step, dict(values)))

    def close(self) -> None:
        """Waits until all is written, but no longer than the timeout."""
        self._waiting.put(None)
        self._thread.join(self._timeout_s)
        self._raise()
        if self._thread.is_alive():
            raise TimeoutError(f"no answer within {self._timeout_s:.0f} s")

    def _work(self) -> None:
        try:
            tracker = self._opener()
            self._opened.set()
            while (item := self._waiting.get()) is not None:
                tracker.write(*item)
            tracker.close()
        # Kept for the thread that trains.
        except Exception as error:
            self._error = error
            self._opened.set()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
