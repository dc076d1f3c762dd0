"""What a network says of every image of a split, and how often it is right.

One pass over a split serves validation, tests and baselines alike.
"""

import dataclasses
from collections.abc import Callable

import numpy as np
from jaxtyping import Array, Float, Int

from dscint_jax.input_pipeline import IDENTITY_FIELDS, HostBatch, Scintigrams, evaluation_batches
from dscint_jax.metrics.confusion import ConfusionMatrix, five_metrics
from dscint_jax.pytree import pytree


@pytree
@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one evaluated batch gives.

    Attributes:
      confusion: counts over the images whose mask is True.
      loss: sum of the cross-entropies of the same images, nats, without class weights.
      predicted: the class of the largest logit of every image, padding too.
      probabilities: softmax of the same.
    """

    confusion: ConfusionMatrix
    loss: Float[Array, ""]
    predicted: Int[Array, " batch"]
    probabilities: Float[Array, "batch classes"]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The same of every image of a split; `loss` is the mean, `identity` the IDENTITY_FIELDS."""

    confusion: Int[np.ndarray, "true predicted"]
    loss: float
    predicted: Int[np.ndarray, " image"]
    probabilities: Float[np.ndarray, "image classes"]
    labels: Int[np.ndarray, " image"]
    identity: dict[str, np.ndarray]


def predict_split(
    eval_batch: Callable[[HostBatch], Evaluation], images: Scintigrams, *, batch_size: int
) -> Predictions:
    """Evaluates every image of a split once; padding is never counted."""
    confusion = ConfusionMatrix.zeros(len(images.classes))
    loss, rows = 0.0, []
    for batch in evaluation_batches(images, batch_size=batch_size):
        result = eval_batch(batch)
        confusion = confusion.merge(result.confusion)
        loss += float(result.loss)
        real = batch["mask"]
        fields = {name: batch[name][real] for name in ("label", *IDENTITY_FIELDS)}
        for name in ("predicted", "probabilities"):
            fields[name] = np.asarray(getattr(result, name))[real]
        rows.append(fields)
    columns = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
    return Predictions(
        confusion=np.asarray(confusion.compute()),
        loss=loss / len(images),
        predicted=columns["predicted"],
        probabilities=columns["probabilities"],
        labels=columns["label"],
        identity={name: columns[name] for name in IDENTITY_FIELDS},
    )


def score_split(
    eval_batch: Callable[[HostBatch], Evaluation],
    images: Scintigrams,
    *,
    batch_size: int,
    rows: slice = slice(None),
) -> dict[str, float]:
    """The mean cross-entropy ('loss', nats) and the five metrics of a split; no image is kept.

    A metric that is not defined (the specificity of images of one class) is left out. Of several
    processes each evaluates its `rows` of every batch; `batch_size` is over all of them.
    """
    confusion, loss = ConfusionMatrix.zeros(len(images.classes)), 0.0
    for batch in evaluation_batches(images, batch_size=batch_size, rows=rows):
        result = eval_batch(batch)
        confusion = confusion.merge(result.confusion)
        loss += float(result.loss)
    scores = five_metrics(np.asarray(confusion.compute()))
    known = {name: float(value) for name, value in scores.items() if not np.isnan(value)}
    return {"loss": loss / len(images), **known}
