"""One answer, for all processes, to whether a run stops here.

In: the signals that processes get. Out: True after the same step, or the same evaluated batch, in
each of them.
"""

import itertools

from dscint_jax.cluster import AgreedStop
from dscint_jax.interruption import Interruption


class Stop:
    """Asked after every step and before every evaluated batch, in all processes alike.

    Args:
      interruption: the signals of this process.
      agreed: the processes' agreement.
    """

    def __init__(self, interruption: Interruption, agreed: AgreedStop):
        self._interruption, self._agreed = interruption, agreed
        self._moments = itertools.count(1)

    def asked(self) -> bool:
        """Whether to stop now."""
        wish = self._interruption.signal.name if self._interruption.signal else None
        return self._agreed.should_stop_after(next(self._moments), wish)

    @property
    def reason(self) -> str:
        """The signal's name, of whichever process got it."""
        return str(self._agreed.reason)
