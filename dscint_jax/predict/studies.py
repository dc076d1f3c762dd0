"""The studies that files and folders hold, read as a build reads them.

In: paths of images or of folders. Out: studies, each with its images as records, and what could not
be read, with the reason. Files may be anything: they are opened in worker processes.
"""

import dataclasses
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import pydicom

from dscint_jax.predict.sources import source_of
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.progress import say
from tfds_builder.manifest import Row
from tfds_builder.scan.inventory import Files, inspected, list_files
from tfds_builder.scan.label_tables import Meanings
from tfds_builder.scan.path_names import printable, read_words
from tfds_builder.scan.proposal import BY_HEADER, ProposedRow, propose
from tfds_builder.studies.study import ReadStudy, Study, read_study
from tfds_builder.workers import Announce, Lost, WorkerPool

FILE_SECONDS = 60.0
WORKER_MEMORY = 2 * 2**30
REPEATS = "has the SOPInstanceUID of another file of the study"


@dataclasses.dataclass(frozen=True)
class FoundStudy:
    """A study before its pixels are read.

    Attributes:
      number: from 1, in the order of the paths.
      patient_id, study_id: as the header or the path has them; empty where neither does.
      files: its files, in the order of `rows`; one may occur for each of its pages.
      rows: what is to be read.
      repeated: files that are left out, as they hold the same image as one of `files`.
    """

    number: int
    patient_id: str
    study_id: str
    files: tuple[Path, ...]
    rows: tuple[Row, ...]
    repeated: tuple[Path, ...]

    @property
    def name(self) -> str:
        """What its results are called."""
        return f"study_{self.number:04d}"

    @property
    def files_in_words(self) -> str:
        """The paths of its files."""
        return "; ".join(dict.fromkeys(map(shown, self.files)))


@dataclasses.dataclass(frozen=True)
class Found:
    """What lies at the given places.

    Attributes:
      studies: in order.
      unread: path -> why it is in no study.
    """

    studies: tuple[FoundStudy, ...]
    unread: dict[Path, str]


Sources = dict[Path, pydicom.Dataset] | UserError
"""The headers of DICOM files of which images were read, or why no results can be made from them."""


@dataclasses.dataclass(frozen=True)
class _Task:
    """A study to be read, and the rows that cost an earlier worker its life.

    With `sources`, the headers are wanted from which DICOM results are made.
    """

    study: Study
    refused: dict[int, str]
    sources: bool

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


def find_studies(inputs: Sequence[Path], pool: WorkerPool, *, accept: bool = False) -> Found:
    """Finds the studies in files and folders, by their headers and names; no pixel is decoded.

    Files of one StudyInstanceUID, or pictures of one folder that differ in the word for the view,
    are one study. An image counts once: a file that is given twice, or one that repeats another's
    SOPInstanceUID, would weigh twice in the mean over the images.

    Args:
      inputs: files, or folders that are searched.
      pool: to open files in.
      accept: whether files are taken that only a rule of thumb is against.

    Raises:
      UserError: a folder holds no file that may be an image.
    """
    unread: dict[Path, str] = {}
    groups: dict[tuple[str, ...], list[tuple[Path, ProposedRow, str]]] = {}
    seen: set[Path] = set()
    for folder, files in _listed(inputs):
        if not files.paths and not files.unusable:
            raise UserError(f"{folder}: holds no file that may be an image")
        new = tuple(path for path in dict.fromkeys(files.paths) if folder / path not in seen)
        if len(new) < len(files.paths):
            say(f"note: {len(files.paths) - len(new)} files are given twice; each is read once")
        seen.update(folder / path for path in new)
        names = {path: read_words(path) for path in new}
        headers = {file.path: file for file in inspected(pool, folder, new, accept=accept)}
        files = dataclasses.replace(files, paths=new)
        proposal = propose(files, names, headers.values(), (), Meanings({}))
        unread |= {folder / path: reason for path, reason in proposal.unread.items()}
        for row in proposal.rows:
            patient, study = row.patient_id, row.study_id
            key = (str(folder), patient, study or str(row.path))
            if headers[row.path].study:
                # What names of files say of the patient differs from file to file.
                patient = patient if row.patient_by == BY_HEADER else ""
                key = (patient, study)
            own = dataclasses.replace(row, patient_id=patient)
            groups.setdefault(key, []).append((folder / row.path, own, headers[row.path].instance))
    studies = [_study(n, own, accept) for n, own in enumerate(groups.values(), 1)]
    return Found(tuple(studies), unread)


def _listed(inputs: Sequence[Path]) -> list[tuple[Path, Files]]:
    """Folders with their files. Files that are given one by one stand together by their folder."""
    given: dict[tuple[Path, bool], list[PurePosixPath]] = {}
    for path in (place.resolve() for place in inputs):
        if path.is_dir():
            given[path, True] = []
        else:
            given.setdefault((path.parent, False), []).append(PurePosixPath(path.name))
    return [
        (folder, list_files(folder) if whole else Files(tuple(names), {}, Counter(), ()))
        for (folder, whole), names in given.items()
    ]


def _study(number: int, found: Sequence[tuple[Path, ProposedRow, str]], accept: bool) -> FoundStudy:
    """A study of its files, each with its row and its SOPInstanceUID, empty where it has none."""
    # Of copies the largest: one that was cut off in being copied is smaller.
    chosen: dict[str, Path] = {}
    for path, _, instance in sorted(found, key=lambda one: -_size(one[0])):
        chosen.setdefault(instance, path)
    own = [(path, row) for path, row, instance in found if not instance or chosen[instance] == path]
    paths = tuple(path for path, _ in own)
    return FoundStudy(
        number=number,
        patient_id=own[0][1].patient_id,
        study_id=own[0][1].study_id,
        files=paths,
        rows=tuple(
            Row(
                number=n,
                path=path,
                relative_path=str(path),
                patient_id=row.patient_id,
                label="",
                view=row.view or None,
                frame=row.frame,
                accept=accept,
            )
            for n, (path, row) in enumerate(own)
        ),
        repeated=tuple(path for path, *_ in found if path not in paths),
    )


def _size(path: Path) -> int:
    """Bytes; 0 of a file that went away meanwhile, which reading says."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def read_studies(
    studies: Sequence[FoundStudy], pool: WorkerPool, *, sources: bool = False
) -> Iterator[tuple[FoundStudy, ReadStudy, Sources]]:
    """Reads studies in their order; what is wrong with a file is in `ReadStudy.rejected`.

    With `sources`, each comes with the headers of its DICOM files.
    """
    tasks = [_Task(Study(study.name, "", "", study.rows), {}, sources) for study in studies]
    for study, (read, own) in zip(studies, pool.map(_read, tasks, _Task.without), strict=True):
        yield study, read, own


def shown(path: Path) -> str:
    """A path as tables and pages can hold it."""
    return printable(PurePosixPath(path))


def _read(task: _Task, announce: Announce) -> tuple[ReadStudy, Sources]:
    read = read_study(task.study, announce, task.refused)
    sources = {}
    for number in sorted({image.facts.row for image in read.images} if task.sources else ()):
        announce(number)
        path = task.study.rows[number].path
        try:
            if header := source_of(path):
                sources[path] = header
        except UserError as error:
            return read, error
    return read, sources
