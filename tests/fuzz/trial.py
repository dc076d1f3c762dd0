"""Feeds files to what a build does with a row, and says what became of them.

In: the paths of a chunk of files. Out: an outcome a file, and a ledger that tells the outcomes that
must be (ingested, or rejected for a reason) from those that must not.
"""

import errno
import re
import time
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path

from tests.fuzz.seeds import CANARY
from tfds_builder.commandline.command import peak_memory
from tfds_builder.manifest import Row
from tfds_builder.studies.study import UNFORESEEN, Announce, ReadStudy, Study, read_study
from tfds_builder.workers import Lost

MOST_RESIDENT = 1536 * 2**20

_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True, slots=True)
class Chunk:
    """Files for one worker.

    Attributes:
      files: (number, path, frame that the manifest names or None).
      lost: (number, reason) of files that a worker did not survive.
    """

    files: tuple[tuple[int, Path, int | None], ...]
    lost: tuple[tuple[int, str], ...] = ()

    def without(self, lost: Lost) -> "Chunk | None":
        """The chunk to run after a worker was lost on it, or None where no file is to blame."""
        if lost.step is None or lost.step in dict(self.lost):
            return None
        return replace(self, lost=(*self.lost, (lost.step, lost.reason)))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a file.

    Attributes:
      number: the file.
      images: how many images it gave.
      reason: why it was rejected, or None.
      lost: whether a worker was lost on it; `reason` says how.
      error: what was raised that should not have been, or None.
      leaks: whether the reason or the record repeats what the file says.
      seconds: how long it took.
      resident: the most bytes that its worker ever held in memory.
    """

    number: int
    images: int = 0
    reason: str | None = None
    lost: bool = False
    error: str | None = None
    leaks: bool = False
    seconds: float = 0.0
    resident: int = 0


def try_chunk(chunk: Chunk, announce: Announce = lambda number: None) -> list[Outcome]:
    """Reads each file as a study of its own, as a build does."""
    lost = dict(chunk.lost)
    outcomes = []
    for number, path, frame in chunk.files:
        if number in lost:
            outcomes.append(Outcome(number, reason=lost[number], lost=True))
        else:
            outcomes.append(_try_file(number, path, frame, announce))
    return outcomes


def _try_file(number: int, path: Path, frame: int | None, announce: Announce) -> Outcome:
    row = Row(number, path, path.name, "P", "normal", frame=frame)
    started = time.monotonic()
    try:
        outcome = outcome_of(number, read_study(Study("study", "patient", "", (row,)), announce))
    except MemoryError:
        raise  # The pool replaces the worker, as it does in a build.
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise
        outcome = Outcome(number, error=f"{type(error).__name__}: {error}")
    seconds = time.monotonic() - started
    return replace(outcome, seconds=seconds, resident=peak_memory())


def outcome_of(number: int, read: ReadStudy) -> Outcome:
    """What came of reading one file."""
    reason = next((reason for _, reason in read.rejected), None)
    records = [image.facts for image in read.images]
    leaks = CANARY in f"{reason} {records}".upper()
    return Outcome(number, len(records), reason, leaks=leaks)


def fault_of(outcome: Outcome, file_seconds: float) -> str | None:
    """What is wrong with how a file was dealt with, or None."""
    if outcome.error:
        return f"raised {outcome.error}"
    if outcome.reason and outcome.reason.startswith(UNFORESEEN):
        return outcome.reason
    if outcome.lost and outcome.reason != "needed too much memory":
        return outcome.reason
    if outcome.seconds > file_seconds:
        return f"took {outcome.seconds:.1f} s"
    if outcome.resident > MOST_RESIDENT:
        return f"took {outcome.resident / 2**20:.0f} MiB of memory"
    if outcome.leaks:
        return "what the file says is repeated"
    if bool(outcome.images) == bool(outcome.reason):
        return "neither ingested nor rejected" if not outcome.images else "ingested and rejected"
    return None


@dataclass
class Ledger:
    """The sum of all outcomes.

    Attributes:
      file_seconds: the longest that a file may take.
      ingested: files that gave images.
      rejected: reason, its numbers left out -> files.
      faults: (number, what is wrong).
      slowest: the outcome that took longest.
      resident: the most bytes that a worker ever held.
    """

    file_seconds: float
    files: int = 0
    ingested: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    faults: list[tuple[int, str]] = field(default_factory=list)
    slowest: Outcome = field(default_factory=lambda: Outcome(-1))
    resident: int = 0

    def add(self, outcome: Outcome) -> str | None:
        """Enters a file; returns what is wrong with it, or None."""
        self.files += 1
        fault = fault_of(outcome, self.file_seconds)
        if fault:
            self.faults.append((outcome.number, fault))
        elif outcome.reason:
            self.rejected[_NUMBER.sub("#", outcome.reason)] += 1
        else:
            self.ingested += 1
        self.slowest = max(self.slowest, outcome, key=lambda one: one.seconds)
        self.resident = max(self.resident, outcome.resident)
        return fault
