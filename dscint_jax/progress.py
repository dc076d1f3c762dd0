"""Progress of long work: a bar on a terminal, a plain line now and then anywhere else."""

import sys
import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_LINE_EVERY_S = 15.0


class ProgressBar:
    """A context manager that shows how much of `total` is done.

    Args:
      title: what is being done.
      total: when it is complete; may be told later, to `update`.
      done: where it starts.
      rate_factor: how many of what `noun` names one of progress stands for.
      noun: what the rate counts.
    """

    def __init__(
        self,
        title: str,
        *,
        total: int | None = None,
        done: int = 0,
        rate_factor: float = 1,
        noun: str = "images",
    ):
        self._title, self._total, self._factor, self._noun = title, total, rate_factor, noun
        self._first, self._started, self._spoke = done, time.monotonic(), time.monotonic()
        self._bar: Progress | None = None
        if sys.stdout.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(),
            )
            self._task = self._bar.add_task(title, total=total, completed=done, note="")

    def __enter__(self) -> "ProgressBar":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def update(self, done: int, note: str = "", total: int | None = None) -> None:
        """Shows that `done` of the total is reached."""
        self._total = total or self._total
        elapsed = time.monotonic() - self._started
        rate = (done - self._first) * self._factor / max(elapsed, 1e-9)
        text = f"{rate:.0f} {self._noun}/s {note}".rstrip()
        if self._bar:
            self._bar.update(self._task, completed=done, total=self._total, note=text)
        elif time.monotonic() - self._spoke >= PLAIN_LINE_EVERY_S:
            self._spoke = time.monotonic()
            left = (self._total - done) * self._factor / max(rate, 1e-9)
            print(f"{self._title}: {done}/{self._total}, {text}, {left:.0f} s left", flush=True)

    def say(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        if self._bar:
            self._bar.console.print(line, highlight=False)
        else:
            print(line, flush=True)
