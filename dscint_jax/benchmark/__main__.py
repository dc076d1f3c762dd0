"""The command line of the benchmark.

    python -m dscint_jax.benchmark --config configs/benchmark.py:cpu --workdir runs/benchmark/cpu

In: a plan and a data set, or results to verify. Out: a work directory a run, and the results.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dscint_jax.benchmark.cells import Stopping, retry_failed, run_cells
from dscint_jax.benchmark.page import page_text
from dscint_jax.benchmark.plan import read_benchmark
from dscint_jax.benchmark.results import FAILED, OPEN, RESULTS_FILE, collect
from dscint_jax.benchmark.verify import verify
from dscint_jax.command import run_command
from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import write_text
from tfds_builder.commandline.progress import say

PAGE_FILE = "README.md"


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.benchmark",
        description="Compare networks: train and test every one by one plan, or prove results. "
        "Started again, it goes on; started several times at once, the processes share the work.",
    )
    parser.add_argument(
        "--config",
        default="configs/benchmark.py:cpu",
        metavar="FILE:SIZE",
        help="the plan (default: configs/benchmark.py:cpu; or smoke, headline, paper)",
    )
    parser.add_argument(
        "--workdir", type=Path, help="where the runs go; their results go to results/ in it"
    )
    parser.add_argument("--data_dir", type=Path, help="data set, if not the one the config names")
    parser.add_argument(
        "--devices",
        metavar="I,J,...",
        help="GPUs of this machine, such as 0,1,2,3: on each, one run at a time",
    )
    parser.add_argument("--retry", action="store_true", help="run again what failed")
    parser.add_argument(
        "--collect", action="store_true", help="run nothing: only write the results so far"
    )
    parser.add_argument(
        "--verify", type=Path, metavar="results.json", help="check results, and run one cell again"
    )
    parser.add_argument("--cell", help="of --verify: NETWORK/CONDITION/SEED (default: the first)")
    arguments = parser.parse_args()
    if arguments.verify:
        if arguments.data_dir is None:
            raise UserError("--data_dir is missing: where the data set of the results lies")
        place = arguments.workdir or Path("runs/benchmark/verify")
        name = (arguments.cell or "first").replace("/", "_")
        verify(arguments.verify, arguments.cell, arguments.data_dir, place / name)
        return
    if arguments.workdir is None:
        raise UserError("--workdir is missing, such as --workdir runs/benchmark/cpu")
    plan = read_benchmark(arguments.config, arguments.data_dir)
    if arguments.retry:
        retry_failed(arguments.workdir)
    if not arguments.collect:
        if arguments.devices:
            _run_on(arguments.devices.split(","), arguments)
        else:
            run_cells(plan, arguments.workdir)
    out = arguments.workdir / "results"
    results = collect(plan, arguments.workdir, out)
    write_text(out / PAGE_FILE, page_text(results))
    states = [cell["status"] for cell in results["cells"]]
    say(f"{out / RESULTS_FILE}: {len(states)} cells, {states.count(FAILED)} failed")
    if OPEN in states or FAILED in states:
        # What is missing is in the table; who asks for the whole must not take this for it.
        sys.exit(0 if arguments.collect else 1)


def _run_on(devices: Sequence[str], arguments: argparse.Namespace) -> None:
    """Has one process a GPU run what is open; they share the cells."""
    words = [sys.executable, "-m", "dscint_jax.benchmark", "--config", arguments.config]
    words += ["--workdir", str(arguments.workdir)]
    if arguments.data_dir:
        words += ["--data_dir", str(arguments.data_dir)]
    with Stopping() as stopping:
        processes = []
        for device in devices:
            own = {**os.environ, "CUDA_VISIBLE_DEVICES": device}
            processes.append(subprocess.Popen(words, env=own, start_new_session=True))
            stopping.watch(processes[-1])
        for process in processes:
            process.wait()
        stopping.check()


if __name__ == "__main__":
    run_command(main)
