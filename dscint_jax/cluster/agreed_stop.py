"""A stop of all processes after the same step, whichever of them was told to stop.

In: the wish of any process, such as a SIGTERM. Out: the step after which all stop.
"""

import contextlib
import threading

import jax

from dscint_jax.cluster.cluster import ALONE, PREFIX, Cluster, gather, store
from tfds_builder.commandline.errors import UserError

LOOK_EVERY_S = 1.0
TIMEOUT_S = 60.0
"""How long to wait for the others' steps."""
WISHES = f"{PREFIX}/wishes"


class AgreedStop:
    """Lets all processes of a run leave their loop after the same step, once in a run.

    The rule is that of `jax.experimental.multihost_utils.reached_preemption_sync_point`: all stop
    after the step that follows the highest one that any has taken when a wish becomes known. JAX's
    own function knows no reason but SIGTERM, and Orbax asks it about the number of a checkpoint,
    which is not the count that is asked here.

    No loop can be further than one step past what its thread tells the others, for it then waits at
    its next question. A loop that waits for another in a collective holds nobody up. All processes
    make this object at the same point.

    Attributes:
      reason: the first wish, the same text in all processes; None while no stop is agreed.
    """

    def __init__(self, cluster: Cluster = ALONE) -> None:
        self.reason: str | None = None
        self._cluster = cluster
        self._step, self._wished = 0, False
        self._stop_after: int | None = None
        self._failure: UserError | None = None
        self._agreeing, self._over = threading.Lock(), threading.Event()
        if cluster.process_count > 1:
            threading.Thread(target=self._agree, name="agreed stop", daemon=True).start()

    def should_stop_after(self, step: int, wish: str | None = None) -> bool:
        """Whether this step, just taken, is the last one; asked once a step, in order.

        Args:
          step: counts up by one.
          wish: why this process wishes for a stop, such as 'SIGTERM'; None if it does not.

        Raises:
          UserError: there is a wish, and some process does not say where it is.
        """
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
            self._step = step
            return self._stop_after is not None and step >= self._stop_after

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
                steps = gather(self._cluster, "stop", str(self._step), TIMEOUT_S)
                self._stop_after = max(map(int, steps)) + 1
                self.reason = wishes[0][1]
        except (UserError, jax.errors.JaxRuntimeError) as error:
            self._failure = UserError(f"no step to stop after could be agreed on: {error}")
