"""python -m tfds_builder.build: images and a manifest on disk become the TFDS data set.

In: a manifest and the folder for the data set. Out: DATA_DIR/scintigraphy/views/VERSION, complete
or not there at all, and DATA_DIR/splits.csv, which keeps patients in their split at later builds.
"""

import argparse
import contextlib
import fcntl
import io
import json
import logging
import math
import multiprocessing
import os
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tfds_builder import deidentify, splits
from tfds_builder.command import CommandParser, available_cores, follow_parent
from tfds_builder.errors import DataError, run_command
from tfds_builder.manifest import LABELS, Row, read_manifest
from tfds_builder.plan import Plan, plan_data_set
from tfds_builder.records import Written
from tfds_builder.scintigraphy.scintigraphy_dataset_builder import Builder, ShardTask

_STAGING = ".scintigraphy-being-built"
_PLAIN_LINE_SECONDS = 10
_PLAIN_WIDTH = 100
_TASKS_IN_FLIGHT = 64


def main(argv: list[str] | None = None) -> None:
    """Builds the data set that the command line asks for.

    Raises:
      DataError: anything that the user can mend.
    """
    options = _parser().parse_args(argv)
    width = None if sys.stdout.isatty() else _PLAIN_WIDTH
    console = Console(file=sys.stdout, width=width, highlight=False, markup=False)
    fractions = _checked_fractions(options.split_fractions)
    rows = read_manifest(options.manifest)
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)
    try:
        with _only_build_in(options.data_dir), _workers(options.workers) as pool:
            _build(options, rows, fractions, pool, console)
    except BrokenProcessPool:
        raise DataError("a worker process died (out of memory?); try fewer --workers") from None
    except OSError as error:
        where = error.filename or options.data_dir
        raise DataError(f"{where}: {error.strerror or error}") from None


def _parser() -> argparse.ArgumentParser:
    parser = CommandParser(
        prog="python -m tfds_builder.build",
        description="Builds the TFDS data set scintigraphy from images and a manifest on disk.",
        epilog="The manifest's columns: path, patient_id, label (normal, metastasis, arthritis, "
        "thyroid_carcinoma); optional study_id, view, frame, split, sex, age, lesion_mask. "
        "Exit status: 0 the data set is there, 2 something is to be mended.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--manifest",
        type=Path,
        required=True,
        help="CSV file that names the images, relative to its own folder",
    )
    parser.add_argument(
        "--data_dir",
        type=Path,
        required=True,
        help="TFDS data directory to write to",
    )
    parser.add_argument(
        "--pseudonym_key",
        type=Path,
        help="file with the site's secret, made where missing; keep it, and keep it private "
        "(default: pseudonym.key beside the manifest)",
    )
    parser.add_argument(
        "--workers",
        type=int,
        default=available_cores(),
        help="processes that decode images (default: one a core)",
    )
    parser.add_argument(
        "--split_fractions",
        type=float,
        nargs=3,
        default=splits.FRACTIONS,
        metavar=("TRAIN", "VALIDATION", "TEST"),
        help="shares of patients; they add up to 1 (default: 0.7 0.15 0.15)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="another seed divides the patients differently (default: 0)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace a data set that was built from other sources",
    )
    return parser


def _checked_fractions(values: Iterable[float]) -> tuple[float, float, float]:
    train, validation, test = values
    total_is_one = math.isclose(train + validation + test, 1, abs_tol=1e-6)
    if not total_is_one or min(train, validation, test) < 0:
        raise DataError(
            f"--split_fractions {train} {validation} {test}: must not be negative and add up to 1"
        )
    return train, validation, test


def _build(
    options: argparse.Namespace,
    rows: tuple[Row, ...],
    fractions: tuple[float, float, float],
    pool: Executor | None,
    console: Console,
) -> None:
    started = time.monotonic()
    key_file = options.pseudonym_key or options.manifest.parent / deidentify.KEY_FILE_NAME
    key, created = deidentify.read_or_create_key(key_file)
    if created:
        _say(console, f"made a new pseudonym key: {key_file} (keep it, and keep it private)")
    splits_file = options.data_dir / splits.FILE_NAME
    plan = plan_data_set(
        options.manifest,
        rows,
        key,
        splits.read_splits(splits_file),
        str(Builder.VERSION),
        fractions,
        options.seed,
        map_all=lambda function, items, doing: _progress(
            console, _in_order(pool, function, items), doing, len(items), lambda _: 1
        ),
    )
    final = options.data_dir / "scintigraphy" / "views" / str(Builder.VERSION)
    if _is_up_to_date(final, plan, options.overwrite):
        _say(console, f"{final}: already built from these sources, nothing to do")
        return
    staging = options.data_dir / _STAGING
    metadata = _write(plan, staging, pool, console)
    new_splits = staging / splits.FILE_NAME
    new_splits.write_text(splits.splits_text(plan.patients), encoding="utf-8")
    new_splits.replace(splits_file)
    _move_into_place(staging, final)
    _report(console, plan, metadata, final, time.monotonic() - started)


@contextlib.contextmanager
def _only_build_in(data_dir: Path) -> Iterator[None]:
    """Holds the folder against a second build and removes what a killed build left behind."""
    data_dir.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(data_dir, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise DataError(f"{data_dir}: another build is running there; wait for it") from None
    except OSError:
        pass  # Some network file systems have no locks.
    staging = data_dir / _STAGING
    try:
        shutil.rmtree(staging, ignore_errors=True)
        yield
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        os.close(descriptor)


@contextlib.contextmanager
def _workers(count: int) -> Iterator[Executor | None]:
    """A pool of processes, or None where one process is enough."""
    if count < 1:
        raise DataError(f"--workers {count}: at least 1 is needed")
    if count == 1:
        yield None
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tfds_builder.records"])
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_start_worker)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    follow_parent()
    logging.getLogger("pydicom").setLevel(logging.CRITICAL)


def _in_order(
    pool: Executor | None, function: Callable[[Any], Any], items: list[Any]
) -> Iterator[Any]:
    """Results in the order of the items, with few items in flight at a time."""
    if pool is None:
        yield from map(function, items)
        return
    waiting: deque[Any] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > _TASKS_IN_FLIGHT:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _progress(
    console: Console,
    results: Iterable[Any],
    doing: str,
    total: int,
    size: Callable[[Any], int],
) -> Iterator[Any]:
    """Passes results on and shows how many there were: a bar, or a plain line now and then."""
    if not console.is_terminal:
        yield from _plain_progress(console, results, doing, total, size)
        return
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    ) as progress:
        task = progress.add_task(doing, total=total)
        for result in results:
            progress.advance(task, size(result))
            yield result


def _plain_progress(
    console: Console,
    results: Iterable[Any],
    doing: str,
    total: int,
    size: Callable[[Any], int],
) -> Iterator[Any]:
    done, last = 0, time.monotonic()
    for result in results:
        done += size(result)
        if time.monotonic() - last >= _PLAIN_LINE_SECONDS:
            last = time.monotonic()
            _say(console, f"{doing}: {done} of {total}")
        yield result


def _is_up_to_date(final: Path, plan: Plan, overwrite: bool) -> bool:
    if not final.exists():
        return False
    try:
        fingerprint = json.loads((final / "metadata.json").read_bytes())["fingerprint"]
    except (OSError, ValueError, KeyError):
        fingerprint = None
    if fingerprint == plan.fingerprint:
        return True
    if not overwrite:
        raise DataError(
            f"{final}: holds a data set built from other sources or splits; "
            "use --overwrite to replace it, or another --data_dir"
        )
    return False


def _write(plan: Plan, staging: Path, pool: Executor | None, console: Console) -> dict[str, Any]:
    """Builds the data set under the staging folder; returns its metadata."""

    def write_all(tasks: list[ShardTask]) -> Iterator[Written]:
        results = _in_order(pool, ShardTask.write, tasks)
        return _progress(console, results, "writing images", plan.images, lambda w: w.images)

    builder = Builder(data_dir=staging, config="views", plan=plan, write_all=write_all)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    return dict(builder.info.metadata)


def _move_into_place(staging: Path, final: Path) -> None:
    built = staging / final.relative_to(staging.parent)
    config_folder = final.parent.parent / ".config"
    final.parent.mkdir(parents=True, exist_ok=True)
    if not config_folder.exists():
        (built.parent.parent / ".config").rename(config_folder)
    if final.exists():
        final.rename(staging / "replaced")
    built.rename(final)


def _report(
    console: Console, plan: Plan, metadata: dict[str, Any], final: Path, seconds: float
) -> None:
    table = Table(title="images (patients)")
    table.add_column("split")
    for label in (*LABELS, "all"):
        table.add_column(label, justify="right")
    for split, found in plan.proof["splits"].items():
        cells = [
            f"{found['images_by_class'][label]} ({found['patients_by_class'][label]})"
            for label in LABELS
        ]
        table.add_row(split, *cells, f"{found['images']} ({found['patients']})")
    console.print(table)
    if plan.kept_patients:
        _say(console, f"{plan.kept_patients} patients keep the split of an earlier build")
    elif plan.earlier_patients:
        _say(
            console,
            f"note: no patient of the earlier {splits.FILE_NAME} is in this manifest; "
            "if they are the same people, the pseudonym key has changed",
        )
    for note, times in metadata["notes"].items():
        _say(console, f"note: {note} ({times}x)")
    speed = plan.images / seconds
    _say(console, f"{final}: {plan.images} images in {seconds:.1f} s ({speed:.0f} a second)")


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
