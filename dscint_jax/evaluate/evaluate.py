"""Evaluation of a trained checkpoint on one split, exact to the last image.

    python -m dscint_jax.evaluate --workdir runs/quickstart/dscint --split test

In: a work directory that training filled, and its data set, or other ones (`--data_dir`,
`--external`). Out: metrics.json and predictions.csv in the work directory's eval/SPLIT/, of another
data set in eval/NAME/SPLIT/, and a table.
"""

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from dscint_jax.evaluate.restored import (
    TrainedNetwork,
    is_trained_on,
    load_trained,
    validation_images,
)
from dscint_jax.input_pipeline import (
    NOUNS,
    SPLITS,
    Leakage,
    Scintigrams,
    check_split,
    fingerprint_of,
    leakage_in_words,
)
from dscint_jax.metrics.intervals import FEW_PATIENTS
from dscint_jax.metrics.passes import predict_split
from dscint_jax.metrics.predictions import Predictions, predictions_text
from dscint_jax.metrics.scores import (
    CLASS_METRICS,
    METRIC_NAMES,
    PUBLISHED_DSCINT,
    has_published_classes,
    in_words,
    interval_in_words,
)
from dscint_jax.metrics.summary import summarise
from dscint_jax.run.checkpoint import complete_steps
from dscint_jax.run.workdir import config_of
from tfds_builder.commandline.errors import UserError
from tfds_builder.commandline.files import WriteError, read_json, write_json, write_text
from tfds_builder.commandline.progress import say, show

METRICS_FILE, PREDICTIONS_FILE = "metrics.json", "predictions.csv"


@dataclasses.dataclass(frozen=True)
class Target:
    """Which images are evaluated.

    Attributes:
      split: 'train', 'validation' or 'test'.
      data_dir: of the data set; None: the one that the config names.
      folder: where the results lie.
    """

    split: str
    data_dir: Path | None
    folder: Path


def evaluate(workdir: Path, *, split: str, checkpoint: str, **options: Any) -> dict[str, Any]:
    """Evaluates one checkpoint on one split; see `evaluate_all`."""
    return evaluate_all(workdir, splits=(split,), checkpoint=checkpoint, **options)[0]


def evaluate_all(
    workdir: Path,
    *,
    splits: Sequence[str],
    checkpoint: str,
    data_dir: Path | None = None,
    name: str | None = None,
    external: Sequence[Path] = (),
    out: Path | None = None,
    mirror: bool = False,
    told: Callable[[dict[str, Any]], None] = lambda result: None,
) -> list[dict[str, Any]]:
    """Evaluates one checkpoint on each split of each data set; writes the result files of each.

    Arguments and errors are those of `load_trained` and `targets_of`, and:

    Args:
      mirror: whether probabilities are averaged over each image and its mirror image.
      told: gets each result before it is written, which may fail.

    Returns:
      What each metrics.json holds.
    """
    targets = targets_of(workdir, splits, data_dir=data_dir, name=name, external=external, out=out)
    first = targets[0]
    network = load_trained(
        workdir, split=first.split, checkpoint=checkpoint, data_dir=first.data_dir
    )
    newest = max([network.step, *complete_steps(workdir / "checkpoints")])
    if newest < int(network.config.steps):
        say(
            f"note: training is not complete; {workdir} holds step {newest} of "
            f"{network.config.steps}"
        )
    results = []
    for target in targets:
        if target is not first:
            network = network.on(workdir, split=target.split, data_dir=target.data_dir)
        result, predictions = measure(
            network,
            # Before the network's work, which a data set that leaks is not worth.
            leakage=network.leakage(),
            validation=validation_images(workdir, network),
            mirror=mirror,
        )
        result["data_set"] = None if network.trained_on else target.folder.parent.name
        told(result)
        with or_elsewhere(out):
            write_text(target.folder / PREDICTIONS_FILE, predictions_text(predictions))
            write_json(target.folder / METRICS_FILE, result)
        results.append(result)
    return results


def measure(
    network: TrainedNetwork,
    *,
    leakage: Leakage | None,
    validation: Scintigrams | None,
    mirror: bool = False,
) -> tuple[dict[str, Any], Predictions]:
    """What metrics.json holds of a network on its split, but for the data set's name.

    Args:
      network: with the split.
      leakage: how much of the split training knows.
      validation: what thresholds and temperature are chosen on; see `validation_images`.
      mirror: as for `evaluate`.
    """
    predict = functools.partial(
        predict_split, network.evaluate, batch_size=network.batch_size, mirror=mirror
    )
    predictions, loss = predict(network.images)
    return {
        **summarise(predictions, predict(validation)[0] if validation else None),
        "loss": loss,
        "records": network.images.records,
        "dataset_fingerprint": network.images.fingerprint,
        "protocol": network.config.protocol,
        "leakage": leakage and dataclasses.asdict(leakage),
        "test_time_augmentation": "mirror" if mirror else None,
        "split": network.images.split,
        "step": network.step,
    }, predictions


@contextlib.contextmanager
def or_elsewhere(out: Path | None) -> Iterator[None]:
    """Tells who may not write into a work directory that `--out` is another place."""
    try:
        yield
    except WriteError as error:
        if out:
            raise
        raise WriteError(f"{error}; --out DIR takes another folder") from None


def targets_of(
    workdir: Path,
    splits: Sequence[str],
    *,
    data_dir: Path | None = None,
    name: str | None = None,
    external: Sequence[Path] = (),
    out: Path | None = None,
) -> list[Target]:
    """Each split of each data set, and where its results lie.

    Args:
      workdir: of the training.
      splits: of each data set.
      data_dir: of the first data set; None: the one that the config names.
      name: of the first, where it is not the one trained on; None: that of its folder.
      external: other data sets, named as their folders.
      out: folder of eval/, for a work directory that may not be written; None: that one.

    Raises:
      UserError: no such split; as `result_folder` has it; or two would lie in the same folder.
    """
    found: dict[Path, Target] = {}
    for split in splits:
        check_split(split)
    for place, called in [(data_dir, name), *((other, None) for other in external)]:
        for split in dict.fromkeys(splits):
            folder = result_folder(workdir, split, data_dir=place, name=called, out=out)
            if folder in found:
                raise UserError(
                    f"results on {place} and on {found[folder].data_dir or 'the data set'} would "
                    f"both lie in {folder}; evaluate one by itself, with --data_dir and --name"
                )
            found[folder] = Target(split, place, folder)
    return [*found.values()]


def result_folder(
    workdir: Path,
    split: str,
    *,
    data_dir: Path | None = None,
    name: str | None = None,
    out: Path | None = None,
) -> Path:
    """Where the results of one split lie: eval/SPLIT, of another data set eval/NAME/SPLIT.

    Arguments are those of `evaluate`.

    Raises:
      UserError: `name` is no folder's or is a split's, or another data set has results under it.
    """
    if data_dir is None or is_trained_on(workdir, data_dir):
        if name is not None:
            raise UserError(
                f"--name {name}: {data_dir or 'the data set'} is the one trained on, whose results "
                f"lie in eval/{split}; leave --name out"
            )
        return (out or workdir) / "eval" / split
    name = data_dir.absolute().name if name is None else name
    if name in ("", ".", "..", "index.html", *SPLITS) or set(name) & set("/\\\0"):
        raise UserError(
            f"results on {data_dir} would lie in eval/{name}/{split}; give the data set a name of "
            f"its own by --name, such as --name hospital_b"
        )
    folder = (out or workdir) / "eval" / name / split
    if (folder / METRICS_FILE).exists():
        found = read_json(folder / METRICS_FILE).get("dataset_fingerprint")
        if found != fingerprint_of(data_dir, config_of(workdir).data.records):
            raise UserError(
                f"{folder} holds results on another data set than {data_dir}; give this one "
                f"another name by --name, or delete that folder"
            )
    return folder


def print_table(result: dict[str, Any]) -> None:
    """Prints the five metrics with their intervals, and each class."""
    noun = NOUNS[result["records"]]
    split = " ".join(filter(None, (result["data_set"], result["split"])))
    table = Table(title=f"{split}, step {result['step']}, {result['support']} {noun}")
    published = has_published_classes(result)
    for column in ("metric", "value", "95 % interval", *["published Dscint"] * published):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name in METRIC_NAMES:
        table.add_row(
            name,
            in_words(result[name]),
            interval_in_words(result["intervals"]["values"][name]),
            *[f"{PUBLISHED_DSCINT[name]:.4f}"] * published,
        )
    show(table)
    table = Table()
    for column in ("class", *CLASS_METRICS, "support"):
        table.add_column(column, justify="left" if column == "class" else "right")
    for label in result["classes"]:
        values = result["per_class"][label]
        # Dashes, as "not defined" in every column would not fit 80 columns.
        scores = ("-" if values[c] is None else in_words(values[c]) for c in CLASS_METRICS)
        table.add_row(label, *scores, str(values["support"]))
    show(table)
    for note in notes(result):
        say(note)
    say(leakage_line(result))


def notes(result: dict[str, Any]) -> list[str]:
    """What the reader of the five metrics has to know of their means and intervals."""
    noun, found = NOUNS[result["records"]], []
    if absent := result["absent"]:
        found.append(f"Not in the means: {', '.join(absent)}, which none of the {noun} has.")
    if never := result["never_predicted"]:
        found.append(f"Precision counted as 0: {', '.join(never)}, never predicted.")
    if one := result["intervals"]["classes_of_one_patient"]:
        found.append(
            f"No intervals: of {', '.join(one)} there is one patient, or one without another class."
        )
    elif few := result["intervals"]["classes_of_few_patients"]:
        found.append(
            f"Rough intervals of areas and calibration: of {', '.join(few)} there are fewer than "
            f"{FEW_PATIENTS} patients."
        )
    return found


def leakage_line(result: dict[str, Any]) -> str:
    """What the reader of a metrics.json has to know of its score, in words."""
    leakage = result["leakage"]
    return leakage_in_words(
        leakage and Leakage(**leakage),
        split=result["split"],
        protocol=result["protocol"],
        records=result["records"],
    )
