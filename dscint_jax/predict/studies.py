"""The studies that files and folders hold, read as a build reads them.

In: paths of images or of folders. Out: studies, each with its images as records, and what could not
be read, with the reason. Files may be anything: they are opened in worker processes.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import Row
from tfds_builder.scan.inventory import Chunk, Files, InspectedFile, inspect_files, list_files
from tfds_builder.scan.label_tables import Meanings
from tfds_builder.scan.path_names import read_words
from tfds_builder.scan.proposal import ProposedRow, propose
from tfds_builder.studies.study import ReadStudy, Study, read_study
from tfds_builder.workers import Announce, Lost, WorkerPool

FILE_SECONDS = 60.0
WORKER_MEMORY = 2 * 2**30
FILES_A_TASK = 16


@dataclasses.dataclass(frozen=True)
class FoundStudy:
    """A study before its pixels are read.

    Attributes:
      number: from 1, in the order of the paths.
      patient_id, study_id: as the header or the path has them; empty where neither does.
      files: its files, in the order of `rows`; one may occur for each of its pages.
      rows: what is to be read.
    """

    number: int
    patient_id: str
    study_id: str
    files: tuple[Path, ...]
    rows: tuple[Row, ...]


@dataclasses.dataclass(frozen=True)
class Found:
    """What lies at the given places.

    Attributes:
      studies: in order.
      unread: path -> why it is in no study.
    """

    studies: tuple[FoundStudy, ...]
    unread: dict[Path, str]


@dataclasses.dataclass(frozen=True)
class _Task:
    """A study to be read, and the rows that cost an earlier worker its life."""

    study: Study
    refused: dict[int, str]

    def without(self, lost: Lost) -> "_Task":
        return dataclasses.replace(self, refused=self.refused | {lost.step or 0: lost.reason})


def worker_pool(workers: int) -> WorkerPool:
    """Processes to open files in."""
    return WorkerPool(
        workers,
        step_seconds=FILE_SECONDS,
        memory_bytes=WORKER_MEMORY,
        preload=("dscint_jax.predict.studies",),
    )


def check_places(inputs: Sequence[Path]) -> None:
    """Raises UserError where a path is not there."""
    for place in inputs:
        if not place.exists():
            raise UserError(f"{place}: no such file or folder")


def find_studies(inputs: Sequence[Path], pool: WorkerPool, *, accept: bool = False) -> Found:
    """Finds the studies in files and folders, by their headers and names; no pixel is decoded.

    Files of one StudyInstanceUID, or pictures that differ in the word for the view, are one study.

    Args:
      inputs: files, or folders that are searched.
      pool: to open files in.
      accept: whether files are taken that only a rule of thumb is against.

    Raises:
      UserError: a folder holds no file that may be an image.
    """
    unread: dict[Path, str] = {}
    rows: list[tuple[Path, ProposedRow]] = []
    for folder, files in map(_files_of, inputs):
        if not files.paths and not files.unusable:
            raise UserError(f"{folder}: holds no file that may be an image")
        names = {path: read_words(path) for path in files.paths}
        inspected = _inspected(folder, files.paths, pool, accept)
        proposal = propose(files, names, inspected, (), Meanings({}))
        unread |= {folder / path: reason for path, reason in proposal.unread.items()}
        rows += [(folder, row) for row in proposal.rows]
    return Found(tuple(_grouped(rows, accept)), unread)


def _files_of(place: Path) -> tuple[Path, Files]:
    if place.is_dir():
        return place.resolve(), list_files(place)
    return place.resolve().parent, Files((PurePosixPath(place.name),), {}, Counter(), ())


def _inspected(
    folder: Path, paths: Sequence[PurePosixPath], pool: WorkerPool, accept: bool
) -> Iterator[InspectedFile]:
    starts = range(0, len(paths), FILES_A_TASK)
    chunks = [Chunk(folder, tuple(paths[n : n + FILES_A_TASK]), accept) for n in starts]
    for files in pool.map(inspect_files, chunks, Chunk.without):
        yield from files


def _grouped(found: Sequence[tuple[Path, ProposedRow]], accept: bool) -> Iterator[FoundStudy]:
    groups: dict[tuple[str, ...], list[tuple[Path, ProposedRow]]] = {}
    for folder, row in found:
        key = (row.patient_id, row.study_id) if row.study_id else (str(folder / row.path),)
        groups.setdefault(key, []).append((folder, row))
    for number, own in enumerate(groups.values(), 1):
        first = own[0][1]
        yield FoundStudy(
            number=number,
            patient_id=first.patient_id,
            study_id=first.study_id,
            files=tuple(folder / row.path for folder, row in own),
            rows=tuple(
                Row(
                    number=n,
                    path=folder / row.path,
                    relative_path=str(folder / row.path),
                    patient_id=row.patient_id,
                    label="",
                    view=row.view or None,
                    frame=row.frame,
                    accept=accept,
                )
                for n, (folder, row) in enumerate(own)
            ),
        )


def read_studies(
    studies: Sequence[FoundStudy], pool: WorkerPool
) -> Iterator[tuple[FoundStudy, ReadStudy]]:
    """Reads studies in their order; what is wrong with a file is in `ReadStudy.rejected`."""
    tasks = [_Task(Study(name_of(study), "", "", study.rows), {}) for study in studies]
    yield from zip(studies, pool.map(_read, tasks, _Task.without), strict=True)


def name_of(study: FoundStudy) -> str:
    """What its results are called."""
    return f"study_{study.number:04d}"


def _read(task: _Task, announce: Announce) -> ReadStudy:
    return read_study(task.study, announce, task.refused)
