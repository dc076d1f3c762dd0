"""One ArrayRecord file of the data set: studies in, records on disk out.

A shard is written by one process from the files themselves, study after study, so that memory does
not grow with the data. What became of every row comes back as a small summary.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

# Compiled, without hints.
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from tfds_builder.classes import Classes
from tfds_builder.commandline.errors import UserError
from tfds_builder.shards.plan import Options
from tfds_builder.shards.records import records_of, serialise
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
      options: how the data set is to be made.
      classes: the classes of the data set.
      suspected: rows at which a worker was lost once, be it for another reason; None: before any.
      refused: (row, reason) of rows at which workers were lost twice.
    """

    studies: tuple[Study, ...]
    path: str
    options: Options
    classes: Classes
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
      records: the images of each of its records.
      size: bytes of the records before compression.
      left_out: images in no record: of unknown view, or without a certain opposite view.
      rejected: (row, reason) of the rows that cannot be used.
      digests: see `ReadStudy`.
    """

    path: str
    records: list[tuple[Facts, ...]] = field(default_factory=list)
    size: int = 0
    left_out: list[Facts] = field(default_factory=list)
    rejected: list[tuple[int, str]] = field(default_factory=list)
    digests: dict[int, tuple[bytes, bytes]] = field(default_factory=dict)

    @property
    def images(self) -> list[Facts]:
        """The images in its records."""
        return [facts for record in self.records for facts in record]


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
    shard, refused = Shard(task.path), dict(task.refused)
    config, keep_one_view = task.options.config, task.options.keep_one_view
    with _naming_a_full_disk():
        writer = array_record_module.ArrayRecordWriter(task.path, _WRITER_OPTIONS)
    for study in task.studies:
        read = read_study(study, announce, refused)
        shard.rejected += read.rejected
        shard.digests |= read.digests
        in_records: set[str] = set()
        for record, images in records_of(read, config, keep_one_view, task.classes):
            serialised = serialise(record, task.classes)
            with _naming_a_full_disk():
                writer.write(serialised)
            shard.size += len(serialised)
            shard.records.append(tuple(image.facts for image in images))
            in_records |= {image.facts.image_id for image in images}
        facts = [image.facts for image in read.images]
        shard.left_out += [one for one in facts if one.image_id not in in_records]
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
