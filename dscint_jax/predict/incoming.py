"""What becomes of studies that a PACS sends: each is put together, read, answered, or set aside.

In: the queue that the listener fills, networks, and where answers go. Out: one report and one
picture a study. Every step begins and ends on disk, so that a process that is killed at any moment
is followed by one that goes on. What is said of studies are digests, never names.
"""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path

from dscint_jax.pacs.client import Unreachable
from dscint_jax.pacs.queue import PICTURE, REPORT, Queue, instances_of
from dscint_jax.predict.dicom_results import SERIES
from dscint_jax.predict.networks import Networks
from dscint_jax.predict.predict import answer_of, dicom_results, explained_of
from dscint_jax.predict.studies import find_studies, read_studies
from tfds_builder.commandline.errors import UserError, is_full, is_passing
from tfds_builder.commandline.progress import say
from tfds_builder.readers.dicom import read_header
from tfds_builder.readers.image_file import read_bytes
from tfds_builder.workers import Announce, Lost, WorkerPool

OWN = "is an answer of our own"
NO_VIEW = "has no image whose view is known"
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 600.0


@dataclasses.dataclass(frozen=True)
class Whose:
    """To which study a received file belongs, or why to none.

    Attributes:
      study, instance: StudyInstanceUID and SOPInstanceUID.
      reason: why it is not for the network; empty where it may be.
    """

    study: str = ""
    instance: str = ""
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class File:
    """A received file for a worker; `lost` says how an earlier worker ended on it."""

    path: Path
    accept: bool
    lost: str = ""

    def without(self, lost: Lost) -> "File":
        """The same file, which is not to be opened again."""
        return dataclasses.replace(self, lost=lost.reason)


def whose(file: File, announce: Announce) -> Whose:
    """Looks at the header of a received file; runs in a worker, as the file may be anything."""
    announce(0)
    if file.lost:
        return Whose(reason=file.lost)
    try:
        content = read_bytes(file.path)
        if SERIES.encode() in content:
            return Whose(reason=OWN)
        header = read_header(content, file.accept)
    except UserError as error:
        return Whose(reason=str(error))
    if not header.study or not header.instance:
        return Whose(reason="has no StudyInstanceUID or no SOPInstanceUID")
    return Whose(header.study, header.instance)


class Pauses:
    """Growing pauses after what failed: by name, twice as long each time.

    Args:
      clock: seconds, from any start.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until: dict[str, tuple[int, float]] = {}

    def over(self, name: str) -> bool:
        """Whether it may be tried."""
        return self._clock() >= self._until.get(name, (0, 0.0))[1]

    def failed(self, name: str) -> tuple[int, float]:
        """Notes a failure; returns how many there were, and the pause, s."""
        times = self._until.get(name, (0, 0.0))[0] + 1
        pause = min(FIRST_PAUSE_SECONDS * 2 ** min(times - 1, 30), LONGEST_PAUSE_SECONDS)
        self._until[name] = (times, self._clock() + pause)
        return times, pause

    def succeeded(self, name: str) -> None:
        """Forgets the failures."""
        self._until.pop(name, None)


class Incoming:
    """The steps from a received instance to an answered study.

    Args:
      queue: where studies lie.
      networks: what reads them; they stay compiled.
      pool: processes that open files.
      send: sends the files of an answer; raises Unreachable or another UserError.
      target: where that is, in words.
      quiet_seconds: after which a study is complete.
      least_confidence: as of `predict`.
      accept: as of `predict`.
      keep: whether images stay after their answer was taken.
    """

    def __init__(
        self,
        queue: Queue,
        networks: Networks,
        pool: WorkerPool,
        send: Callable[[list[Path]], None],
        target: str,
        *,
        quiet_seconds: float,
        least_confidence: float = 0.0,
        accept: bool = False,
        keep: bool = False,
    ) -> None:
        self._queue, self._networks, self._pool = queue, networks, pool
        self._send, self._target, self._keep = send, target, keep
        self._quiet_seconds, self._least, self._accept = quiet_seconds, least_confidence, accept
        self._pauses = Pauses()
        queue.finish(keep=keep)

    def step(self, stop: Callable[[], bool]) -> None:
        """Does all that can be done now; returns early where `stop` says so."""
        self._sort()
        for study in self._queue.quiet(self._quiet_seconds):
            self._queue.take(study)
        for study in self._queue.reading():
            if stop():
                return
            if self._pauses.over(study.name):
                self._read(study)
            self._send_all(stop)
            self._sort()
        self._send_all(stop)

    def _sort(self) -> None:
        paths = self._queue.received()
        files = [File(path, self._accept) for path in paths]
        for path, found in zip(paths, self._pool.map(whose, files, File.without), strict=True):
            if found.reason == OWN:
                path.unlink()
            elif found.reason:
                self._queue.set_aside(path, found.reason)
                say(f"instance {path.stem}: set aside: it {found.reason}")
            else:
                self._queue.sort(path, found.study, found.instance)

    def _read(self, study: Path) -> None:
        """Predicts a study, and puts the answer to it; or sets it aside."""
        started = time.monotonic()
        try:
            reason = self._answer(study)
        except Exception as error:
            if isinstance(error, UserError) or is_full(error) or is_passing(error):
                # It lies not in the study: no worker can be started, the disk is full.
                times, pause = self._pauses.failed(study.name)
                # Words of libraries may hold a name.
                why = error if isinstance(error, UserError) else type(error).__name__
                say(f"study {study.name}: {why}; failed {times} times, again in {pause:.0f} s")
                return
            # Whatever this one provokes, in libraries too: it stops none of the others.
            reason = f"could not be read ({type(error).__name__})"
        if reason:
            self._queue.set_aside(study, reason)
            say(f"study {study.name}: set aside: it {reason}")
            self._pauses.succeeded(study.name)
        else:
            say(f"study {study.name}: read in {time.monotonic() - started:.1f} s")

    def _answer(self, study: Path) -> str:
        """Predicts a study and puts its answer to it; why it cannot, or nothing."""
        found = find_studies(instances_of(study), self._pool, accept=self._accept)
        if not found.studies:
            return next(iter(found.unread.values()))
        if len(found.studies) > 1:
            return "names several patients"
        ((known, read, sources),) = read_studies(found.studies, self._pool, sources=True)
        (said,) = self._networks.read([read])
        answer = answer_of(known, read, sources, said, self._networks.classes, self._least)
        unread = found.unread | dict(answer.rejected)
        reasons = {path.name: reason for path, reason in unread.items()}
        if not said:
            return next(iter(reasons.values()), NO_VIEW)
        if isinstance(sources, UserError):
            return str(sources)
        ((_, explained),) = explained_of([answer], self._networks)
        try:
            results = dicom_results(answer, explained, self._networks)
        except UserError:
            # Its words may hold a name.
            return "has a header that no answer can be made of"
        # What was not read is neither noted as answered nor deleted with the study.
        used = {path.name for path in answer.files}
        for path in instances_of(study):
            if path.name not in used:
                reason = reasons.get(path.name, NO_VIEW)
                self._queue.set_aside(path, reason)
                say(f"instance {path.stem}: set aside: it {reason}")
        self._queue.read(study, results["report"], results["picture"])
        return ""

    def _send_all(self, stop: Callable[[], bool]) -> None:
        for study in self._queue.sending():
            if stop() or not self._pauses.over(self._target):
                return
            if not self._pauses.over(study.name):
                continue
            try:
                self._send([study / REPORT, study / PICTURE])
            except Exception as error:
                # Whatever an answer of the PACS provokes: it stops none of the others. Where nobody
                # answers, none of the others is tried either.
                name = self._target if isinstance(error, Unreachable) else study.name
                times, pause = self._pauses.failed(name)
                why = (
                    error if isinstance(error, UserError) else f"not sent ({type(error).__name__})"
                )
                say(f"study {study.name}: {why}; failed {times} times, again in {pause:.0f} s")
                continue
            self._pauses.succeeded(self._target)
            self._pauses.succeeded(study.name)
            self._queue.answered(study, self._target, keep=self._keep)
            say(f"study {study.name}: answered")
