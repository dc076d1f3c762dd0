"""What becomes of studies that a PACS sends: each is put together, read, answered, or set aside.

In: the queue that the listener fills, networks, and where answers go. Out: one report and one
picture a study. Every step begins and ends on disk, so that a process that is killed at any moment
is followed by one that goes on. What is said of studies are digests, never names.
"""

import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from dscint_jax.pacs.client import Unreachable
from dscint_jax.pacs.queue import PICTURE, RECEIVED, REPORT, Queue, instances_of
from dscint_jax.predict.answers import answer_of
from dscint_jax.predict.dicom_results import SERIES, dicom_results
from dscint_jax.predict.networks import Networks
from dscint_jax.predict.studies import find_studies, read_studies
from tfds_builder.commandline.errors import UserError, is_full, is_passing
from tfds_builder.commandline.progress import say
from tfds_builder.scan.inventory import inspected
from tfds_builder.workers import WorkerPool

NO_VIEW = "has no image whose view is known"
FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS = 5.0, 600.0

MOST_ENDED = 3
"""How often the process may end while it reads a study: then the study is taken for the cause."""


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
      least_confidence, accept: as of `predict`.
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
        names = [PurePosixPath(path.name) for path in paths]
        files = inspected(self._pool, self._queue.root / RECEIVED, names, accept=self._accept)
        for path, file in zip(paths, files, strict=True):
            if SERIES.encode() in path.read_bytes():
                # An answer of our own that comes back.
                path.unlink()
            elif file.reason:
                self._set_aside(path, file.reason)
            elif not file.study or not file.instance:
                self._set_aside(path, "has no StudyInstanceUID or no SOPInstanceUID")
            else:
                self._queue.sort(path, file.study, file.instance)

    def _read(self, study: Path) -> None:
        """Predicts a study, and puts the answer to it; or sets it aside."""
        started = time.monotonic()
        try:
            ended = self._queue.begin(study)
            if ended < MOST_ENDED:
                reason = self._answer(study)
            else:
                reason = f"ended the service {ended} times while it was read"
        except Exception as error:
            if isinstance(error, UserError) or is_full(error) or is_passing(error):
                # It lies not in the study: no worker can be started, the disk is full.
                # Words of libraries may hold a name.
                why = error if isinstance(error, UserError) else type(error).__name__
                self._failed(study, study.name, why)
                return
            # Whatever this one provokes, in libraries too: it stops none of the others.
            reason = f"could not be read ({type(error).__name__})"
        finally:
            self._queue.leave(study)
        if reason:
            self._set_aside(study, reason)
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
        (explained,) = self._networks.explain([said])
        try:
            results = dicom_results(answer, explained, self._networks)
        except UserError:
            # Its words may hold a name.
            return "has a header that no answer can be made of"
        # What was not read is neither noted as answered nor deleted with the study.
        used = {path.name for path in answer.files}
        for path in instances_of(study):
            if path.name not in used:
                self._set_aside(path, reasons.get(path.name, NO_VIEW))
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
                known = isinstance(error, UserError)
                self._failed(study, name, error if known else f"not sent ({type(error).__name__})")
                continue
            self._pauses.succeeded(self._target)
            self._pauses.succeeded(study.name)
            self._queue.answered(study, self._target, keep=self._keep)
            say(f"study {study.name}: answered")

    def _set_aside(self, place: Path, reason: str) -> None:
        what = f"study {place.name}" if place.is_dir() else f"instance {place.stem}"
        self._queue.set_aside(place, reason)
        say(f"{what}: set aside: it {reason}")

    def _failed(self, study: Path, name: str, why: object) -> None:
        """Has what `name` says, a study or the PACS, wait for its next trial."""
        times, pause = self._pauses.failed(name)
        say(f"study {study.name}: {why}; failed {times} times, again in {pause:.0f} s")
