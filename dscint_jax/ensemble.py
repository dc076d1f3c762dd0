"""What several runs say together: the mean of their probabilities; needs no JAX and no data set.

    python -m dscint_jax.ensemble runs/dscint runs/dscint_seed1 --out runs/ensemble

In: work directories after `dscint_jax.evaluate`, of several seeds or networks on the same images.
Out: a folder that `dscint_jax.compare` takes as a run: config.json, and metrics.json and
predictions.csv of the split. Runs on several folds have read other images each; they are averaged
on another data set (`--name`), which all of them have read.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dscint_jax.compare import RECORDS, Run, UnlikeError, check_alike, read_run
from dscint_jax.metrics.predictions import Predictions, predictions_text
from dscint_jax.metrics.scores import METRIC_NAMES, in_words, interval_in_words
from dscint_jax.metrics.summary import summarise
from tfds_builder.commandline.command import CommandParser
from tfds_builder.commandline.errors import UserError, run_command
from tfds_builder.commandline.files import read_json, write_json, write_text


def ensemble(
    workdirs: Sequence[Path], out: Path, *, split: str = "test", name: str = ""
) -> dict[str, Any]:
    """Averages the probabilities of runs, image by image, and measures what they say together.

    Thresholds and temperature are chosen on the validation images, where all runs have the same
    ones, and were evaluated on these with the same checkpoint and in the same way, too.

    Arguments and errors are those of `compare`, and:

    Args:
      out: folder to write; not a run's.

    Returns:
      What metrics.json holds.
    """
    if len(workdirs) < 2:
        raise UserError("one run is no ensemble; give two or more")
    if len({path.absolute() for path in workdirs}) != len(workdirs):
        raise UserError("a work directory is given twice; give each once")
    if any((out / name).exists() for name in ("checkpoints", "provenance.json")):
        raise UserError(f"--out {out} is a run; give another folder")
    runs = [read_run(workdir, Path(name) / split, RECORDS) for workdir in workdirs]
    together = _averaged(runs)
    place = Path("eval") / name / split
    first = read_json(workdirs[0] / place / "metrics.json")
    kept = ("records", "dataset_fingerprint", "protocol", "leakage", "data_set", "split")
    result = {
        # Thresholds are not chosen on the images that they are told of.
        **summarise(together, _validation(runs) if name or split == "test" else None),
        **{key: first.get(key) for key in kept},
        "test_time_augmentation": max(run.augmentation or "" for run in runs) or None,
        "members": [str(workdir) for workdir in workdirs],
    }
    models = " + ".join(sorted({run.config["model"] for run in runs}))
    config = {"model": f"{len(runs)} x {models}", "seed": 0, "runs": [run.config for run in runs]}
    write_json(out / "config.json", config)
    write_text(out / place / "predictions.csv", predictions_text(together))
    write_json(out / place / "metrics.json", result)
    return result


def _validation(runs: Sequence[Run]) -> Predictions | None:
    if not all((r.workdir / "eval/validation/predictions.csv").exists() for r in runs):
        return None
    found = [read_run(run.workdir, Path("validation"), RECORDS) for run in runs]
    if [(r.step, r.augmentation) for r in runs] != [(r.step, r.augmentation) for r in found]:
        return None
    try:
        return _averaged(found)
    # As those of folds, whose validation images are others.
    except UnlikeError:
        return None


def _averaged(runs: Sequence[Run]) -> Predictions:
    for run in runs[1:]:
        check_alike(runs[0], run)
    mean = np.mean([run.predictions.probabilities for run in runs], axis=0)
    return dataclasses.replace(runs[0].predictions, probabilities=mean, predicted=mean.argmax(1))


def main() -> None:
    """The command line."""
    parser = CommandParser(
        prog="python -m dscint_jax.ensemble",
        description="What evaluated runs say together: the mean of their probabilities.",
    )
    parser.add_argument("workdirs", metavar="RUN", nargs="+", type=Path, help="work directory")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.add_argument("--name", default="", help="of another data set than the one trained on")
    arguments = vars(parser.parse_args())
    result = ensemble(**arguments)
    print(f"{len(arguments['workdirs'])} runs together, {result['support']} {result['records']}")
    for metric in METRIC_NAMES:
        interval = interval_in_words(result["intervals"]["values"][metric])
        print(f"{metric:12} {in_words(result[metric])}   95 % interval {interval}")


if __name__ == "__main__":
    run_command(main)
