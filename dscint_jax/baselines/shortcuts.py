"""How far shortcuts go on a data set: is the class told by something trivial?

In: a data set. Out: a table of what three things alone tell of the class of patients that nothing
was fitted on: thumbnails under logistic regression, the neck under a small network, the facts of
the acquisition. What a shortcut reaches, no network can claim for reading the skeleton.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int
from rich.table import Table

from dscint_jax.baselines import NECK_STEPS
from dscint_jax.baselines.body import NECK_SHAPE
from dscint_jax.baselines.facts import fact_predictions
from dscint_jax.baselines.inputs import Inputs, read_inputs
from dscint_jax.baselines.linear_baseline import baseline_of, score_by_patient
from dscint_jax.baselines.neck import BATCH_SIZE, neck_predictions
from dscint_jax.input_pipeline import NO_FOLD, check_split, folds_of, open_dataset
from dscint_jax.metrics.intervals import METHOD, Interval
from dscint_jax.metrics.scores import interval_in_words
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.progress import ProgressBar, show

LIMITED = ("thumbnail", "neck")
"""The shortcuts that `--limit` holds down: those that see pixels."""


def measure(
    inputs: dict[str, Inputs],
    split: str,
    *,
    steps: int = NECK_STEPS,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[dict[str, Any]]:
    """Fits every shortcut and scores it on one split; the most frequent class comes first.

    Args:
      inputs: of the splits 'train', 'validation' and `split`.
      split: the one to score.
      steps, seed, progress: of the neck's network, as for `neck_predictions`.

    Returns:
      Of each its `name`, what it `sees`, and `scores` and `intervals` as of `Baseline`.

    Raises:
      UserError: the training images are of one class, or the network's loss is no number.
    """
    labels, patients = (inputs[split].thumbnails[name] for name in ("label", "patient_key"))
    classes = inputs[split].necks.classes
    if len(np.unique(inputs["train"].thumbnails["label"])) < 2:
        raise UserError("all training images are of one class; there is nothing to tell apart")

    def scored(
        predicted: Int[np.ndarray, " image"],
    ) -> tuple[dict[str, float | None], dict[str, Interval | None]]:
        return score_by_patient(labels, predicted, patients, len(classes))

    frequent = int(np.argmax(inputs["train"].necks.class_counts))
    thumbnails = {name: part.thumbnails for name, part in inputs.items()}
    linear = baseline_of(thumbnails, split, len(classes))
    necks = {name: part.necks for name, part in inputs.items()}
    neck = neck_predictions(necks, split, steps=steps, seed=seed, progress=progress)
    size, neck_size = ("x".join(map(str, sides)) for sides in (linear.side, NECK_SHAPE))
    facts = ", ".join(inputs[split].facts)
    found = {
        "most frequent class": (
            f"nothing: always says {classes[frequent]}",
            scored(np.full(len(patients), frequent)),
        ),
        "thumbnail": (
            f"the image at {size} pixels (logistic regression)",
            (linear.scores, linear.intervals),
        ),
        "neck": (f"the neck at {neck_size} pixels (small network)", scored(neck.predicted)),
        "facts": (f"{facts} (logistic regression)", scored(fact_predictions(inputs, split))),
    }
    return [
        {"name": name, "sees": sees, "scores": scores, "intervals": intervals}
        for name, (sees, (scores, intervals)) in found.items()
    ]


def report_of(
    data_dir: Path, split: str, *, fold: int = NO_FOLD, steps: int = NECK_STEPS, seed: int = 0
) -> dict[str, Any]:
    """Reads the data set, fits every shortcut and scores it; shows progress meanwhile.

    Arguments are those of `read_inputs` and `measure`.

    Returns:
      What the JSON file holds.

    Raises:
      UserError: no data set, no such split, or a `fold` that does not fit the data set.
    """
    check_split(split)
    _check_fold(data_dir, fold)
    inputs = {}
    for name in dict.fromkeys(("train", "validation", split)):
        with ProgressBar(f"reading {name}") as bar:
            inputs[name] = read_inputs(data_dir, name, fold=fold, progress=bar.reached)
    batch_size = min(BATCH_SIZE, len(inputs["train"].necks))
    with ProgressBar("training on necks", total=steps, rate_factor=batch_size) as bar:
        shortcuts = measure(
            inputs, split, steps=steps, seed=seed, progress=lambda done, total: bar.update(done)
        )
    scored = inputs[split]
    return {
        "dataset_fingerprint": scored.necks.fingerprint,
        "split": split,
        "fold": fold,
        "seed": seed,
        "steps": steps,
        "images": len(scored.necks),
        "patients": len(np.unique(scored.thumbnails["patient_key"])),
        "classes": list(scored.necks.classes),
        "intervals": f"95 %, {METHOD}",
        "shortcuts": shortcuts,
    }


def print_table(report: dict[str, Any]) -> None:
    """Prints what every shortcut reaches."""
    title = f"{report['split']}, {report['images']} images of {report['patients']} patients"
    table = Table(title=title)
    for column in ("shortcut", "accuracy", "95 % interval", "F-1", "sees"):
        table.add_column(column, justify="left" if column in ("shortcut", "sees") else "right")
    for shortcut in report["shortcuts"]:
        table.add_row(
            shortcut["name"],
            f"{shortcut['scores']['accuracy']:.4f}",
            interval_in_words(shortcut["intervals"]["accuracy"]),
            f"{shortcut['scores']['f1']:.4f}",
            shortcut["sees"],
        )
    show(table)


def reaching(report: dict[str, Any], limit: float) -> list[str]:
    """Names of those of LIMITED whose accuracy is `limit` or more."""
    return [
        shortcut["name"]
        for shortcut in report["shortcuts"]
        if shortcut["name"] in LIMITED and shortcut["scores"]["accuracy"] >= limit
    ]


def _check_fold(data_dir: Path, fold: int) -> None:
    folds = folds_of(open_dataset(data_dir).info.splits)
    if folds and not 0 <= fold < len(folds):
        raise UserError(
            f"{data_dir} is divided into {len(folds)} folds; give one with --fold, 0 to "
            f"{len(folds) - 1}"
        )
    if not folds and fold != NO_FOLD:
        raise UserError(f"{data_dir} is not divided into folds; leave --fold out")
