"""Which files of a folder are scans, and what each says before its pixels are decoded.

In: a folder. Out: the files in it that may be images, and for each what its header says or why it
is none. The inspecting runs in worker processes, since the files may be anything.
"""

import os
import re
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from tfds_builder.commandline.errors import UserError
from tfds_builder.readers.dicom import read_header
from tfds_builder.readers.image_file import is_dicom, read_bytes
from tfds_builder.readers.raster import check_raster
from tfds_builder.readers.scintigram import TAKEN, FrameView
from tfds_builder.readers.views import UNKNOWN
from tfds_builder.tables import plain_cell
from tfds_builder.workers import Announce, Lost, WorkerPool

NO_PATIENT_TEXT = "PatientID cannot be decoded (its character set?), so it is not used"
_NO_IMAGES = re.compile(
    r"\.(7z|bat|bz2|csv|db|dll|docx?|exe|gz|h5|hdf5|html?|inf|ini|ipynb|js|json|key|log|md|md5|mp4|"
    r"npy|npz|pdf|pptx?|py|rtf|sh|sha256|tar|tsv|txt|url|xlsx?|xml|xz|ya?ml|zip)$",
    re.I,
)
_MOST_VIEWS = 2
_FILES_PER_TASK = 16


@dataclass(frozen=True)
class Files:
    """What was found in a folder.

    Attributes:
      paths: files that may be images, relative to the folder, sorted.
      unusable: path -> why it can be in no manifest.
      skipped: why -> how many files or folders were passed over.
      leading_out: links that were not followed.
    """

    paths: tuple[PurePosixPath, ...]
    unusable: dict[PurePosixPath, str]
    skipped: Counter[str]
    leading_out: tuple[PurePosixPath, ...]


@dataclass(frozen=True, slots=True)
class InspectedFile:
    """What one file says.

    Attributes:
      path: relative to the folder.
      reason: why it cannot be used; then nothing else is known.
      is_dicom: whether it is a DICOM file.
      patient_id, study, instance: as in `dicom.Header`, where they are text.
      views: one or two.
      notes: what is odd about the file as a whole.
      needs_accept: whether only a rule of thumb is against it.
    """

    path: PurePosixPath
    reason: str = ""
    is_dicom: bool = False
    patient_id: str = ""
    study: str = ""
    instance: str = ""
    views: tuple[FrameView, ...] = ()
    notes: tuple[str, ...] = ()
    needs_accept: bool = False


@dataclass(frozen=True)
class Chunk:
    """Some files for a worker, and those among them that cost an earlier worker its life.

    With `accept`, files that only a rule of thumb is against are not refused.
    """

    folder: Path
    paths: tuple[PurePosixPath, ...]
    accept: bool = False
    refused: dict[int, str] = field(default_factory=dict)

    def without(self, lost: Lost) -> "Chunk":
        """The same chunk without the file that was being inspected."""
        return replace(self, refused=self.refused | {lost.step or 0: lost.reason})


def list_files(folder: Path) -> Files:
    """Finds the files that may be images, by name and kind alone.

    Raises UserError where a folder in it cannot be listed.
    """
    top = folder.resolve()
    plain: list[PurePosixPath] = []
    links: list[PurePosixPath] = []
    skipped: Counter[str] = Counter()
    for parent, folders, names in os.walk(top, onerror=_refuse_folder):
        skipped["hidden"] += sum(name.startswith(".") for name in folders)
        inside = PurePosixPath(Path(parent).relative_to(top).as_posix())
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        # The walk does not follow links to folders; they count like those to files.
        links += [inside / name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in names:
            mode = os.lstat(os.path.join(parent, name)).st_mode
            if name.startswith("."):
                skipped["hidden"] += 1
            elif name.upper() == "DICOMDIR" or _NO_IMAGES.search(name):
                skipped["files that are no images, by their names"] += 1
            elif stat.S_ISLNK(mode):
                links.append(inside / name)
            elif stat.S_ISREG(mode):
                plain.append(inside / name)
            else:
                skipped["not plain files"] += 1
    followed, leading_out = _follow(top, plain, links)
    skipped["links that lead out of the folder, not followed"] += len(leading_out)
    others = len(links) - len(leading_out) - len(followed)
    skipped["links to folders, or to files that are here anyway"] += others
    paths = sorted([*plain, *followed], key=lambda path: path.parts)
    unusable = {path: reason for path in paths if (reason := _bad_name(path))}
    usable = tuple(path for path in paths if path not in unusable)
    return Files(usable, unusable, +skipped, tuple(leading_out))


def _refuse_folder(error: OSError) -> None:
    raise UserError(f"{error.filename}: cannot be listed ({error.strerror})")


def _follow(
    top: Path, plain: list[PurePosixPath], links: list[PurePosixPath]
) -> tuple[list[PurePosixPath], list[PurePosixPath]]:
    """The links that are followed, to files that are elsewhere in the folder (a hidden store) or
    nowhere, and those that lead out of it.
    """
    seen = {top / path for path in plain}
    followed, leading_out = [], []
    for link in sorted(links):
        try:
            target = (top / link).resolve()
        except (OSError, RuntimeError):
            target = top / link
        if not target.is_relative_to(top):
            leading_out.append(link)
        elif target not in seen and not target.is_dir():
            seen.add(target)
            followed.append(link)
    return followed, leading_out


def _bad_name(path: PurePosixPath) -> str:
    """Why a manifest cannot hold this path."""
    text = str(path)
    if not _is_text(text):
        return "its name is not UTF-8; rename it"
    if text != plain_cell(text) or any(ord(letter) < 32 for letter in text):
        return (
            "its name starts or ends with a space, starts with an apostrophe before a digit, or "
            "holds a control character; rename it"
        )
    return ""


def _is_text(text: str) -> bool:
    """Whether a file can hold it: undecodable names and some character sets leave surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def inspected(
    pool: WorkerPool, folder: Path, paths: Sequence[PurePosixPath], *, accept: bool
) -> Iterator[InspectedFile]:
    """Inspects files in worker processes; one `InspectedFile` each, in their order."""
    starts = range(0, len(paths), _FILES_PER_TASK)
    chunks = [Chunk(folder, tuple(paths[n : n + _FILES_PER_TASK]), accept) for n in starts]
    for files in pool.map(inspect_files, chunks, Chunk.without):
        yield from files


def inspect_files(chunk: Chunk, announce: Announce) -> list[InspectedFile]:
    """Inspects the files of a chunk; what is wrong with a file is in its `InspectedFile.reason`."""
    files = []
    for number, path in enumerate(chunk.paths):
        announce(number)
        try:
            if number in chunk.refused:
                raise UserError(chunk.refused[number])
            files.append(_inspect(path, read_bytes(chunk.folder / path), chunk.accept))
        except UserError as error:
            files.append(InspectedFile(path, reason=str(error)))
    return files


def _inspect(path: PurePosixPath, content: bytes, accept: bool) -> InspectedFile:
    if not is_dicom(content):
        pages = check_raster(content)
        if pages > _MOST_VIEWS:
            raise UserError(f"has {pages} pages, not one or two views")
        for page in range(2, pages + 1):
            check_raster(content, page)
        views = tuple(FrameView(page, UNKNOWN, "none") for page in range(1, pages + 1))
        return InspectedFile(path, views=views)
    header = read_header(content, accept)
    patient, study = header.patient_id.strip(), header.study.strip()
    known = _is_text(patient)
    findings = [*header.findings, *(one for view in header.views for one in view.findings)]
    return InspectedFile(
        path,
        is_dicom=True,
        patient_id=patient if known else "",
        study=study if _is_text(study) else "",
        instance=header.instance,
        views=header.views,
        notes=tuple(dict.fromkeys(findings)) + (() if known else (NO_PATIENT_TEXT,)),
        needs_accept=any(one.startswith(TAKEN) for one in header.findings),
    )
