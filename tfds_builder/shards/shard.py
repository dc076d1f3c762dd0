"""One ArrayRecord file of the data set: studies in, records on disk out.

A shard is written by one process from the files themselves, study after study, so that memory does
not grow with the data. What became of every row comes back as a small summary.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

# Compiled, without hints.
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from tfds_builder.classes import Classes
from tfds_builder.commandline.errors import UserError
from tfds_builder.shards.records import STUDIES_CONFIG, records_of, serialise
from tfds_builder.studies.study import Facts, Study, read_study
from tfds_builder.workers import Announce, Lost, WorkerPool

# One record a chunk, for random access, as TFDS itself writes; the lightest zstd level takes a
# fifth off the time of the default one and adds 2 % to the size.
_WRITER_OPTIONS = "group_size:1,zstd:1"

FILE_SECONDS = 30.0
WORKER_MEMORY = 2**30


@dataclass(frozen=True, slots=True)
class ShardTask:
    """A shard to be written.

    Attributes:
      studies: in the order of their study_key.
      path: the file to write.
      config: 'views' or 'studies'.
      classes: the classes of the data set.
      keep_one_view: see `records.records_of`.
      suspected: rows at which a worker was lost once, be it for another reason; None: before any.
      refused: (row, reason) of rows at which workers were lost twice.
    """

    studies: tuple[Study, ...]
    path: str
    config: str
    classes: Classes
    keep_one_view: bool = False
    suspected: tuple[int | None, ...] = ()
    refused: tuple[tuple[int, str], ...] = ()

    def after(self, lost: Lost) -> "ShardTask | None":
        """The task to run after a worker was lost on it; None where two were before a row.

        A worker can be lost for what is not in the file, and its memory be used up by files before
        it: a row is refused only where a second worker, a fresh one, is lost at it too. Raises
        UserError where a worker is lost at a file that is not even decoded.
        """
        if lost.step is None and None in self.suspected:
            return None
        if lost.step in dict(self.refused):
            raise UserError(
                f"manifest row {lost.step}: its file cannot even be read ({lost.reason}); "
                "take the row out"
            )
        if lost.step not in self.suspected:
            return replace(self, suspected=(*self.suspected, lost.step))
        return replace(self, refused=(*self.refused, (lost.step, lost.reason)))


@dataclass(slots=True)
class Shard:
    """A shard that was written.

    Attributes:
      path: its file.
      records: how many records it holds.
      size: their bytes before compression.
      images: the images in its records.
      left_out: images in no record: of unknown view, or without a certain opposite view.
      labels: how many records have which label.
      one_view: study records with one view.
      mixed_labels: study records whose views have different labels.
      rejected: (row, reason) of the rows that cannot be used.
      digests: row -> SHA-256 of the image file and of the lesion mask.
    """

    path: str
    records: int = 0
    size: int = 0
    images: list[Facts] = field(default_factory=list)
    left_out: list[Facts] = field(default_factory=list)
    labels: Counter[str] = field(default_factory=Counter)
    one_view: int = 0
    mixed_labels: int = 0
    rejected: list[tuple[int, str]] = field(default_factory=list)
    digests: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)


def shard_pool(workers: int, file_seconds: float = FILE_SECONDS) -> WorkerPool:
    """Workers to write shards with."""
    return WorkerPool(
        workers,
        step_seconds=file_seconds,
        memory_bytes=WORKER_MEMORY,
        preload=("tfds_builder.shards.shard",),
    )


def write_shard(task: ShardTask, announce: Announce = lambda row: None) -> Shard:
    """Reads a shard's studies one by one and writes their records to one ArrayRecord file.

    `announce` is told each manifest row before its file is touched. Raises UserError where the file
    cannot be written.
    """
    shard = Shard(task.path)
    with _naming_a_full_disk():
        writer = array_record_module.ArrayRecordWriter(task.path, _WRITER_OPTIONS)
    for record in _serialised(task, shard, announce):
        with _naming_a_full_disk():
            writer.write(record)
    with _naming_a_full_disk():
        writer.close()
        # A disk that fills up at the end of a file is not always reported.
        if shard.records and not os.path.getsize(task.path):
            raise OSError
    return shard


@contextmanager
def _naming_a_full_disk() -> Iterator[None]:
    """ArrayRecord makes a RuntimeError of a full disk, for one."""
    try:
        yield
    except (RuntimeError, OSError) as error:
        raise UserError(
            f"cannot write the data set, is the disk full? ({type(error).__name__})"
        ) from error


def _serialised(task: ShardTask, shard: Shard, announce: Announce) -> Iterator[bytes]:
    refused = dict(task.refused)
    for study in task.studies:
        read = read_study(study, announce, refused)
        shard.rejected += read.rejected
        shard.digests |= read.digests
        in_records: set[str] = set()
        found = records_of(read, task.config, task.keep_one_view, task.classes)
        for record, images in found:
            serialised = serialise(record, task.classes)
            shard.records += 1
            shard.size += len(serialised)
            shard.labels[record["label"]] += 1
            shard.one_view += task.config == STUDIES_CONFIG and len(images) == 1
            shard.mixed_labels += len({image.facts.label for image in images}) > 1
            shard.images += [image.facts for image in images]
            in_records |= {image.facts.image_id for image in images}
            yield serialised
        shard.left_out += [
            image.facts for image in read.images if image.facts.image_id not in in_records
        ]
