"""Makes a whole cohort of synthetic patients in one folder, restartable, on several processes.

In: folder, number of patients, seed, protocol, workers. Out: the files of `writer`, the manifest
last. A study's own table of lesions makes lesions.csv without a second simulation.
"""

import collections
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from threadpoolctl import threadpool_limits

from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import SUFFIX, remove_parts, write_bytes
from tfds_builder.phantom import writer
from tfds_builder.phantom.camera.protocol import Protocol
from tfds_builder.phantom.camera.scan import STANDARD, Case, sample_case, simulate
from tfds_builder.tables import csv_text
from tfds_builder.workers import Announce, Lost, WorkerPool

MOST_PATIENTS = 100_000
LARGEST_SEED = 2**63 - 1

_MEMORY_BYTES = 2**40  # No limit: nothing here was made elsewhere.

_Task = tuple[Path, int, int, Protocol]


@dataclasses.dataclass(frozen=True)
class Made:
    """How many patients were simulated in this run, and all the cohort's studies by class."""

    patients: int
    studies: dict[str, int]


def make_patient(folder: Path, seed: int, patient: int, protocol: Protocol = STANDARD) -> None:
    """Writes all studies of one patient."""
    case = sample_case(seed, patient, protocol)
    for study in range(len(case.dates)):
        writer.write_scan(folder, simulate(seed, patient, study, protocol, case), case)


def make_cohort(
    folder: Path,
    patients: int,
    seed: int,
    workers: int,
    report: Callable[[int, int], None],
    protocol: Protocol = STANDARD,
) -> Made | None:
    """Makes what is missing of the cohort; None where it is complete already.

    Args:
      folder: new, empty, or begun with the same patients, seed and protocol.
      patients, seed, protocol: what the cohort is a function of.
      workers: processes; the files do not depend on it.
      report: gets (patients done, patients) after each patient.

    Raises:
      UserError: bad values, or the folder holds anything else.
    """
    check_values(patients, seed, workers)
    parameters = writer.parameters_text(patients, seed, protocol)
    _check_folder(folder, parameters)
    try:
        cases = [sample_case(seed, patient, protocol) for patient in range(patients)]
        missing = [p for p, case in enumerate(cases) if not _is_made(folder, case, p)]
        rows = [r for p, case in enumerate(cases) for r in writer.manifest_rows(case, seed, p)]
        manifest = csv_text(writer.MANIFEST_FIELDS, rows).encode()
        last = folder / "manifest.csv"
        written = (folder / "lesions.csv").is_file() and last.is_file()
        if not missing and written and last.read_bytes() == manifest:
            return None
        for place in (folder, *(folder / part for part in writer.FOLDERS)):
            place.mkdir(parents=True, exist_ok=True)
            remove_parts(place)
        write_bytes(folder / "phantom.json", parameters)
        key = f"{writer.pseudonym_key(seed)}\n".encode()
        write_bytes(folder / "pseudonym.key", key)
        before = patients - len(missing)
        tasks = [(folder, seed, patient, protocol) for patient in missing]
        _make_all(tasks, workers, lambda done: report(before + done, patients))
        studies = [s for p, case in enumerate(cases) for s in writer.study_files(case, p)]
        lesions = writer.joined_lesions(folder, [s.lesions for s in studies if s.lesions])
        write_bytes(folder / "lesions.csv", lesions)
        write_bytes(last, manifest)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: {error.strerror or error}") from error
    return Made(len(missing), dict(collections.Counter(row[2] for row in rows)))


def _make_all(tasks: list[_Task], workers: int, report: Callable[[int], None]) -> None:
    """Calls `make_patient` for each of the tasks, and `report` with how many are done."""
    # Processes take longer to start than a few patients to make.
    if workers == 1 or len(tasks) < 4:
        # As in a worker: how many threads share a sum may change its last bits.
        with threadpool_limits(1, "blas"):
            for done, task in enumerate(tasks, 1):
                make_patient(*task)
                report(done)
        return
    with WorkerPool(
        workers, step_seconds=math.inf, memory_bytes=_MEMORY_BYTES, preload=(__name__,)
    ) as pool:
        for done, _ in enumerate(pool.map(_make_in_worker, tasks, _give_up), 1):
            report(done)


def _make_in_worker(task: _Task, _: Announce) -> None:
    make_patient(*task)


def _give_up(task: _Task, lost: Lost) -> NoReturn:
    raise UserError(
        "a worker process was ended from outside (out of memory?): run the same command again, "
        "perhaps with fewer --workers; a cohort goes on where it stopped"
    )


def check_values(patients: int, seed: int, workers: int) -> None:
    """Raises UserError where a cohort cannot have these."""
    if not 1 <= patients <= MOST_PATIENTS:
        raise UserError(f"--patients must be between 1 and {MOST_PATIENTS}, not {patients}")
    if not 0 <= seed <= LARGEST_SEED:
        raise UserError(f"--seed must be between 0 and {LARGEST_SEED}, not {seed}")
    if not 1 <= workers <= 1024:
        raise UserError(f"--workers must be between 1 and 1024, not {workers}")


def _check_folder(folder: Path, parameters: bytes) -> None:
    """Refuses a folder that is not empty and was not begun with the same parameters."""
    try:
        if not folder.exists():
            return
        if not folder.is_dir():
            raise UserError(f"--out {folder} is not a folder: name a new or an empty one")
        begun = folder / "phantom.json"
        if begun.is_file():
            if begun.read_bytes() != parameters:
                raise UserError(
                    f"--out {folder} holds a cohort of other parameters (see phantom.json there): "
                    "name another folder or use its parameters"
                )
        elif any(_is_foreign(path) for path in folder.iterdir()):
            raise UserError(f"--out {folder} holds other files: name a new or an empty folder")
    except OSError as error:
        raise UserError(f"--out {folder}: {error.strerror or error}") from error


def _is_foreign(path: Path) -> bool:
    """True for anything that a run stopped before its first file cannot have left."""
    if path.name in writer.FOLDERS and path.is_dir():
        return any(path.iterdir())
    return not (path.name.startswith(".phantom.json.") and path.name.endswith(SUFFIX))


def _is_made(folder: Path, case: Case, patient: int) -> bool:
    studies = writer.study_files(case, patient)
    return all((folder / name).is_file() for files in studies for name in files.present)
