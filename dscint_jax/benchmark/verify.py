"""Whether published results hold: their files, their arithmetic, and one cell run again.

In: a results.json with its folder. Out: what was checked, in
words, or an error that says what does not hold.
"""

import shutil
import statistics
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from dscint_jax.benchmark.cells import CONFIG, commands_of
from dscint_jax.benchmark.results import (
    COMPLETE,
    STACK,
    check_files,
    metrics_of,
    named,
    place_of,
    sha256,
)
from dscint_jax.config import read_config
from dscint_jax.input_pipeline import fingerprint_of
from dscint_jax.metrics.scores import METRIC_NAMES, in_words
from dscint_jax.run.provenance import attempts_of
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import read_json, write_json
from tfds_builder.commandline.progress import say, show

SPREADS = 3.0
"""Standard deviations over the seeds that a cell of another machine may be off."""


def verify(path: Path, cell: str | None, data_dir: Path, workdir: Path) -> None:
    """Checks a results.json and runs one of its cells again.

    Args:
      path: of results.json.
      cell: NETWORK/CONDITION/SEED; None: the first that is complete.
      data_dir: the data set.
      workdir: where the cell is run; what is there is removed.

    Raises:
      UserError: a file was changed, tables do not follow from predictions, the cell is not there,
        or it came out otherwise.
    """
    results, folder = read_json(path), path.parent
    try:
        check_files(results, folder)
        complete = {named(one): one for one in results["cells"] if one["status"] == COMPLETE}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is no results.json of a benchmark ({error!r})") from None
    say(f"files and tables: as they were written ({len(complete)} cells)")
    if not complete:
        raise UserError(f"{path} has no complete cell to run again")
    chosen = complete.get(cell or next(iter(complete)))
    if chosen is None:
        raise UserError(f"--cell {cell}: there are {', '.join(complete)}")
    _run_again(chosen, folder, data_dir, workdir)
    _compare(chosen, results, workdir)


def _run_again(cell: Mapping[str, Any], folder: Path, data_dir: Path, workdir: Path) -> None:
    config = read_config(folder / place_of(cell) / "config.json")
    if fingerprint_of(data_dir, config.data.records) != cell["dataset_fingerprint"]:
        raise UserError(
            f"--data_dir {data_dir} is another data set than that of the results (fingerprint "
            f"{cell['dataset_fingerprint'][:12]}); give that one"
        )
    # What an earlier verification left would be taken for this one's.
    shutil.rmtree(workdir, ignore_errors=True)
    config = config.replaced({"data.dir": str(data_dir.absolute())})
    write_json(workdir / CONFIG, config.to_dict())
    say(f"running {named(cell)} again in {workdir}")
    for words in commands_of(workdir):
        if status := subprocess.run(words).returncode:
            raise UserError(f"{named(cell)} failed with status {status}; see above")


def _compare(cell: Mapping[str, Any], results: Mapping[str, Any], workdir: Path) -> None:
    here = attempts_of(workdir)[-1]
    told = {**cell["stack"], "git": cell["git"]}
    # Another version of the toolkit may round otherwise, as another library does.
    other = [name for name in (*STACK, "git") if here.get(name) != told[name]]
    found = metrics_of(workdir)
    predictions = (workdir / "eval/test/predictions.csv").read_bytes()
    if sha256(predictions) == cell["sha256"]["predictions"]:
        say(f"{named(cell)}: reproduced bit for bit ({len(predictions)} bytes of predictions)")
        return
    if not other:
        raise UserError(
            f"{named(cell)}: other predictions with the same code, stack, device and data; "
            f"accuracy {in_words(found['accuracy'])} here, {cell['metrics']['accuracy']:.4f} in "
            "the results"
        )
    table = Table("", "published", "now", "mean of the seeds", "SD", title=named(cell))
    failed, judged = [], False
    for name in METRIC_NAMES:
        seeds = [
            one["metrics"][name]
            for one in results["cells"]
            if one["status"] == COMPLETE
            and (one["name"], one["condition"]) == (cell["name"], cell["condition"])
            and one["metrics"][name] is not None
        ]
        value, mean, spread = found[name], None, None
        if len(seeds) > 1:
            judged, mean, spread = True, statistics.mean(seeds), statistics.stdev(seeds)
            if value is None or abs(value - mean) > SPREADS * spread:
                failed.append(
                    f"{named(cell)}: {name} is {in_words(value)} here and {mean:.4f} ± "
                    f"{spread:.4f} in the results"
                )
        table.add_row(name, *map(in_words, (cell["metrics"][name], value, mean, spread)))
    show(table)
    if failed:
        raise UserError(failed[0])
    differing = ", ".join(
        f"commit ({_short(told['git'])} then, {_short(here['git'])} now)" if name == "git" else name
        for name in other
    )
    verdict = (
        f"reproduced within {SPREADS:g} standard deviations over the seeds"
        if judged
        else "cannot be judged: one seed"
    )
    say(f"{named(cell)}: {verdict}; not the same bits, and not the same {differing}")


def _short(commit: str) -> str:
    """A commit as it is shown: what stands behind its 40 digits, such as '+changes', stays."""
    return commit[:7] + commit[40:]
