"""A stop of all processes at the same moment, whichever of them was told to stop.

In: the wish of any process, such as a SIGTERM. Out: the moment, after a step or before an evaluated
batch, at which all stop.
"""

import contextlib
import threading
from collections.abc import Callable

import jax

from dscint_jax.cluster.cluster import ALONE, PREFIX, Cluster, gather, store
from tfds_builder.commandline.errors import UserError

LOOK_EVERY_S = 1.0
TIMEOUT_S = 60.0
"""How long to wait for the others' counts."""
WISHES = f"{PREFIX}/wishes"


class AgreedStop:
    """Lets all processes of a run leave their loop at the same question, once in a run.

    The rule is that of `jax.experimental.multihost_utils.reached_preemption_sync_point`: all stop
    at the question that follows the last one that any has asked when a wish becomes known. JAX's
    own function knows no reason but SIGTERM, and Orbax asks it about the number of a checkpoint,
    which is not the count that is asked here.

    No loop can be further than one question past what its thread tells the others, for it then
    waits at its next one. A loop that waits for another in a collective holds nobody up. All
    processes make this object at the same point.

    Args:
      wish: why this process wishes for a stop, such as 'SIGTERM'; None if it does not.
      cluster: the processes.

    Attributes:
      reason: the first wish, the same text in all processes; None while no stop is agreed.
    """

    def __init__(self, wish: Callable[[], str | None], cluster: Cluster = ALONE) -> None:
        self.reason: str | None = None
        self._wish, self._cluster = wish, cluster
        self._asked, self._wished = 0, False
        self._stop_at: int | None = None
        self._failure: UserError | None = None
        self._agreeing, self._over = threading.Lock(), threading.Event()
        if cluster.process_count > 1:
            threading.Thread(target=self._agree, name="agreed stop", daemon=True).start()

    def asked(self) -> bool:
        """Whether to stop now: to be asked equally often in all processes.

        Raises:
          UserError: there is a wish, and some process does not say where it is.
        """
        wish = self._wish()
        if self._cluster.process_count == 1:
            self.reason = wish
            return wish is not None
        if wish is not None and not self._wished:
            self._wished = True
            # Another's wish may have come first.
            with contextlib.suppress(jax.errors.JaxRuntimeError):
                store().key_value_set(f"{WISHES}/first", wish)
        with self._agreeing:
            if self._failure:
                raise self._failure
            self._asked += 1
            return self._stop_at is not None and self._asked >= self._stop_at

    def __enter__(self) -> "AgreedStop":
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()

    def _agree(self) -> None:
        try:
            while not (wishes := store().key_value_dir_get(WISHES)):
                if self._over.wait(LOOK_EVERY_S):
                    return
            with self._agreeing:
                counts = gather(self._cluster, "stop", str(self._asked), TIMEOUT_S)
                self._stop_at = max(map(int, counts)) + 1
                self.reason = wishes[0][1]
        except (UserError, jax.errors.JaxRuntimeError) as error:
            self._failure = UserError(f"no step to stop after could be agreed on: {error}")
