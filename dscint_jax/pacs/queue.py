"""Received instances and their studies on disk, each in the folder that says how far it is.

    received/INSTANCE.dcm           as it came, before the sender is told that it is here
    waiting/STUDY/INSTANCE.dcm      known whose it is; more of the study may come
    reading/STUDY/                  complete, being predicted
    reading/STUDY.txt               how often that was begun, and not ended
    sending/STUDY/                  with report.dcm and picture.dcm, which are to be sent
    answered/STUDY/BATCH.json       the PACS took them; the names of the instances
    aside/NAME                      not for the network, with the reason

A step is a rename, so that a process that is killed leaves a study in one of them. Names are
digests of UIDs or contents. One process, under a lock, moves files; threads may `put`.
"""

import datetime
import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import (
    read_json,
    remove_parts,
    write_bytes,
    write_error,
    write_json,
    write_text,
)

RECEIVED, WAITING, READING, SENDING, ANSWERED, ASIDE = FOLDERS = (
    "received",
    "waiting",
    "reading",
    "sending",
    "answered",
    "aside",
)
REPORT, PICTURE, REASON = "report.dcm", "picture.dcm", "reason.txt"


def digest(text: str | bytes) -> str:
    """What a UID or a content is called in names of files and in what is printed."""
    return hashlib.sha256(text if isinstance(text, bytes) else text.encode()).hexdigest()[:24]


class Queue:
    """The studies of a state folder, which is made, and held by this process while in use.

    Args:
      root: the folder.
      clock: seconds, from any start.

    Raises:
      UserError: another process holds it, or it cannot be written.
    """

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.root, self._clock = root, clock
        self._seen: dict[str, tuple[tuple[str, ...], float]] = {}
        try:
            # Images of patients are for nobody else on this machine.
            root.mkdir(parents=True, exist_ok=True)
            root.chmod(0o700)
            self._lock = FileLock(root / ".lock")
            self._lock.acquire(timeout=0)
            for name in FOLDERS:
                (root / name).mkdir(exist_ok=True)
                for folder in (root / name, *self._folders(name)):
                    remove_parts(folder)
        except Timeout:
            raise UserError(
                f"--state {root} is in use by another service; stop it, or use another folder"
            ) from None
        except OSError as error:
            raise write_error(root, error) from error

    def close(self) -> None:
        """Lets another process have the folder."""
        self._lock.release()

    def free_bytes(self) -> int:
        """Room on the disk."""
        return shutil.disk_usage(self.root).free

    def put(self, content: bytes) -> None:
        """Keeps an instance: it is on the disk when this returns. The same content is kept once.

        Raises:
          WriteError: it is not.
        """
        write_bytes(self.root / RECEIVED / f"{digest(content)}.dcm", content)
        _sync(self.root / RECEIVED)

    def received(self) -> list[Path]:
        """Instances of which nobody knows yet whose they are."""
        return sorted((self.root / RECEIVED).glob("*.dcm"))

    def sort(self, path: Path, study: str, instance: str) -> None:
        """Puts a received instance to its study, by their UIDs; the same one replaces itself.

        What was answered already is deleted.
        """
        name, folder = f"{digest(instance)}.dcm", self.root / WAITING / digest(study)
        if name in self._known(digest(study)):
            path.unlink()
        else:
            folder.mkdir(exist_ok=True)
            path.rename(folder / name)

    def quiet(self, seconds: float) -> list[str]:
        """Studies that got nothing for so many seconds of this process, and that are not under way.

        Time in which no process ran does not count: the rest of a study may have come to nobody.
        """
        found, seen = [], {}
        for folder in self._folders(WAITING):
            names = tuple(f"{one.name} {one.stat().st_mtime_ns}" for one in instances_of(folder))
            before, since = self._seen.get(folder.name, ((), 0.0))
            seen[folder.name] = (names, since if names == before else self._clock())
            waited = self._clock() - seen[folder.name][1] >= seconds
            busy = any((self.root / name / folder.name).exists() for name in (READING, SENDING))
            if names and waited and not busy:
                found.append(folder.name)
        self._seen = seen
        return found

    def take(self, study: str) -> None:
        """Lets a waiting study be read; what comes of it from now on waits as a batch of its own.

        What was answered meanwhile is deleted.
        """
        folder = self.root / WAITING / study
        for one in instances_of(folder):
            if one.name in self._known(study):
                one.unlink()
        if instances_of(folder):
            self._move(folder, self.root / READING / study)
        else:
            shutil.rmtree(folder)

    def reading(self) -> list[Path]:
        """Folders of studies that are to be read."""
        return self._folders(READING)

    def begin(self, study: Path) -> int:
        """Notes that a study is being read; how often the process ended in the middle of it."""
        note = study.with_suffix(".txt")
        ended = int(note.read_text()) if note.exists() else 0
        write_text(note, f"{ended + 1}\n")
        return ended

    def leave(self, study: Path) -> None:
        """Notes that the process did not end while it read a study."""
        study.with_suffix(".txt").unlink(missing_ok=True)

    def read(self, study: Path, report: bytes, picture: bytes) -> None:
        """Puts the answer to a study that was read, which is then to be sent."""
        write_bytes(study / REPORT, report)
        write_bytes(study / PICTURE, picture)
        self._move(study, self.root / SENDING / study.name)

    def sending(self) -> list[Path]:
        """Folders of studies whose answers are to be sent."""
        return self._folders(SENDING)

    def answered(self, study: Path, target: str, *, keep: bool) -> None:
        """Notes that the answer was taken; the images are deleted, unless `keep`."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        names = [one.name for one in instances_of(study)]
        marker = {"instances": names, "answered": now, "sent_to": target}
        write_json(self._batch(study).with_suffix(".json"), marker)
        _sync(self._batch(study).parent)
        self._clear(study, keep)

    def finish(self, *, keep: bool) -> None:
        """Ends what a process that was killed had begun with studies whose answer was taken."""
        for study in self.sending():
            if {one.name for one in instances_of(study)} <= self._known(study.name):
                self._clear(study, keep)

    def set_aside(self, place: Path, reason: str) -> None:
        """Puts an instance, or the folder of a study, where it stops nobody."""
        target = self.root / ASIDE / place.name
        if place.is_dir():
            write_text(place / REASON, f"{reason}\n")
            target = target.with_name(f"{place.name}-{self._batch(place).name}")
        else:
            write_text(target.with_suffix(".txt"), f"{reason}\n")
        self._move(place, target)

    def summary(self) -> str:
        """How many instances or studies each folder holds, in words."""
        held = {name: list((self.root / name).glob("[!.]*")) for name in FOLDERS}
        # Beside an instance that was set aside lies the reason, as text; beside a study, its note.
        counts = {name: sum(path.suffix != ".txt" for path in own) for name, own in held.items()}
        return ", ".join(f"{count} {name}" for name, count in counts.items())

    def _known(self, study: str) -> set[str]:
        """Names of instances of a study that were answered."""
        markers = (self.root / ANSWERED / study).glob("*.json")
        return {name for marker in markers for name in read_json(marker)["instances"]}

    def _batch(self, study: Path) -> Path:
        """The place of a study's instances among those of the study that were answered."""
        names = "\n".join(one.name for one in instances_of(study))
        return self.root / ANSWERED / study.name / digest(names)

    def _clear(self, study: Path, keep: bool) -> None:
        if keep:
            self._move(study, self._batch(study))
        else:
            shutil.rmtree(study)

    def _folders(self, name: str) -> list[Path]:
        """Oldest first, so that none waits for ever."""
        folders = (one for one in (self.root / name).iterdir() if one.is_dir())
        return sorted(folders, key=lambda one: one.stat().st_mtime_ns)

    def _move(self, place: Path, target: Path) -> None:
        if target.is_dir():
            shutil.rmtree(target)
        place.replace(target)
        _sync(target.parent)


def instances_of(study: Path) -> list[Path]:
    """The received files in a study's folder, sorted by name."""
    return sorted(path for path in study.glob("*.dcm") if path.name not in (REPORT, PICTURE))


def _sync(folder: Path) -> None:
    """Has the names in a folder survive a loss of power, too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
