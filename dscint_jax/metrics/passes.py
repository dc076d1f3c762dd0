"""One pass over a split, which serves validation, tests and baselines alike."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from dscint_jax.input_pipeline import (
    IDENTITY_FIELDS,
    HostBatch,
    Scintigrams,
    evaluation_batches,
)
from dscint_jax.input_pipeline.records import joined
from dscint_jax.metrics.predictions import Predictions
from dscint_jax.metrics.scores import five_metrics
from dscint_jax.pytree import pytree


@pytree
@dataclasses.dataclass(frozen=True)
class Evaluation:
    """What one evaluated batch gives.

    Attributes:
      confusion: counts over the images whose mask is True, as `confusion_matrix` gives them.
      loss: sum of the cross-entropies of the same images, nats, without class weights.
      predicted: the class of the largest logit of every image, padding too.
      probabilities: softmax of the same.
    """

    confusion: Int[Array, "true predicted"]
    loss: Float[Array, ""]
    predicted: Int[Array, " batch"]
    probabilities: Float[Array, "batch classes"]


def confusion_matrix(
    logits: Float[Array, "batch classes"], labels: Int[Array, " batch"], mask: Bool[Array, " batch"]
) -> Int[Array, "true predicted"]:
    """Counts of (true class, predicted class) over the images whose `mask` is True."""
    classes = logits.shape[-1]
    true = jax.nn.one_hot(labels, classes, dtype=jnp.int32) * mask.astype(jnp.int32)[:, None]
    predicted = jax.nn.one_hot(logits.argmax(-1), classes, dtype=jnp.int32)
    return true.T @ predicted


def predict_split(
    eval_batch: Callable[[HostBatch], Evaluation],
    images: Scintigrams,
    *,
    batch_size: int,
    mirror: bool = False,
) -> tuple[Predictions, float]:
    """Evaluates every image of a split once; padding is never counted.

    Args:
      eval_batch: evaluates a batch.
      images: the split.
      batch_size: of the batches.
      mirror: whether every image is read as it is and mirrored, left for right, and the
        probabilities are averaged.

    Returns:
      What the network says, and its mean cross-entropy, nats.
    """
    loss, rows = 0.0, []
    for batch in evaluation_batches(images, batch_size=batch_size):
        result = eval_batch(batch)
        real = batch["mask"]
        fields = {name: batch[name][real] for name in ("label", *IDENTITY_FIELDS)}
        for name in ("predicted", "probabilities"):
            fields[name] = np.asarray(getattr(result, name))[real]
        if mirror:
            mirrored = eval_batch(batch | {"counts": batch["counts"][..., ::-1, :]})
            both = (fields["probabilities"] + np.asarray(mirrored.probabilities)[real]) / 2
            fields |= {"probabilities": both, "predicted": both.argmax(1)}
            of_true = both[np.arange(len(both)), fields["label"]]
            loss -= float(np.log(np.maximum(of_true, np.finfo(np.float32).tiny)).sum())
        else:
            loss += float(result.loss)
        rows.append(fields)
    columns = joined(rows)
    predictions = Predictions(
        classes=images.classes,
        labels=columns["label"],
        predicted=columns["predicted"],
        probabilities=columns["probabilities"],
        facts={name: columns[name] for name in IDENTITY_FIELDS},
    )
    return predictions, loss / len(images)


def score_split(
    eval_batch: Callable[[HostBatch], Evaluation],
    images: Scintigrams,
    *,
    batch_size: int,
    rows: slice = slice(None),
) -> dict[str, float]:
    """The mean cross-entropy ('loss', nats) and the five metrics of a split; no image is kept.

    A metric that is not defined (the specificity of images of one class) is left out.

    Args:
      eval_batch: evaluates this process's rows of a batch, together with the other processes.
      images: the split.
      batch_size: over all processes.
      rows: this process's of every batch.
    """
    confusion, loss = np.zeros([len(images.classes)] * 2, np.int64), 0.0
    for batch in evaluation_batches(images, batch_size=batch_size, rows=rows):
        result = eval_batch(batch)
        confusion += np.asarray(result.confusion)
        loss += float(result.loss)
    scores = five_metrics(confusion)
    known = {name: float(value) for name, value in scores.items() if not np.isnan(value)}
    return {"loss": loss / len(images), **known}
