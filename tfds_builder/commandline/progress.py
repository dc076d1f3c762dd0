"""Progress of long work: a bar on a terminal, a plain line now and then anywhere else."""

import collections
import contextlib
import errno
import math
import os
import shutil
import stat
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

Result = TypeVar("Result")

PLAIN_LINE_EVERY_S = 15.0

PLAIN_WIDTH = 100
"""Columns of what is printed to no terminal."""

RECENT_S = 60.0
"""The speed shown is that of so many seconds; the time left is reckoned from the whole."""


class ProgressBar:
    """A context manager that shows how much of `total` is done.

    A terminal that cannot move its cursor (TERM=dumb) gets plain lines too; with NO_COLOR the bar
    has no colours.

    Args:
      title: what is being done.
      total: when it is complete; may be told later, to `update`.
      done: where it starts; None: where the first update says.
      rate_factor: how many of what `noun` names one of progress stands for.
      noun: what the rate counts.
      unit: what one of progress is called, such as 'step', to show the time of one; may be empty.
      shown: False prints nothing: of several processes, one speaks.
      clock: seconds, from any start.
    """

    def __init__(
        self,
        title: str,
        *,
        total: int | None = None,
        done: int | None = 0,
        rate_factor: float = 1,
        noun: str = "images",
        unit: str = "",
        shown: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._title, self._total, self._factor, self._noun = title, total, rate_factor, noun
        self._unit, self._shown, self._clock = unit, shown, clock
        self._spoke = clock()
        self._begun = None if done is None else (clock(), done)
        self._recent = collections.deque([self._begun] if self._begun else [])
        self._bar: Progress | None = None
        if shown and _has_cursor():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[note]}"),
                console=Console(),
            )
            self._task = self._bar.add_task(title, total=total, completed=done or 0, note="")

    def __enter__(self) -> "ProgressBar":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            with _reader_may_be_gone():
                self._bar.stop()

    def update(
        self,
        done: int,
        note: str = "",
        total: int | None = None,
        seconds_each: float | None = None,
    ) -> None:
        """Shows that `done` of the total is reached.

        Args:
          done: of the total, from the beginning.
          note: shown behind the speed.
          total: if it was not known before.
          seconds_each: measured time of one, if better known than by the time between updates.
        """
        self._total = total or self._total
        now = self._clock()
        self._recent.append((now, done))
        begun = self._begun = self._begun or (now, done)
        while len(self._recent) > 2 and now - self._recent[1][0] > RECENT_S:
            self._recent.popleft()
        if not self._shown:
            return
        text = ", ".join(filter(None, (self._speed(seconds_each), note, self._left(begun))))
        if self._bar:
            self._bar.update(self._task, completed=done, total=self._total, note=text)
        elif now - self._spoke >= PLAIN_LINE_EVERY_S:
            self._spoke = now
            reached = f"{done}/{self._total}" if self._total else f"{done}"
            say(", ".join(filter(None, (f"{self._title}: {reached}", text))))

    def reached(self, done: int, total: int) -> None:
        """`update` as a callback: how many of how many."""
        self.update(done, total=total)

    def say(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        if not self._shown:
            return
        if self._bar:
            # What stands in brackets is no style of rich's.
            with _reader_may_be_gone():
                self._bar.console.print(line, highlight=False, markup=False, soft_wrap=True)
        else:
            say(line)

    def _speed(self, seconds_each: float | None) -> str:
        (then, before), (now, done) = self._recent[0], self._recent[-1]
        if seconds_each is None:
            if done <= before:
                return ""
            seconds_each = (now - then) / (done - before)
        rate = self._factor / max(seconds_each, 1e-9)
        digits = 0 if rate >= 10 else 1
        speed = f"{rate:.{digits}f} {self._noun}/s"
        return f"{speed}, {seconds_each:.3g} s a {self._unit}" if self._unit else speed

    def _left(self, begun: tuple[float, int]) -> str:
        (then, before), (now, done) = begun, self._recent[-1]
        if not self._total or done <= before:
            return ""
        return f"{_duration((self._total - done) * (now - then) / (done - before))} left"


def counted(
    results: Iterable[Result],
    title: str,
    total: int,
    *,
    size: Callable[[Result], int] = lambda result: 1,
) -> Iterator[Result]:
    """Passes results on as they come, and shows how many files of `total` there were.

    `title` says what is being done, `size` how many files a result counts for.
    """
    done = 0
    with ProgressBar(title, total=total, noun="files") as bar:
        for result in results:
            done += size(result)
            bar.update(done)
            yield result


def show(table: RenderableType) -> None:
    """Prints a table as wide as the terminal, or COLUMNS, else PLAIN_WIDTH; 80 at least."""
    width = max(shutil.get_terminal_size((PLAIN_WIDTH, 0)).columns, 80)
    console = Console(width=width, highlight=False, markup=False)
    with console.capture() as captured:
        console.print(table)
    say(captured.get().removesuffix("\n"))


def say(text: str) -> None:
    """Prints; a reader that is gone, as of a pipe into `head`, is no reason to end a training."""
    with _reader_may_be_gone():
        # One write: another thread's line comes before or after it, never between it and its end.
        print(f"{text}\n", end="", flush=True)


def warn(message: str) -> None:
    """Prints a warning on stderr."""
    print(f"warning: {message}", file=sys.stderr, flush=True)


def let_go_of_readers() -> None:
    """Has output that goes to a terminal or through a pipe go nowhere, as what reads it is gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (1, 2):
        with contextlib.suppress(OSError):
            if not stat.S_ISREG(os.fstat(stream).st_mode):
                os.dup2(nowhere, stream)
    os.close(nowhere)


@contextlib.contextmanager
def _reader_may_be_gone() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EIO, errno.EPIPE):
            raise
        let_go_of_readers()


def _has_cursor() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def _duration(seconds: float) -> str:
    """Such as '45 s', '12 min' or '3 h 20 min'."""
    if seconds < 100:
        return f"{math.ceil(seconds)} s"
    minutes = math.ceil(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
