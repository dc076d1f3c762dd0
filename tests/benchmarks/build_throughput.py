"""python -m tests.benchmarks.build_throughput: a build beside the least that it must do.

In: a manifest. Out: images a second of whole builds and, in turns with them, of the bare sum of
pydicom decoding and ArrayRecord writing of the same files, one after the other in one process and
on as many processes as the build has; the ratios of the times; and the memory that the build held.
"""

import argparse
import csv
import io
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pydicom

# Compiled, without hints.
from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

from tfds_builder.commandline.command import CommandParser, available_cores
from tfds_builder.commandline.errors import UserError, run_command
from tfds_builder.commandline.progress import say
from tfds_builder.manifest import Row, read_manifest
from tfds_builder.studies.matrix import COLUMNS, ROWS
from tfds_builder.studies.study import Announce
from tfds_builder.workers import Lost, WorkerPool

# What TFDS's own ArrayRecord writer uses.
_TFDS_OPTIONS = "group_size:1"
_ROWS_PER_FILE = 64
_SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class _Build:
    images: int
    seconds: float
    parent_mib: float
    largest_mib: float


@dataclass(frozen=True)
class _Round:
    """Seconds of the bare sum in one process and in several, and the build."""

    images: int
    one: float
    several: float
    build: _Build

    def text(self, workers: int) -> str:
        speeds = [self.images / seconds for seconds in (self.build.seconds, self.one, self.several)]
        ratios = [self.build.seconds / seconds for seconds in (self.one, self.several)]
        return (
            f"build with {workers} workers {speeds[0]:.0f} images/s; bare decoding and writing in "
            f"one process {speeds[1]:.0f} images/s (build takes {ratios[0]:.2f} times as long), in "
            f"{workers} processes {speeds[2]:.0f} images/s ({ratios[1]:.2f} times)"
        )


def main(argv: list[str] | None = None) -> None:
    """Measures what the command line asks for.

    Raises:
      UserError: anything that the user can mend.
    """
    options = _parser().parse_args(argv)
    if min(options.rounds, options.workers, options.repeat) < 1:
        raise UserError("--rounds, --workers and --repeat: at least 1 is needed")
    rows = [replace(row, lesion_mask=None) for row in read_manifest(options.manifest)]
    with tempfile.TemporaryDirectory(dir=options.scratch, prefix="throughput-") as scratch:
        folder = Path(scratch)
        manifest, rows = _repeated(rows, options.repeat, folder / "source")
        rounds = []
        for n in range(options.rounds):
            rounds.append(_round(manifest, rows, folder, options.workers))
            say(f"round {n + 1}: {rounds[-1].text(options.workers)}")
    middle = _Round(
        images=rounds[0].images,
        one=statistics.median(one.one for one in rounds),
        several=statistics.median(one.several for one in rounds),
        build=replace(
            rounds[0].build,
            seconds=statistics.median(one.build.seconds for one in rounds),
            parent_mib=max(one.build.parent_mib for one in rounds),
            largest_mib=max(one.build.largest_mib for one in rounds),
        ),
    )
    say(f"median of {options.rounds}: {middle.text(options.workers)}")
    say(
        f"{middle.images} images; memory of the build {middle.build.parent_mib:.0f} MiB, of its "
        f"largest worker {middle.build.largest_mib:.0f} MiB",
    )


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m tests.benchmarks.build_throughput",
        description="Times whole builds beside the bare sum of pydicom decoding and ArrayRecord "
        "writing of the same DICOM files, in turns. Lesion masks are left out of both.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--manifest", type=Path, required=True, help="names the files, as for the build")
    add("--rounds", type=int, default=3, help="how often both are timed (default: 3)")
    add(
        "--repeat",
        type=int,
        default=1,
        metavar="N",
        help="every file N times, as links under other study numbers (default: 1)",
    )
    add(
        "--workers",
        type=int,
        default=available_cores(),
        help="processes of either (default: one a core)",
    )
    add(
        "--scratch",
        type=Path,
        default=Path("."),
        help="where a temporary folder is made (default: here)",
    )
    return parser


def _repeated(rows: list[Row], times: int, folder: Path) -> tuple[Path, list[Row]]:
    """A manifest of links to every file, so often, each a study of its own of the same patient."""
    folder.mkdir()
    manifest = folder / "manifest.csv"
    linked = []
    with manifest.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(["path", "patient_id", "label", "study_id"])
        for n in range(times):
            for number, row in enumerate(rows):
                path = folder / f"{number}-{n}"
                # A hard link lies inside the manifest's folder wherever the file does.
                _link(row.path, path)
                table.writerow([path.name, row.patient_id, row.label, f"{number}-{n}"])
                linked.append(replace(row, path=path))
    return manifest, linked


def _link(source: Path, path: Path) -> None:
    try:
        os.link(source, path)
    except FileNotFoundError:
        raise UserError("a file of the manifest is not there; build with it first") from None
    except OSError:
        shutil.copyfile(source, path)


def _round(manifest: Path, rows: list[Row], folder: Path, workers: int) -> _Round:
    images, one = _bare(rows, folder, 1)
    _, several = _bare(rows, folder, workers)
    build = _build(manifest, folder / "data", workers)
    if build.images != images:
        raise UserError(
            f"the build kept {build.images} of {images} frames; measure with files that hold views "
            "only"
        )
    return _Round(images, one, several, build)


def _bare(rows: list[Row], folder: Path, workers: int) -> tuple[int, float]:
    """Images and seconds of decoding every frame and writing it, with an empty lesion mask."""
    chunks = [
        (tuple(row.path for row in rows[n : n + _ROWS_PER_FILE]), folder / f"bare-{n}")
        for n in range(0, len(rows), _ROWS_PER_FILE)
    ]
    started = time.monotonic()
    if workers == 1:
        images = sum(decode_and_write(chunk) for chunk in chunks)
    else:
        with WorkerPool(workers, step_seconds=60, memory_bytes=2**30, preload=(__name__,)) as pool:
            images = sum(pool.map(decode_and_write, chunks, _give_up))
    seconds = time.monotonic() - started
    for _, path in chunks:
        path.unlink()
    return images, seconds


def decode_and_write(
    chunk: tuple[tuple[Path, ...], Path], announce: Announce = lambda step: None
) -> int:
    """Decodes files with pydicom alone, and writes each frame as TFDS would; returns how many."""
    files, path = chunk
    writer = array_record_module.ArrayRecordWriter(str(path), _TFDS_OPTIONS)
    no_mask = bytes(ROWS * COLUMNS)
    images = 0
    for n, file in enumerate(files):
        announce(n)
        pixels = pydicom.dcmread(file).pixel_array
        for frame in pixels if pixels.ndim == 3 else pixels[None]:
            writer.write(frame.tobytes() + no_mask)
            images += 1
    writer.close()
    return images


def _give_up(task: object, lost: Lost) -> None:
    raise UserError(f"a file could not be decoded by pydicom alone: {lost.reason}")


def _build(manifest: Path, data_dir: Path, workers: int) -> _Build:
    """A whole build, as a user runs it, in a process of its own."""
    command = [sys.executable, "-m", "tfds_builder.build"]
    places = ["--manifest", str(manifest), "--data_dir", str(data_dir)]
    started = time.monotonic()
    process = subprocess.Popen(
        [*command, *places, "--workers", str(workers)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with _watched_memory(process.pid) as peaks:
        _, said = process.communicate()
    seconds = time.monotonic() - started
    if process.returncode:
        raise UserError(f"the build failed: {said.strip().removeprefix('error: ')}")
    quality = next(data_dir.glob("scintigraphy/views/*/quality.csv")).read_text(encoding="utf-8")
    images = len(list(csv.reader(io.StringIO(quality)))) - 1
    shutil.rmtree(data_dir)
    others = [mib for pid, mib in peaks.items() if pid != process.pid]
    return _Build(images, seconds, peaks.get(process.pid, 0.0), max(others, default=0.0))


@contextmanager
def _watched_memory(root: int) -> Iterator[dict[int, float]]:
    """Process id -> highest resident MiB of a process and its descendants, looked at in /proc."""
    peaks: dict[int, float] = {}
    done = threading.Event()

    def watch() -> None:
        while not done.wait(_SAMPLE_SECONDS):
            for pid in _family(root):
                peaks[pid] = max(peaks.get(pid, 0.0), _resident_mib(pid))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield peaks
    finally:
        done.set()
        watcher.join()


def _family(root: int) -> list[int]:
    family = [root]
    for pid in family:
        try:
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii")
        except OSError:
            continue
        family += map(int, children.split())
    return family


def _resident_mib(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError):
        return 0.0
    return pages * resource.getpagesize() / 2**20


if __name__ == "__main__":
    # Workers find functions in the module, not in the main one.
    from tests.benchmarks import build_throughput as throughput

    run_command(throughput.main)
