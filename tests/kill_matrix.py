"""Kills trainings at random moments of every phase and holds that all end in the same bits.

    python -m tests.kill_matrix --kills 50 --seed 0 --out runs/kill_matrix

In: nothing, or a data set. Out: one undisturbed run and as many disturbed ones as the kills need,
each started again by the same command until it is complete, and a table of what every kill hit.
What a kill hit is read from the work directory once the process is dead. Started again, the
command goes on where it was.
"""

import argparse
import dataclasses
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from rich.console import Console
from rich.table import Table

from dscint_jax.command import run_command
from dscint_jax.run.checkpoint import UNFINISHED
from dscint_jax.run.trackers.json_lines import METRICS_FILE, read_metrics
from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import read_json, write_json

ROOT = Path(__file__).parent.parent

READING, COMPILATION, STEP, EVALUATION, SAVE = PHASES = (
    "start-up: imports, data",
    "start-up: restore, compilation",
    "step",
    "evaluation",
    "save",
)

KILLS_A_RUN = 5
"""Kills that one run suffers before it is let go to its end."""

LOOK_EVERY_S = 0.001
LIMIT_S = 600.0
"""How long one attempt may take before something is wrong."""

SETTINGS, KILLS, RESULTS = "settings.json", "kills.jsonl", "results.jsonl"


@dataclasses.dataclass(frozen=True)
class Training:
    """One work directory and the command that trains in it.

    Attributes:
      workdir: the directory.
      data_dir: the data set.
      steps, evaluate_every: of the config.
    """

    workdir: Path
    data_dir: Path
    steps: int
    evaluate_every: int

    @property
    def log(self) -> Path:
        """Where all that its attempts print goes."""
        return self.workdir.with_suffix(".log")

    def start(self) -> subprocess.Popen:
        """Starts the command, or starts it again."""
        self.workdir.mkdir(parents=True, exist_ok=True)
        command = [
            *(sys.executable, "-m", "dscint_jax.main", "--config", "configs/quickstart.py"),
            *("--workdir", str(self.workdir), f"--config.data.dir={self.data_dir}"),
            *("--config.data.pool=8", "--config.batch_size=16", "--config.keep_last=2"),
            *(f"--config.steps={self.steps}", f"--config.evaluate_every={self.evaluate_every}"),
            *("--config.log_every=1", "--config.optimizer.warmup_steps=10"),
        ]
        environment = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=ROOT
            )

    def attempts(self) -> int:
        """How many attempts have got as far as to record themselves."""
        path = self.workdir / "provenance.json"
        return len(read_json(path)) if path.exists() else 0

    def is_due(self, step: int) -> bool:
        """Whether the network is evaluated after a step."""
        return step % self.evaluate_every == 0 or step == self.steps

    def is_saving(self) -> bool:
        """Whether a checkpoint is being written, or was when the process died."""
        return any((self.workdir / "checkpoints").glob(UNFINISHED))


class Watch:
    """Tells what an attempt is at, by its files alone.

    Args:
      training: the attempt's.
      process: the attempt.
    """

    def __init__(self, training: Training, process: subprocess.Popen):
        self._training, self._process = training, process
        self._attempts, self._started = training.attempts(), time.monotonic()
        self._size, self._lines = 0, [dict[str, Any]()]
        self._path = training.workdir / METRICS_FILE

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Whether a condition came true before the attempt ended.

        Raises:
          UserError: neither happened.
        """
        while not condition():
            if self._process.poll() is not None:
                return False
            if time.monotonic() - self._started > LIMIT_S:
                self._process.kill()
                raise UserError(f"an attempt took longer than {LIMIT_S:.0f} s; see {self._log}")
            time.sleep(LOOK_EVERY_S)
        return True

    @property
    def _log(self) -> Path:
        return self._training.log

    def has_started(self) -> bool:
        """Whether the attempt has recorded itself, so that reading and imports are over."""
        return self._training.attempts() > self._attempts

    def last_line(self) -> dict[str, Any]:
        """The newest line of metrics, of this attempt or one before; empty if there is none."""
        size = self._path.stat().st_size if self._path.exists() else 0
        if size != self._size:
            self._size = size
            self._lines = read_metrics(self._training.workdir) or [{}]
        return self._lines[-1]

    def has_logged_beyond(self, step: int) -> bool:
        """Whether a step after that one was taken."""
        return self.last_line().get("step", 0) > step

    def is_evaluating(self) -> bool:
        """Whether a step is logged after which the network is evaluated, and not yet its scores."""
        line = self.last_line()
        return "loss" in line and self._training.is_due(line["step"])

    def resumed_at(self) -> int:
        """The step that a started attempt goes on from."""
        return read_json(self._training.workdir / "provenance.json")[-1]["start_step"]


@dataclasses.dataclass(frozen=True)
class Durations:
    """Seconds that each phase of the undisturbed run took at the most."""

    reading: float
    compilation: float
    step: float
    evaluation: float
    save: float

    def of(self, phase: str) -> float:
        """Of one of `PHASES`."""
        return dataclasses.astuple(self)[PHASES.index(phase)]


def run_undisturbed(training: Training) -> Durations:
    """Trains to the end and measures the phases."""
    clock = time.monotonic
    began, process = clock(), training.start()
    watch = Watch(training, process)
    watch.wait_for(watch.has_started)
    started = clock()
    watch.wait_for(lambda: watch.has_logged_beyond(0))
    stepping = clock()
    evaluation, save = [], []
    while watch.wait_for(lambda: watch.is_evaluating() or training.is_saving()):
        kind, over = (
            (save, lambda: not training.is_saving())
            if training.is_saving()
            else (evaluation, lambda: not watch.is_evaluating())
        )
        since = clock()
        watch.wait_for(over)
        kind.append(clock() - since)
    _check_ended(training, process)
    step = (clock() - stepping) / training.steps
    # The first evaluation is compiled; the others are as long as they are.
    return Durations(
        started - began,
        stepping - started,
        step,
        sorted(evaluation)[len(evaluation) // 2],
        max(save),
    )


def kill_at(training: Training, phase: str, durations: Durations, draw: random.Random) -> bool:
    """Starts an attempt and kills it in a phase; False if it was complete before."""
    process = training.start()
    watch = Watch(training, process)
    if phase != READING:
        if not watch.wait_for(watch.has_started):
            _check_ended(training, process)
            return False
        resumed = watch.resumed_at()
    if phase == STEP:
        steps = draw.randrange(1, 2 * training.evaluate_every)
        watch.wait_for(lambda: watch.has_logged_beyond(resumed + steps))
    if phase in (EVALUATION, SAVE):
        # The first within reach, or the one after it.
        for again in range(draw.randrange(1, 3)):
            if again:
                line = watch.last_line().get("step", 0)
                watch.wait_for(lambda line=line: watch.has_logged_beyond(line))
            watch.wait_for(
                training.is_saving
                if phase == SAVE
                else lambda: watch.has_logged_beyond(resumed) and watch.is_evaluating()
            )
    time.sleep(draw.uniform(0, durations.of(phase)))
    process.kill()
    if process.wait() < 0:
        return True
    _check_ended(training, process)
    return False


def phase_of_death(training: Training, attempts_before: int) -> tuple[str, int]:
    """What a killed process was at, and the last step that it logged, from what it left."""
    lines = read_metrics(training.workdir)
    last = lines[-1] if lines else {"step": 0}
    if training.attempts() == attempts_before:
        return READING, last["step"]
    resumed = read_json(training.workdir / "provenance.json")[-1]["start_step"]
    if training.is_saving():
        return SAVE, last["step"]
    if last["step"] <= resumed:
        return COMPILATION, last["step"]
    if "loss" in last and training.is_due(last["step"]):
        return EVALUATION, last["step"]
    return STEP, last["step"]


def finish(training: Training) -> None:
    """Starts the command once more and lets it end."""
    process = training.start()
    Watch(training, process).wait_for(lambda: False)
    _check_ended(training, process)


def difference(training: Training, undisturbed: Training) -> str:
    """In what a finished run differs from the undisturbed one; empty if in nothing."""
    if read_metrics(training.workdir) != read_metrics(undisturbed.workdir):
        return f"{METRICS_FILE} differs"
    pairs = itertools.zip_longest(_arrays(training), _arrays(undisturbed))
    for (name, array), (expected_name, expected) in pairs:
        same = name == expected_name and array.dtype == expected.dtype
        # Compared as bytes: a NaN is the same as itself.
        if not same or array.tobytes() != expected.tobytes():
            return f"{name} differs"
    left = [*training.workdir.glob(".*.part"), *(training.workdir / "checkpoints").glob(UNFINISHED)]
    if (training.workdir / "damaged").exists():
        left.append(training.workdir / "damaged")
    return f"{left[0].name} is left over" if left else ""


def _arrays(training: Training) -> Iterator[tuple[str, np.ndarray]]:
    """Parameters, statistics, averages and the optimizer's state of the last checkpoint."""
    folder = training.workdir.absolute() / "checkpoints" / str(training.steps)
    with ocp.StandardCheckpointer() as checkpointer:
        for item in sorted(path.name for path in folder.iterdir() if path.is_dir()):
            if item == "record":
                continue
            tree = checkpointer.restore(folder / item)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                yield item + jax.tree_util.keystr(path), np.asarray(leaf)


def _check_ended(training: Training, process: subprocess.Popen) -> None:
    if process.wait() != 0:
        lines = training.log.read_text(errors="replace").splitlines()
        raise UserError(
            f"a training ended by itself with status {process.returncode}: "
            f"{lines[-1] if lines else 'it said nothing'}; see {training.log}"
        )


class Matrix:
    """The kills of one folder: what is done, and what is to be done.

    Args:
      out: the folder.
      settings: what the kills depend on; others than those of before are refused.
    """

    def __init__(self, out: Path, settings: dict[str, Any]):
        self._out, self._settings = out, settings
        path = out / SETTINGS
        if path.exists() and (there := read_json(path)) != settings:
            name = next(n for n in settings if there.get(n) != settings[n])
            raise UserError(
                f"--out {out} holds kills with --{name} {there.get(name)}, not {settings[name]}; "
                "use another folder"
            )
        write_json(path, settings)

    def training(self, name: str) -> Training:
        """The training in one of the folder's work directories."""
        return Training(
            self._out / name,
            Path(self._settings["data_dir"]),
            self._settings["steps"],
            self._settings["evaluate_every"],
        )

    def run(self, kills: int) -> bool:
        """Kills until there are as many; whether all runs ended in the same bits."""
        undisturbed, durations = self._undisturbed()
        while True:
            done, results = self._read(KILLS), self._read(RESULTS)
            number = len(results)
            of_run = [kill for kill in done if kill["run"] == number]
            if len(done) >= kills and not of_run:
                break
            training = self.training(f"run_{number:02d}")
            more = len(of_run) < KILLS_A_RUN and len(done) < kills
            # A run may be complete before it can be killed.
            if more and self._kill(training, number, len(done), durations):
                continue
            finish(training)
            found = difference(training, undisturbed)
            self._append(RESULTS, {"run": number, "kills": len(of_run), "difference": found})
            print(f"run {number}: {found or 'the same bits'} after {len(of_run)} kills", flush=True)
        return not any(result["difference"] for result in self._read(RESULTS))

    def table(self) -> Table:
        """How many kills hit each phase, and at which steps."""
        table = Table(title="what the kills hit")
        for column, justify in (("phase", "left"), ("kills", "right"), ("after steps", "left")):
            table.add_column(column, justify=justify)
        done = self._read(KILLS)
        for phase in PHASES:
            steps = sorted(kill["step"] for kill in done if kill["phase"] == phase)
            table.add_row(phase, str(len(steps)), " ".join(map(str, steps)))
        return table

    def _undisturbed(self) -> tuple[Training, Durations]:
        training, path = self.training("undisturbed"), self._out / "durations.json"
        if not path.exists():
            print("an undisturbed run", flush=True)
            # One that this command did not see to its end is not measured.
            shutil.rmtree(training.workdir, ignore_errors=True)
            write_json(path, dataclasses.asdict(run_undisturbed(training)))
        durations = Durations(**read_json(path))
        whole = durations.reading + durations.compilation + durations.step * training.steps
        print(f"undisturbed: {whole:.0f} s, {training.steps} steps", flush=True)
        return training, durations

    def _kill(self, training: Training, run: int, number: int, durations: Durations) -> bool:
        draw = random.Random(f"{self._settings['seed']}/{number}")
        # Every phase in turn, in an order of its own each time.
        turn = number // len(PHASES)
        order = random.Random(f"{self._settings['seed']}/turn {turn}").sample(PHASES, len(PHASES))
        aim, before = order[number % len(PHASES)], training.attempts()
        if not kill_at(training, aim, durations, draw):
            return False
        phase, step = phase_of_death(training, before)
        kill = {"run": run, "aim": aim, "phase": phase, "step": step}
        self._append(KILLS, kill)
        print(f"kill {number + 1}: run {run}, in {phase}, after step {step}", flush=True)
        return True

    def _read(self, name: str) -> list[dict[str, Any]]:
        path = self._out / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def _append(self, name: str, value: dict[str, Any]) -> None:
        with (self._out / name).open("a") as file:
            file.write(json.dumps(value) + "\n")


def make_data(out: Path, patients: int) -> Path:
    """A small cohort of phantoms as a data set, made once."""
    for module, *arguments in (
        ("tfds_builder.phantom", "--out", out / "phantom", "--patients", patients, "--seed", 5),
        ("tfds_builder.build", "--manifest", out / "phantom/manifest.csv", "--data_dir", out / "d"),
    ):
        command = [sys.executable, "-m", module, *map(str, arguments)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{module} failed: {done.stderr.strip()}")
    return out / "d"


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m tests.kill_matrix",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Exit status: 0 if all runs ended in the same bits, 1 if not, 2 bad input.",
    )
    parser.add_argument("--kills", type=int, default=50, help="how many (default: 50)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default: 0)")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--data_dir", type=Path, help="data set of views; made if not given")
    parser.add_argument("--steps", type=int, default=200, help="of a run (default: 200)")
    parser.add_argument(
        "--evaluate_every", type=int, default=10, help="steps between checkpoints (default: 10)"
    )
    arguments = parser.parse_args()
    if arguments.kills < 1:
        raise UserError(f"--kills {arguments.kills}; it must be at least 1")
    out = arguments.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    data_dir = (arguments.data_dir or make_data(out, patients=60)).absolute()
    matrix = Matrix(
        out,
        {
            "seed": arguments.seed,
            "steps": arguments.steps,
            "evaluate_every": arguments.evaluate_every,
            "data_dir": str(data_dir),
        },
    )
    same = matrix.run(arguments.kills)
    Console(width=100).print(matrix.table())
    if not same:
        print(f"{arguments.kills} kills, and not all ended in the same bits: see {out / RESULTS}")
        sys.exit(1)
    print(f"{arguments.kills} kills, all ended in the same bits")


if __name__ == "__main__":
    run_command(main)
