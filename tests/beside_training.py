"""Evaluates checkpoints of a training while it runs, and holds that no evaluation fails.

    python -m tests.beside_training --evaluations 200 --whole 4 --out runs/beside_training

In: nothing, or a data set. Out: a training of the tiny network that validates, and so replaces a
checkpoint, every other step; beside it as many restores of 'best' and 'latest' in turn as are asked
for, each from a new reader as an evaluator has it, of which some are whole processes of
`dscint_jax.evaluate`; and what became of them. Exit status 1 if one failed or spoke of damage.
"""

import argparse
import collections
import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax

from dscint_jax.command import run_command
from dscint_jax.input_pipeline import open_dataset
from dscint_jax.mesh import data_mesh, replicated_shapes
from dscint_jax.run.checkpoint import Checkpointer, complete_steps
from dscint_jax.training.experiment import make_experiment
from dscint_jax.training.state import evaluated_items
from tests.kill_matrix import make_data
from tests.tiny import get_config
from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.errors import UserError

ROOT = Path(__file__).parent.parent

START_S, END_S = 300, 120
STEPS = 1_000_000


def training(data_dir: Path, workdir: Path) -> list[str]:
    """The command that trains, for longer than anybody evaluates."""
    return [
        *(sys.executable, "-m", "dscint_jax.main", "--config", str(ROOT / "tests" / "tiny.py")),
        *("--workdir", str(workdir), f"--config.data.dir={data_dir}", f"--config.steps={STEPS}"),
        *("--config.evaluate_every=2", "--config.log_every=1000", "--config.trackers=()"),
    ]


def wait_for_checkpoint(trainer: subprocess.Popen, workdir: Path) -> None:
    """Returns once there is a checkpoint.

    Raises:
      UserError: the training has ended before.
    """
    deadline = time.monotonic() + START_S
    while not complete_steps(workdir / "checkpoints"):
        if trainer.poll() is not None or time.monotonic() > deadline:
            raise UserError(f"{workdir}: the training saved no checkpoint; see training.log")
        time.sleep(0.1)


def restore(workdir: Path, which: str, shapes: tuple) -> tuple[int, str]:
    """Restores in this process as an evaluator does; the step, and what was printed."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        reader = Checkpointer(workdir, read_only=True)
        step, *_ = reader.restore_first(which, evaluated_items(*shapes))
        reader.close()
    return step, printed.getvalue()


def outcome(workdir: Path, which: str, shapes: tuple, whole: bool) -> str:
    """What became of one evaluation: 'restored', 'chose anew', or how it failed."""
    if whole:
        words = [
            "-m",
            "dscint_jax.evaluate",
            "--workdir",
            str(workdir),
            "--checkpoint",
            which,
        ]
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=600
        )
        failed, printed = done.returncode != 0, done.stdout + done.stderr
    else:
        try:
            printed, failed = restore(workdir, which, shapes)[1], False
        except UserError as error:
            printed, failed = str(error), True
    if failed:
        return f"FAILED: {printed.strip().splitlines()[-1]}"
    if "damaged" in printed:
        return "SPOKE OF DAMAGE"
    return "chose anew" if "replaced meanwhile" in printed else "restored"


def main() -> int:
    """The command line."""
    parser = CommandParser(
        prog="python -m tests.beside_training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--evaluations", type=int, default=200, help="how many (default: 200)")
    parser.add_argument("--whole", type=int, default=4, help="of them whole processes (default: 4)")
    parser.add_argument("--out", type=Path, required=True, help="an empty folder for the run")
    parser.add_argument("--data_dir", type=Path, help="data set (default: 24 phantoms are made)")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    data_dir = (arguments.data_dir or make_data(arguments.out, patients=24)).absolute()
    workdir = arguments.out / "run"
    config = get_config()
    classes = open_dataset(data_dir, config.data.records).info.features["label"].names
    experiment = make_experiment(config, (1,) * len(classes))
    like = experiment.state_shapes
    shapes = replicated_shapes((like.params, like.batch_stats), data_mesh())
    outcomes: collections.Counter[str] = collections.Counter()
    with (arguments.out / "training.log").open("w") as log:
        trainer = subprocess.Popen(
            training(data_dir, workdir),
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env={**os.environ, "XLA_FLAGS": ""},
        )
        try:
            wait_for_checkpoint(trainer, workdir)
            first, begun = max(complete_steps(workdir / "checkpoints")), time.monotonic()
            every = arguments.evaluations // max(arguments.whole, 1)
            for n in range(arguments.evaluations):
                whole = arguments.whole > 0 and n % every == every - 1
                outcomes[outcome(workdir, ("best", "latest")[n % 2], shapes, whole)] += 1
            last, seconds = max(complete_steps(workdir / "checkpoints")), time.monotonic() - begun
            alive = trainer.poll() is None
        finally:
            trainer.send_signal(signal.SIGTERM)
            status = trainer.wait(END_S)
    damaged = (workdir / "damaged").exists()
    for what, count in outcomes.most_common():
        print(f"{count:5d} {what}")
    print(
        f"{(last - first) // 2} checkpoints were saved meanwhile, in {seconds:.0f} s; the training "
        f"{'ran on' if alive else 'had ended'}, exit status {status}; "
        f"{'some were' if damaged else 'none was'} set aside as damaged; left: "
        f"{', '.join(map(str, complete_steps(workdir / 'checkpoints')))}"
    )
    failed = [what for what in outcomes if what.isupper() or what.startswith("FAILED")]
    return 1 if failed or damaged or not alive or status else 0


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    run_command(lambda: sys.exit(main()))
