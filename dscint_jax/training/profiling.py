"""A trace of a few steps: what the devices and the host do at every moment, to open in xprof.

In: a window of steps. Out: a trace under workdir/profile. Training goes on as without
it, slower by a little within the window; a trace that cannot be written is a warning.
"""

import contextlib
import re
from pathlib import Path
from typing import Any

import jax

from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.progress import say, warn

FOLDER = "profile"
MOST_STEPS = 100
"""Of one window: a trace grows with every step."""

NO_STEPS = range(0)
"""The window of a run that is not traced."""

STEP_NAME = "train"
"""What the steps are called in the trace."""


def parse_window(text: str) -> range:
    """Reads FIRST:COUNT, such as '20:10': ten steps from the 20th on, over all attempts.

    Raises:
      UserError: it is something else, or too long.
    """
    match = re.fullmatch(r"(\d{1,12}):(\d{1,12})", text.strip(), re.ASCII)
    first, count = (int(match[1]), int(match[2])) if match else (0, 0)
    if first < 1 or count < 1:
        raise UserError(
            f"--profile is {text!r}; it must be FIRST:COUNT, such as 20:10 for ten steps from the "
            f"20th on"
        )
    if count > MOST_STEPS:
        raise UserError(
            f"--profile {text} is {count} steps long; {MOST_STEPS} at most, because the trace "
            f"grows with each"
        )
    return range(first, first + count)


class Profiler:
    """A context manager around the loop that traces the steps of a window.

    A resumed run traces those of the window that it takes itself; interrupted within the window,
    the trace holds the steps until then.

    The processes of one run each write theirs; those that are `shown` print where it lies.
    """

    def __init__(self, workdir: Path, window: range, *, shown: bool = True):
        self._folder, self._window, self._shown = workdir / FOLDER, window, shown
        self._active = self._begun = False
        self._step = contextlib.ExitStack()

    def __enter__(self) -> "Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        if self._window and not self._begun and self._shown:
            say(f"no profile: no step from {self._window[0]} to {self._window[-1]} was taken")

    def before(self, step: int) -> None:
        """Called before a step takes its batch."""
        if step not in self._window:
            return
        self._begun = True
        if not self._active:
            self._start()
        if self._active:
            named = jax.profiler.StepTraceAnnotation(STEP_NAME, step_num=step)
            self._step.enter_context(named)

    def after(self, step: int, result: Any) -> None:
        """Called after a step's dispatch; waits for its result only at the window's end."""
        self._step.close()
        if self._active and step == self._window[-1]:
            jax.block_until_ready(result)
            self._stop()

    def _start(self) -> None:
        options = jax.profiler.ProfileOptions()
        # Every Python call would fill the trace and slow the host.
        options.python_tracer_level = 0
        try:
            # What cannot be written at all is found before the profiler runs.
            self._folder.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self._folder), profiler_options=options)
        except (RuntimeError, OSError) as error:
            self._give_up(error)
            return
        self._active = True

    def _stop(self) -> None:
        self._step.close()
        if not self._active:
            return
        self._active = False
        try:
            jax.profiler.stop_trace()
        except (RuntimeError, OSError) as error:
            self._give_up(error)
            return
        if self._shown:
            say(
                f"the trace lies under {self._folder}; open it with: pip install xprof, then "
                f"xprof --logdir {self._folder}"
            )

    def _give_up(self, error: Exception) -> None:
        self._window = NO_STEPS
        reason = " ".join(str(error).split())
        warn(f"no trace could be written to {self._folder} ({reason}); training goes on")
