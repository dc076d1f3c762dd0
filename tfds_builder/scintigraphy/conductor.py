"""The course of a build: plan, write shards, find copies, write the metadata, move into place.

In: what is asked for. Out: DATA_DIR/scintigraphy/CONFIG/VERSION, complete or not there at all, and
DATA_DIR/splits.csv, which keeps patients in their split at later builds.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from tfds_builder import splits
from tfds_builder.commandline.command import available_cores
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import write_text
from tfds_builder.commandline.progress import counted, say
from tfds_builder.manifest import Row, read_manifest
from tfds_builder.scan.inventory import inspected
from tfds_builder.scintigraphy.data_set import NAME, VERSION, write_data_set
from tfds_builder.shards.beam import run_on_beam
from tfds_builder.shards.findings import (
    refuse_stored,
    refuse_unacceptable,
    remove_stale,
    write_findings,
)
from tfds_builder.shards.ingest import Ingested, ingest
from tfds_builder.shards.plan import Options, Plan, plan_data_set, rows_to_ask
from tfds_builder.shards.shard import FILE_SECONDS, Shard, ShardTask, shard_pool, write_shard
from tfds_builder.staging import move_into_place, staging_folder
from tfds_builder.studies import deidentify
from tfds_builder.studies.study import Study, digests_of_studies
from tfds_builder.tables import composed
from tfds_builder.workers import Lost, WorkerPool

_MOST_ROWS = 10


@dataclass(frozen=True)
class Request:
    """A data set that is asked for.

    Attributes:
      manifest: path of manifest.csv.
      data_dir: the TFDS data directory.
      options: how the data set is to be made.
      key_file: of the pseudonym key, made where missing; None: pseudonym.key beside the manifest.
      overwrite: whether a data set that was built from other sources is replaced.
      workers: processes that decode images.
      file_seconds: the longest that a file may take.
      beam_runner: the Beam runner that decodes instead; None: processes of this machine.
      beam_options: options of the Beam pipeline, as on a command line.
    """

    manifest: Path
    data_dir: Path
    options: Options
    key_file: Path | None = None
    overwrite: bool = False
    workers: int = available_cores()
    file_seconds: float = FILE_SECONDS
    beam_runner: str | None = None
    beam_options: tuple[str, ...] = ()

    @property
    def place(self) -> Path:
        """Where the data set is to be, from the data directory."""
        return Path(NAME, self.options.config, VERSION)


def build_data_set(request: Request) -> Ingested | None:
    """Builds a data set; None where it is already there. Raises UserError."""
    rows = read_manifest(request.manifest, request.options.classes)
    try:
        with (
            staging_folder(request.data_dir) as staging,
            shard_pool(request.workers, request.file_seconds) as pool,
        ):
            plan = _plan(request, rows, pool)
            remove_stale(request.data_dir)
            final = request.data_dir / request.place
            if final.exists() and _is_up_to_date(final, plan, pool, request.overwrite):
                refuse_stored(final, plan)
                return None
            shards = staging / "shards"
            shards.mkdir()
            ingested = ingest(plan, shards, partial(_run, request, pool))
            refuse_unacceptable(ingested, request.data_dir)
            built = staging / request.place
            built.mkdir(parents=True)
            write_findings(ingested, built)
            write_data_set(ingested, built)
            new_splits = staging / splits.FILE_NAME
            write_text(new_splits, splits.splits_text(ingested.patients))
            new_splits.replace(request.data_dir / splits.FILE_NAME)
            move_into_place(staging, built, final)
            return ingested
    except OSError as error:
        where = error.filename or request.data_dir
        raise UserError(f"{where}: {error.strerror or error}") from None


def _plan(request: Request, rows: tuple[Row, ...], pool: WorkerPool) -> Plan:
    key = _key(request)
    splits_file = request.data_dir / splits.FILE_NAME
    known = splits.read_splits(splits_file)
    found = {split for _, split in known.values()}
    splits.check_division(found, tuple(request.options.fractions), splits_file)
    numbers = _file_numbers(rows_to_ask(rows, key, known), pool)
    plan = plan_data_set(request.manifest, rows, key, known, request.options, numbers)
    _report_recognised(plan)
    return plan


def _key(request: Request) -> bytes:
    path = request.key_file or request.manifest.parent / deidentify.KEY_FILE_NAME
    deidentify.refuse_key_in(request.data_dir, path)
    key, created = deidentify.read_or_create_key(path)
    if created:
        say(f"made a new pseudonym key: {path} (keep it, and keep it private)")
    return key


def _file_numbers(rows: Sequence[Row], pool: WorkerPool) -> dict[int, str]:
    """Row -> PatientID of its file, where there is one."""
    root = Path("/")
    paths = [PurePosixPath(row.path.relative_to(root)) for row in rows]
    found = inspected(pool, root, paths, accept=True)
    return {row.number: composed(file.patient_id) for row, file in zip(rows, found, strict=True)}


def _report_recognised(plan: Plan) -> None:
    if not plan.recognised:
        return
    first = ", ".join(map(str, plan.recognised[:_MOST_ROWS]))
    more = len(plan.recognised) - _MOST_ROWS
    rows = f"{first} and {more} more" if more > 0 else first
    say(
        f"note: rows {rows}: patient_id differs from an earlier build, but the number without its "
        "zeros, or the file's PatientID, is the same (did a spreadsheet change it?); taken as the "
        "same patients",
    )


def _run(request: Request, pool: WorkerPool, tasks: Sequence[ShardTask]) -> Iterable[Shard]:
    if request.beam_runner:
        return run_on_beam(
            tasks,
            request.manifest.parent,
            request.beam_runner,
            request.beam_options,
            request.file_seconds,
        )
    results = pool.map(write_shard, tasks, ShardTask.after)
    total = sum(len(study.rows) for task in tasks for study in task.studies)
    return counted(results, "reading files", total, size=lambda shard: len(shard.digests))


def _is_up_to_date(final: Path, plan: Plan, pool: WorkerPool, overwrite: bool) -> bool:
    try:
        metadata = json.loads((final / "metadata.json").read_bytes())
        fingerprint, rejected = metadata["fingerprint"], metadata.get("rejected_rows", 0)
    except (OSError, ValueError, KeyError):
        fingerprint, rejected = None, 0
    # With splits.csv in place all its patients are known, so no split can change any more.
    same = fingerprint == plan.fingerprint(plan.assign(), _digests(plan, pool))
    if not same and not overwrite:
        raise UserError(
            f"{final}: holds a data set built from other sources or splits; "
            "use --overwrite to replace it, or another --data_dir"
        )
    # What could not be read then may be readable now, with another codec.
    return same and not (overwrite and rejected)


def _digests(plan: Plan, pool: WorkerPool) -> dict[int, tuple[bytes, bytes]]:
    chunks = [plan.studies[n : n + 32] for n in range(0, len(plan.studies), 32)]
    results = pool.map(digests_of_studies, chunks, _no_retry)
    digests: dict[int, tuple[bytes, bytes]] = {}
    for own in counted(results, "comparing files", len(plan.rows), size=len):
        digests |= own
    return digests


def _no_retry(task: tuple[Study, ...], lost: Lost) -> None:
    raise UserError(f"manifest row {lost.step}: its file cannot be read ({lost.reason})")
