"""Command line: python -m tests.fuzz --files N --seed S [--workers W] [--keep DIR].

Damages files, has worker processes read them as a build does, and fails where one is neither
ingested nor rejected in time, in memory and in words of our own.
"""

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from rich.table import Table

from tests.fuzz.mutations import make_mutant
from tests.fuzz.seeds import Seed, make_seeds
from tests.fuzz.trial import Chunk, Ledger, Outcome, try_chunk
from tfds_builder.commandline.command import CommandParser, available_cores, peak_memory
from tfds_builder.commandline.errors import UserError, run_command
from tfds_builder.commandline.progress import counted, say, show
from tfds_builder.shards.shard import WORKER_MEMORY
from tfds_builder.workers import WorkerPool

_CHUNK = 25
_REASONS = 15


def main(argv: list[str] | None = None) -> None:
    """Runs the fuzz loop; ends the process with status 1 where a file was not dealt with well.

    Raises:
      UserError: wrong options, or a disk that cannot be written to.
    """
    settings = _checked(_parser().parse_args(argv))
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        ledger = _run(settings, make_seeds())
    except OSError as error:
        raise UserError(f"{error.filename or settings.keep}: {error.strerror or error}") from None
    if ledger.faults:
        sys.exit(1)


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m tests.fuzz",
        description="Damages synthetic scans (DICOM in every transfer syntax that can be written "
        "here, PNG, TIFF, JPEG) and reads them as a build does. Each file must be ingested, or "
        "rejected for a reason that repeats nothing of it, without a crash, in time and in 1.5 GB "
        "of memory.",
        epilog="The Nth file depends on the seed and N alone (with the same versions of the "
        "packages). Exit status: 0 all is well, 1 a file was not dealt with well and is kept, "
        "2 a wrong option.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--files", type=int, default=500, metavar="N",
        help="how many files (default: 500)")  # fmt: skip
    add("--seed", type=int, default=0, metavar="S",
        help="another seed, other files (default: 0)")  # fmt: skip
    add("--only", type=int, metavar="N",
        help="make and read file N alone, and keep it whatever becomes of it")  # fmt: skip
    add("--workers", type=int, default=available_cores(), metavar="W",
        help="processes that read files (default: one a core)")  # fmt: skip
    add("--file_seconds", type=float, default=5.0, metavar="S",
        help="the longest that a file may take (default: 5)")  # fmt: skip
    add("--keep", type=Path, default=Path("fuzz-failures"), metavar="DIR",
        help="folder for files that were not dealt with well, made when needed "
        "(default: fuzz-failures)")  # fmt: skip
    return parser


def _checked(settings: argparse.Namespace) -> argparse.Namespace:
    for name in ("files", "workers"):
        if getattr(settings, name) < 1:
            raise UserError(f"--{name} {getattr(settings, name)}: at least 1 is needed")
    if not settings.file_seconds > 0:
        raise UserError(f"--file_seconds {settings.file_seconds}: must be more than 0")
    if settings.only is not None and settings.only < 0:
        raise UserError(f"--only {settings.only}: a file's number, from 0, is needed")
    return settings


def _run(settings: argparse.Namespace, seeds: tuple[Seed, ...]) -> Ledger:
    ledger = Ledger(settings.file_seconds)
    one = settings.only
    numbers = range(settings.files) if one is None else range(one, one + 1)
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="fuzz-") as folder,
        WorkerPool(
            settings.workers,
            step_seconds=settings.file_seconds,
            memory_bytes=WORKER_MEMORY,
            preload=(try_chunk.__module__,),
        ) as pool,
    ):
        chunks = _written(numbers, settings.seed, seeds, Path(folder))
        results = pool.map(try_chunk, chunks, Chunk.without)
        for outcomes in counted(results, "reading files", len(numbers), size=len):
            for outcome in outcomes:
                fault = ledger.add(outcome)
                if fault or one is not None:
                    _keep(settings, seeds, outcome, fault)
                _path(Path(folder), outcome.number).unlink()
    _report(ledger, partial(make_mutant, settings.seed, seeds=seeds), started)
    return ledger


def _written(
    numbers: Iterable[int], seed: int, seeds: tuple[Seed, ...], folder: Path
) -> Iterator[Chunk]:
    """Writes files a chunk at a time, as the workers ask for them."""
    numbers = list(numbers)
    for start in range(0, len(numbers), _CHUNK):
        files = []
        for number in numbers[start : start + _CHUNK]:
            mutant = make_mutant(seed, number, seeds)
            path = _path(folder, number)
            path.write_bytes(mutant.content)
            files.append((number, path, mutant.seed.frame))
        yield Chunk(tuple(files))


def _path(folder: Path, number: int) -> Path:
    return folder / f"file-{number}"


def _keep(
    settings: argparse.Namespace,
    seeds: tuple[Seed, ...],
    outcome: Outcome,
    fault: str | None,
) -> None:
    mutant = make_mutant(settings.seed, outcome.number, seeds)
    settings.keep.mkdir(parents=True, exist_ok=True)
    path = settings.keep / f"seed-{settings.seed}-file-{outcome.number}"
    path.write_bytes(mutant.content)
    became = fault or outcome.reason or f"{outcome.images} images"
    say(f"{path} (--seed {settings.seed} --only {outcome.number}; {mutant}): {became}")


def _report(ledger: Ledger, make: partial, started: float) -> None:
    table = Table(title="what became of the files")
    table.add_column("")
    table.add_column("files", justify="right")
    table.add_row("all", str(ledger.files))
    table.add_row("ingested", str(ledger.ingested))
    table.add_row("rejected", str(ledger.rejected.total()))
    for reason, times in ledger.rejected.most_common(_REASONS):
        table.add_row(f"  {reason}", str(times))
    others = len(ledger.rejected) - _REASONS
    if others > 0:
        rest = sum(times for _, times in ledger.rejected.most_common()[_REASONS:])
        table.add_row(f"  {others} other reasons", str(rest))
    table.add_row("failed: crash, hang, memory, leak, error", str(len(ledger.faults)))
    show(table)
    slowest = ledger.slowest
    if slowest.number >= 0:
        what = make(slowest.number)
        say(f"slowest: {1000 * slowest.seconds:.0f} ms, file {slowest.number} ({what})")
    worker, parent = ledger.resident / 2**20, peak_memory() / 2**20
    say(f"highest resident memory: worker {worker:.0f} MiB, parent {parent:.0f} MiB")
    seconds = time.monotonic() - started
    say(f"{ledger.files} files in {seconds:.1f} s")


if __name__ == "__main__":
    run_command(main)
