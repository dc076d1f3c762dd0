"""Trains, evaluates, exports and reports in folders of odd names, and holds that all come through.

    python -m tests.odd_places --out runs/odd_places

In: nothing, or a data set. Out: for each name a copy of the data set, a work directory and an
exported network, all in a folder of that name; and what became of them. The commands run in this
process, so that they start fast, and share what was compiled. Exit status 1 if one failed.
"""

import argparse
import contextlib
import io
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dscint_jax import export
from dscint_jax.command import run_command
from dscint_jax.evaluate import __main__ as evaluate_command
from dscint_jax.report import __main__ as report
from dscint_jax.run.checkpoint import complete_steps
from dscint_jax.training.train import train
from tests.kill_matrix import make_data
from tests.tiny import get_config
from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.places import read_path

NAMES = (
    *("plain", "fold [1]", "widths=[8,8]", "[", "]", "[!a]", "*", "**", "a?b", "{a,b}", "!(x)"),
    *("~", "$HOME", "%20", "%s", "#1", "a|b", "a:b", "C:", "zip:", "&", ";", "'q\"", "`id`", "<b>"),
    *("two\nlines", "tab\t", " a ", "-x", "--workdir", ".hidden", "x.", "@1", "a@b", "a+b", "="),
    *(
        "ü",
        "u\u0308",
        "日本語",
        "🦴",
        "\u202eevil",
        "x" * 200,
        "12",
        "1.orbax-checkpoint-tmp",
        "damaged",
    ),
)
STEPS = 4


def come_through(folder: Path, data_dir: Path) -> None:
    """Runs the four commands with all that they read and write below a folder.

    Raises:
      Exception: one of them failed, or left the run otherwise than it should be.
    """
    data, workdir, out = folder / "data", folder / "run", folder / "network.safetensors"
    shutil.copytree(data_dir, data)
    config = get_config()
    config = config.replaced({"data.dir": str(data), "steps": STEPS, "evaluate_every": 2})
    train(config, read_path(str(workdir)))
    with contextlib.redirect_stdout(io.StringIO()) as again:
        train(config, read_path(str(workdir)))
    assert "training is complete" in again.getvalue(), again.getvalue()
    _run(evaluate_command.main, "--workdir", workdir)
    _run(export.main, "--workdir", workdir, "--out", out)
    _run(report.main, "--workdir", workdir)
    files = [workdir / "eval/test/metrics.json", workdir / "report/index.html", out]
    for file in files:
        assert file.stat().st_size > 0, file
    assert max(complete_steps(workdir / "checkpoints")) == STEPS
    assert not (workdir / "damaged").exists()
    assert sorted(p.name for p in folder.iterdir()) == ["data", "network.safetensors", "run"]


def _run(main: Callable[[], None], *arguments: str | Path) -> None:
    before = sys.argv
    # As '--option=value', because a value may begin with a dash.
    pairs = zip(arguments[::2], arguments[1::2], strict=True)
    sys.argv = ["command", *(f"{option}={value}" for option, value in pairs)]
    try:
        main()
    finally:
        sys.argv = before


def main() -> int:
    """The command line."""
    parser = CommandParser(
        prog="python -m tests.odd_places",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, required=True, help="an empty folder for the runs")
    parser.add_argument("--data_dir", type=Path, help="data set (default: 24 phantoms are made)")
    parser.add_argument("--names", type=int, default=len(NAMES), help="how many of the names")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    data_dir = arguments.data_dir or make_data(arguments.out, patients=24)
    data_dir, failed = data_dir.absolute(), 0
    os.chdir(arguments.out)
    for n, name in enumerate(NAMES[: arguments.names]):
        # Every other one by a relative path, as people type them; but ~ alone is the home folder.
        folder = Path(name) if n % 2 and name != "~" else Path.cwd() / name
        begun, printed = time.monotonic(), io.StringIO()
        try:
            folder.mkdir()
            with contextlib.redirect_stdout(printed):
                come_through(folder, data_dir)
            said = "ok"
        # Whatever goes wrong is what is looked for.
        except (Exception, SystemExit) as error:
            failed += 1
            said = f"FAILED: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        print(f"{ascii(name)[:40]:42s} {time.monotonic() - begun:5.1f} s  {said}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
    print(f"{arguments.names - failed} of {arguments.names} come through")
    return 1 if failed else 0


if __name__ == "__main__":
    run_command(lambda: sys.exit(main()))
