"""Evaluation of a trained checkpoint on one split, exact to the last image.

    python -m dscint_jax.evaluate --workdir runs/quickstart/dscint --split test

In: a work directory that training filled, and its data set. Out: eval/SPLIT/metrics.json and
eval/SPLIT/predictions.csv in the work directory, and a table.
"""

import argparse
import csv
import dataclasses
import io
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Float, Int
from ml_collections import ConfigDict
from rich.console import Console
from rich.table import Table

from dscint_jax import metrics, parallel, statistics
from dscint_jax.checkpoint import Checkpointer
from dscint_jax.errors import run_command
from dscint_jax.experiment import load_images, make_experiment
from dscint_jax.input_pipeline import (
    IDENTITY_FIELDS,
    Scintigrams,
    device_fields,
    evaluation_batches,
)
from dscint_jax.train_step import Evaluation
from dscint_jax.workdir import config_of, write_json, write_text


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What a network says of every image of a split.

    Attributes:
      confusion: counts; rows true, columns predicted.
      loss: mean cross-entropy, nats.
      probabilities: softmax, one row an image.
      labels: true classes.
      identity: image_id, patient_key and view of each image.
    """

    confusion: Int[np.ndarray, "true predicted"]
    loss: float
    probabilities: Float[np.ndarray, "image classes"]
    labels: Int[np.ndarray, "image"]
    identity: dict[str, np.ndarray]

    @property
    def predicted(self) -> Int[np.ndarray, "image"]:
        """The class of the highest probability."""
        return self.probabilities.argmax(-1)


def predict_split(
    eval_step: Callable[..., Evaluation],
    params: nnx.State,
    statistics: nnx.State,
    images: Scintigrams,
    *,
    batch_size: int,
    mesh: Mesh,
) -> Predictions:
    """Runs the compiled `eval_step` over every image once; padding is never counted."""
    confusion = metrics.ConfusionMatrix.zeros(len(images.classes))
    loss, rows = 0.0, []
    for batch in evaluation_batches(images, batch_size=batch_size):
        result = eval_step(params, statistics, parallel.shard_batch(device_fields(batch), mesh))
        confusion = confusion.merge(result.confusion)
        loss += float(result.loss)
        real = batch["mask"]
        fields = {name: batch[name][real] for name in ("label", *IDENTITY_FIELDS)}
        rows.append({**fields, "probabilities": np.asarray(result.probabilities)[real]})
    columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return Predictions(
        confusion=np.asarray(confusion.compute()),
        loss=loss / len(images),
        probabilities=columns["probabilities"],
        labels=columns["label"],
        identity={name: columns[name] for name in IDENTITY_FIELDS},
    )


def evaluate(
    workdir: Path, *, split: str, checkpoint: str, data_dir: Path | None = None
) -> dict[str, Any]:
    """Evaluates one checkpoint on one split and writes the two result files.

    Args:
      workdir: of the training.
      split: 'train', 'validation' or 'test'.
      checkpoint: 'best' (by validation F-1), 'last', or a step.
      data_dir: another place of the data set than the config names.

    Returns:
      What metrics.json holds.

    Raises:
      DscintError: no run, no such checkpoint, no data set, or another data set than trained on.
    """
    config = ConfigDict(config_of(workdir))
    if data_dir is not None:
        config.data.dir = str(data_dir)
    checkpointer = Checkpointer(workdir, read_only=True)
    step = checkpointer.choose_step(checkpoint)
    images = load_images(config, split)
    experiment = make_experiment(config, images.class_counts)
    mesh = parallel.data_mesh()
    params, batch_statistics = parallel.replicate(
        checkpointer.restore_model(step, experiment.params, experiment.statistics), mesh
    )
    predictions = predict_split(
        parallel.compile_eval_step(experiment.recipe, mesh),
        params,
        batch_statistics,
        images,
        batch_size=_divisible(config.batch_size, mesh.size),
        mesh=mesh,
    )
    result = {
        **metrics.summary(predictions.confusion, images.classes),
        "intervals": _intervals(predictions, len(images.classes)),
        "loss": predictions.loss,
        "split": split,
        "step": step,
    }
    _write(workdir / "eval" / split, result, predictions, images.classes)
    return result


def print_table(result: dict[str, Any]) -> None:
    """Prints the five metrics with their intervals, and each class."""
    console = Console(width=max(shutil.get_terminal_size().columns, 80), highlight=False)
    table = Table(title=f"{result['split']}, step {result['step']}, {result['support']} images")
    for column in ("metric", "value", "95 % interval", "published Dscint"):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for name in metrics.METRIC_NAMES:
        low, high = result["intervals"]["values"][name]
        table.add_row(
            name,
            f"{result[name]:.4f}",
            f"{low:.3f} to {high:.3f}",
            f"{metrics.PUBLISHED_DSCINT[name]:.4f}",
        )
    console.print(table)
    table = Table()
    columns = ("precision", "recall", "specificity", "f1", "support")
    for column in ("class", *columns):
        table.add_column(column, justify="left" if column == "class" else "right")
    for label, values in result["per_class"].items():
        cells = (f"{values[c]:.4f}" if c != "support" else str(values[c]) for c in columns)
        table.add_row(label, *cells)
    console.print(table)
    for field, meaning in (("never_predicted", "never predicted"), ("absent", "in no image")):
        if result[field]:
            print(f"counted as 0: {', '.join(result[field])} ({meaning})")


def _intervals(predictions: Predictions, num_classes: int) -> dict[str, Any]:
    confusions = statistics.patient_confusions(
        predictions.labels, predictions.predicted, predictions.identity["patient_key"], num_classes
    )
    return {
        "method": "percentile bootstrap over patients, 2000 resamples",
        "level": 0.95,
        "patients": len(confusions),
        "values": {
            name: list(bounds)
            for name, bounds in statistics.bootstrap_intervals(confusions).items()
        },
    }


def _divisible(batch_size: int, devices: int) -> int:
    """The evaluator may run on other devices than the training: the next multiple of them."""
    return -(-batch_size // devices) * devices


def _write(
    folder: Path, result: dict[str, Any], predictions: Predictions, classes: tuple[str, ...]
) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*IDENTITY_FIELDS, "label", "predicted", *(f"p_{c}" for c in classes)])
    rows = zip(
        *(predictions.identity[name] for name in IDENTITY_FIELDS),
        predictions.labels,
        predictions.predicted,
        predictions.probabilities,
        strict=True,
    )
    for *identity, label, predicted, probabilities in rows:
        cells = (f"{p:.6f}" for p in probabilities)
        writer.writerow([*identity, classes[label], classes[predicted], *cells])
    write_text(folder / "predictions.csv", text.getvalue())
    write_json(folder / "metrics.json", result)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dscint_jax.evaluate",
        description="Evaluate a trained checkpoint on one split: metrics.json, predictions.csv.",
    )
    parser.add_argument("--workdir", type=Path, required=True, help="directory of the training")
    parser.add_argument("--split", default="test", help="train, validation or test (default: test)")
    parser.add_argument(
        "--checkpoint", default="best", help="best (by validation F-1), last, or a step"
    )
    parser.add_argument("--data_dir", type=Path, help="data set, if not where the config says")
    arguments = parser.parse_args()
    print_table(
        evaluate(
            arguments.workdir,
            split=arguments.split,
            checkpoint=arguments.checkpoint,
            data_dir=arguments.data_dir,
        )
    )


if __name__ == "__main__":
    run_command(main)
