"""Shows how far long work is: a bar on a terminal, a plain line now and then in a log."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Result = TypeVar("Result")

_PLAIN_LINE_SECONDS = 10
_PLAIN_WIDTH = 100


def make_console() -> Console:
    """A console on stdout that prints text as it is."""
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False, markup=False)


def say(console: Console, text: str) -> None:
    """Prints one line, however long."""
    console.print(text, soft_wrap=True)


def progress(
    console: Console,
    results: Iterable[Result],
    doing: str,
    total: int,
    size: Callable[[Result], int] = lambda _: 1,
) -> Iterator[Result]:
    """Passes results on and shows how many of how many there were.

    Args:
      console: where to.
      results: passed on as they come.
      doing: what is being done.
      total: the sum of all sizes.
      size: how much a result counts.
    """
    if not console.is_terminal:
        yield from _plain_progress(console, results, doing, total, size)
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as bar:
        task = bar.add_task(doing, total=total)
        for result in results:
            bar.advance(task, size(result))
            yield result


def _plain_progress(
    console: Console,
    results: Iterable[Result],
    doing: str,
    total: int,
    size: Callable[[Result], int],
) -> Iterator[Result]:
    done, last = 0, time.monotonic()
    for result in results:
        done += size(result)
        if time.monotonic() - last >= _PLAIN_LINE_SECONDS:
            last = time.monotonic()
            say(console, f"{doing}: {done} of {total}")
        yield result
