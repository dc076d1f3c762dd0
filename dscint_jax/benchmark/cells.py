"""Runs the cells of a benchmark, each in processes of its own, and goes on where it was stopped.

In: a plan and a folder. Out: a work directory a cell, below `cells/`. Several processes may work on
the same folder, such as the tasks of a SLURM array: a cell is claimed before it is run.
"""

import contextlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import filelock

from dscint_jax.benchmark.plan import Benchmark, Cell
from dscint_jax.config import MAY_CHANGE, fields_of, read_config
from dscint_jax.run import lock
from dscint_jax.run.provenance import is_complete
from dscint_jax.run.trackers.json_lines import read_metrics
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import write_json, write_text
from tfds_builder.commandline.progress import ProgressBar

FAILURE, CONFIG, LOG, CLAIM = "failure.txt", "benchmark.json", "log.txt", ".claim"
"""In a cell's folder: why it failed, what it is asked to train, what its processes print, whose."""

POLL_S = 0.5
WAIT_S = 5.0
"""Between two looks at cells that other processes have."""

STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)


def folder_of(workdir: Path, cell: Cell) -> Path:
    """A cell's work directory."""
    return workdir / "cells" / cell.place


def failure_of(workdir: Path, cell: Cell) -> str | None:
    """Why a cell failed; None where it did not."""
    path = folder_of(workdir, cell) / FAILURE
    return path.read_text().strip() if path.exists() else None


def is_trained(workdir: Path, cell: Cell) -> bool:
    """Whether a cell's training is complete; its checkpoints may be gone since."""
    return is_complete(folder_of(workdir, cell))


def is_tested(workdir: Path, cell: Cell) -> bool:
    """Whether a cell's test split was evaluated."""
    return (folder_of(workdir, cell) / "eval" / "test" / "metrics.json").exists()


def validation_score(workdir: Path, cell: Cell) -> float | None:
    """The best F-1 on the validation split; None where the training is not complete, or failed."""
    if not is_trained(workdir, cell) or failure_of(workdir, cell) is not None:
        return None
    lines = read_metrics(folder_of(workdir, cell))
    return max((line["validation_f1"] for line in lines if "validation_f1" in line), default=None)


def chosen_rate(plan: Benchmark, workdir: Path, name: str) -> float | None:
    """The learning rate of a network or an ablation; None where not all were tried yet.

    Of equal scores the first counts. Where all trials failed, the first is taken: its cells tell.
    """
    trials = plan.trials(plan.network_of(name))
    if len(trials) == 1:
        return trials[0].learning_rate
    scores = []
    for cell in trials:
        if not is_trained(workdir, cell) and failure_of(workdir, cell) is None:
            return None
        score = validation_score(workdir, cell)
        scores.append(-1.0 if score is None else score)
    return trials[scores.index(max(scores))].learning_rate


def open_cells(plan: Benchmark, workdir: Path) -> list[tuple[Cell, bool]]:
    """The cells that are still to be run, and whether their test split is read.

    They are sorted by seed, then by network: so a benchmark that is stopped has compared something.
    """
    found: list[tuple[Cell, bool]] = []
    names = [*plan.networks, *plan.ablations]
    for name in names:
        rate = chosen_rate(plan, workdir, name)
        if rate is not None:
            found += [(c, True) for c in plan.cells(name, rate) if not is_tested(workdir, c)]
        elif name in plan.networks:
            found += [(c, False) for c in plan.trials(name) if not is_trained(workdir, c)]
    found.sort(key=lambda one: (plan.seeds.index(one[0].seed), names.index(one[0].name), one[1]))
    return [(cell, test) for cell, test in found if failure_of(workdir, cell) is None]


def all_cells(plan: Benchmark, workdir: Path) -> list[Cell]:
    """Every cell that the plan has, once, in the order of its networks.

    Those of a rate not yet chosen stand under the first one.
    """
    cells: list[Cell] = []
    for name in (*plan.networks, *plan.ablations):
        rate = chosen_rate(plan, workdir, name) or plan.learning_rates[0]
        cells += plan.cells(name, rate)
        cells += plan.trials(name) if name in plan.networks else ()
    return list(dict.fromkeys(cells))


def run_cells(plan: Benchmark, workdir: Path) -> None:
    """Runs what is open; a cell that fails is noted and the others go on.

    On SIGTERM, SIGHUP, SIGUSR1 or Ctrl-C the training that runs saves a checkpoint first.

    Raises:
      SystemExit: a signal came; the status is 128 and its number.
      UserError: a cell's folder holds the run of another plan.
    """
    cells, steps = all_cells(plan, workdir), int(plan.base.steps)
    for cell in cells:
        check_plan(plan, workdir, cell)
    with (
        ProgressBar("benchmark", total=len(cells) * steps, done=None, noun="steps") as bar,
        Stopping() as stopping,
    ):
        while todo := open_cells(plan, workdir):
            done = steps * sum(
                is_trained(workdir, cell) or failure_of(workdir, cell) is not None
                for cell in all_cells(plan, workdir)
            )
            for cell, test in todo:
                folder = folder_of(workdir, cell)
                with _claimed(folder) as mine:
                    if mine:
                        _run(plan, folder, cell, test, bar, done, stopping)
                        # Others may have run meanwhile what stands open in the list.
                        break
            else:
                bar.update(done, "other processes have what is left")
                time.sleep(WAIT_S)
            stopping.check()


def check_plan(plan: Benchmark, workdir: Path, cell: Cell) -> None:
    """Raises UserError where a cell's folder holds the run of another plan."""
    path = folder_of(workdir, cell) / CONFIG
    if not path.exists():
        return
    for (name, _, old), (_, _, new) in zip(
        fields_of(read_config(path)), fields_of(plan.config(cell)), strict=True
    ):
        if old != new and name not in MAY_CHANGE:
            raise UserError(
                f"{workdir} holds another benchmark: config.{name} of {cell} is {old} there and "
                f"{new} here; use another --workdir"
            )


def commands_of(folder: Path) -> list[list[str]]:
    """The commands that train a cell, by CONFIG in its folder, and read its test split."""
    python, where = [sys.executable, "-m"], ["--workdir", str(folder)]
    training = ["--config", str(folder / CONFIG), "--distributed", "off"]
    return [
        [*python, "dscint_jax.main", *where, *training],
        [*python, "dscint_jax.evaluate", *where, "--split", "test"],
    ]


@contextlib.contextmanager
def _claimed(folder: Path) -> Iterator[bool]:
    """Whether this process may run a cell; a process that is killed gives its claim back."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as claim:
        try:
            claim.enter_context(filelock.FileLock(folder / CLAIM).acquire(timeout=0))
            # A training may outlive the process that claimed its cell.
            lock.check_free(folder)
            mine = True
        except (filelock.Timeout, UserError):
            mine = False
        yield mine


def _run(
    plan: Benchmark,
    folder: Path,
    cell: Cell,
    test: bool,
    bar: ProgressBar,
    done: int,
    stopping: "Stopping",
) -> None:
    write_json(folder / CONFIG, plan.config(cell).to_dict())
    bar.say(f"{cell}")
    for words in commands_of(folder)[: 1 + test]:
        with (folder / LOG).open("ab") as log:
            start = log.tell()
            process = subprocess.Popen(
                words, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
            stopping.watch(process)
            while process.poll() is None:
                lines = read_metrics(folder)
                bar.update(done + (lines[-1]["step"] if lines else 0), str(cell))
                time.sleep(POLL_S)
        stopping.check()
        if process.returncode:
            reason = _reason(process.returncode, folder / LOG, start)
            write_text(folder / FAILURE, f"{reason}\n")
            bar.say(f"failed: {cell}: {reason}")
            return


def _reason(status: int, log: Path, start: int) -> str:
    """What a process says of its end."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"ended by {name}" + " (out of memory?)" * (name == "SIGKILL")
    text = log.read_bytes()[start:].decode(errors="replace").strip()
    errors = [line for line in text.splitlines() if line.startswith("error:")]
    last = (errors or text.splitlines() or [""])[-1]
    return last.removeprefix("error: ") or f"ended with status {status}"


def retry_failed(workdir: Path) -> None:
    """Has cells that failed run again."""
    for path in (workdir / "cells").rglob(FAILURE):
        path.unlink()


class Stopping:
    """A context manager that passes signals on to the processes that run.

    They should be started in sessions of their own: a terminal sends Ctrl-C to all of its session,
    and a training that gets a second one ends without saving.
    """

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[bytes]] = []
        self._received: int | None = None

    def __enter__(self) -> "Stopping":
        self._earlier = {number: signal.signal(number, self._pass_on) for number in STOPS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """Takes a process that runs now; a signal that came before it is passed on at once."""
        self._processes.append(process)
        if self._received is not None:
            process.send_signal(self._received)

    def check(self) -> None:
        """Ends this process if a signal came."""
        if self._received is not None:
            raise SystemExit(128 + self._received)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._received = number
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)
