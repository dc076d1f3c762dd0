"""A stop of all processes after the same step, whichever of them was told to stop.

In: the wish of any process, such as a SIGTERM. Out: the step after which all stop. A step costs a
look at a variable: the processes talk in threads of their own, and only a wish makes them.
"""

import contextlib
import threading
import time
from types import TracebackType

import jax

from dscint_jax.cluster.agreement import ALONE, PREFIX, Cluster, store
from dscint_jax.cluster.rendezvous import numbers
from dscint_jax.errors import DscintError

LOOK_EVERY_S = 1.0
LOOK_AT_OWN_WISH_EVERY_S = 0.1


class AgreedStop:
    """Lets all processes of a run leave their loop after the same step.

    Each process calls `should_stop_after` once after every step, and `request` when it is told to
    stop. When a wish is known, each process's thread publishes the last step that its loop has
    asked about; from then on the loop waits at its next question until all have published. No loop
    can be further than one step past what it published, so the step after the highest published one
    is one that each has still to ask about: after it all stop. The threads do not wait for the
    loops, so a loop that waits for another inside a collective holds nobody up.

    Args:
      cluster: the processes; all make this object at the same point.
      start_step: the step after which the loop starts, the same in all.
      name: other than that of another such object of the same run.
      timeout_s: how long to wait for the others' steps.
    """

    def __init__(
        self,
        cluster: Cluster = ALONE,
        *,
        start_step: int = 0,
        name: str = "stop",
        timeout_s: float = 60.0,
    ) -> None:
        self._cluster = cluster
        self._folder = f"{PREFIX}/{name}"
        self._timeout_s = timeout_s
        self._wish: str | None = None
        self._step = start_step
        self._published = False
        self._stop_after: int | None = None
        self._reason: str | None = None
        self._error: DscintError | None = None
        self._changed = threading.Condition()
        self._over = threading.Event()
        self._next_look = 0.0
        if cluster.process_count > 1:
            self._client = store()
            self._thread = threading.Thread(target=self._talk, name="agreed stop", daemon=True)
            self._thread.start()

    def request(self, reason: str = "request") -> None:
        """Wishes for a stop; a signal's handler may call it.

        Args:
          reason: such as 'SIGTERM'; that of the first wish is told to all.
        """
        # Nothing but an assignment: a handler may interrupt the loop anywhere, a lock in hand.
        self._wish = self._wish or reason

    @property
    def reason(self) -> str | None:
        """Why the run stops, the same text in all processes; None while no stop is agreed."""
        return self._reason

    def should_stop_after(self, step: int) -> bool:
        """Whether this step, just taken, is the last one; asked once a step, in order.

        Raises:
          DscintError: there is a wish, and some process does not say where it is.
        """
        if self._cluster.process_count == 1:
            self._reason = self._wish
            return self._wish is not None
        with self._changed:
            while self._published and self._stop_after is None and self._error is None:
                self._changed.wait()
            if self._error:
                raise self._error
            if self._stop_after is not None:
                return step >= self._stop_after
            self._step = step
            return False

    def close(self) -> None:
        """Ends the talk; what this process has reached remains known to the others."""
        if self._cluster.process_count == 1 or self._over.is_set():
            return
        self._over.set()
        self._thread.join()
        if not self._published:
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._publish_step()

    def __enter__(self) -> "AgreedStop":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _talk(self) -> None:
        try:
            while not self._wish_is_known():
                if self._over.wait(LOOK_AT_OWN_WISH_EVERY_S):
                    return
            self._publish_step()
            self._decide()
        except (DscintError, jax.errors.JaxRuntimeError) as error:
            with self._changed:
                self._error = DscintError(f"no step to stop after could be agreed on: {error}")
                self._changed.notify_all()

    def _wish_is_known(self) -> bool:
        """Whether any process wishes for a stop; looks at the store once in a while."""
        if self._wish is not None:
            # Another's wish may have come first.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                self._client.key_value_set(f"{self._folder}/wish/first", self._wish)
            return True
        if time.monotonic() < self._next_look:
            return False
        self._next_look = time.monotonic() + LOOK_EVERY_S
        return bool(self._client.key_value_dir_get(f"{self._folder}/wish"))

    def _publish_step(self) -> None:
        with self._changed:
            self._published = True
            step = self._step
        key = f"{self._folder}/steps/{self._cluster.process_index}"
        self._client.key_value_set(key, str(step))

    def _decide(self) -> None:
        deadline = time.monotonic() + self._timeout_s
        while True:
            found = self._client.key_value_dir_get(f"{self._folder}/steps")
            steps = {int(key.rpartition("/")[2]): int(step) for key, step in found}
            if len(steps) == self._cluster.process_count:
                break
            if time.monotonic() > deadline:
                absent = set(range(self._cluster.process_count)) - set(steps)
                raise DscintError(
                    f"{numbers(sorted(absent))} did not say within {self._timeout_s:g} s where "
                    f"they are"
                )
            if self._over.wait(LOOK_AT_OWN_WISH_EVERY_S):
                return
        reason = self._client.key_value_dir_get(f"{self._folder}/wish")[0][1]
        with self._changed:
            self._reason = reason
            self._stop_after = max(steps.values()) + 1
            self._changed.notify_all()
