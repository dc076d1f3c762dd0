"""The confusion matrix as a mergeable metric, and the five published metrics computed from it.

Accuracy is the overall one; precision, recall, specificity and F-1 are means over the classes of
their one-vs-rest values. Dscint's published figures fit this reading and no other usual one
(1 - (1 - 0.9801) / 3 = 0.9934, and their specificity is 0.9933).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from clu import metrics as clu_metrics
from jaxtyping import Array, Bool, Float, Int

METRIC_NAMES = ("accuracy", "precision", "recall", "specificity", "f1")

PUBLISHED_DSCINT = {
    "accuracy": 0.9801,
    "precision": 0.9795,
    "recall": 0.9791,
    "specificity": 0.9933,
    "f1": 0.9792,
}
"""Lin et al., Med Phys 2021: Dscint on the test data of their augmented dataset."""


@flax.struct.dataclass
class ConfusionMatrix(clu_metrics.Metric):
    """Counts of (true class, predicted class); merging adds, so any batching gives the same."""

    counts: Int[Array, "true predicted"]

    @classmethod
    def zeros(cls, num_classes: int) -> "ConfusionMatrix":
        """The matrix of no image at all."""
        return cls(counts=jnp.zeros((num_classes, num_classes), jnp.int32))

    @classmethod
    def from_model_output(
        cls,
        logits: Float[Array, "batch classes"],
        labels: Int[Array, " batch"],
        mask: Bool[Array, " batch"] | None = None,
        **_,
    ) -> "ConfusionMatrix":
        """Counts one batch; images whose `mask` is False are not counted."""
        classes = logits.shape[-1]
        weight = jnp.ones(labels.shape, jnp.int32) if mask is None else mask.astype(jnp.int32)
        true = jax.nn.one_hot(labels, classes, dtype=jnp.int32) * weight[:, None]
        predicted = jax.nn.one_hot(logits.argmax(-1), classes, dtype=jnp.int32)
        return cls(counts=true.T @ predicted)

    def merge(self, other: "ConfusionMatrix") -> "ConfusionMatrix":
        """The matrix of both sets of images."""
        return self.replace(counts=self.counts + other.counts)

    def compute(self) -> Int[Array, "true predicted"]:
        """The counts."""
        return self.counts


@dataclasses.dataclass(frozen=True)
class OneVsRest:
    """Each class against all others; arrays of shape (..., classes), 0 where 0 / 0."""

    precision: np.ndarray
    recall: np.ndarray
    specificity: np.ndarray
    f1: np.ndarray
    support: np.ndarray


def one_vs_rest(confusion: Int[np.ndarray, "... true predicted"]) -> OneVsRest:
    """Per-class metrics of one or many confusion matrices (rows true, columns predicted)."""
    confusion = np.asarray(confusion, np.float64)
    hit = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, predicted = confusion.sum(-1), confusion.sum(-2)
    negatives = confusion.sum((-2, -1))[..., None] - support
    return OneVsRest(
        precision=_ratio(hit, predicted),
        recall=_ratio(hit, support),
        specificity=_ratio(negatives - (predicted - hit), negatives),
        f1=_ratio(2 * hit, support + predicted),
        support=support.astype(np.int64),
    )


def five_metrics(confusion: Int[np.ndarray, "... true predicted"]) -> dict[str, np.ndarray]:
    """Accuracy and the class means of precision, recall, specificity and F-1.

    A ratio of 0 / 0 (the precision of a class never predicted, the recall of a class that no image
    has) counts as 0 in the mean: scikit-learn's `zero_division=0` over all classes.

    Args:
      confusion: one matrix, or many along leading axes; rows true, columns predicted.

    Returns:
      By METRIC_NAMES, float64 of the leading axes' shape.
    """
    confusion = np.asarray(confusion, np.float64)
    classes = one_vs_rest(confusion)
    hits = np.trace(confusion, axis1=-2, axis2=-1)
    return {
        "accuracy": _ratio(hits, confusion.sum((-2, -1))),
        "precision": classes.precision.mean(-1),
        "recall": classes.recall.mean(-1),
        "specificity": classes.specificity.mean(-1),
        "f1": classes.f1.mean(-1),
    }


def summary(confusion: Int[np.ndarray, "true predicted"], classes: Sequence[str]) -> dict[str, Any]:
    """The metrics of one evaluation as metrics.json holds them (plain Python values).

    Classes that were never predicted, or that no image has, are named: their 0 / 0 counts as 0.
    """
    confusion = np.asarray(confusion)
    per_class = one_vs_rest(confusion)
    values = {name: float(value) for name, value in five_metrics(confusion).items()}
    return {
        **values,
        "per_class": {
            label: {
                "precision": float(per_class.precision[i]),
                "recall": float(per_class.recall[i]),
                "specificity": float(per_class.specificity[i]),
                "f1": float(per_class.f1[i]),
                "support": int(per_class.support[i]),
            }
            for i, label in enumerate(classes)
        },
        "confusion_matrix": confusion.astype(int).tolist(),
        "classes": list(classes),
        "support": int(confusion.sum()),
        "never_predicted": [c for i, c in enumerate(classes) if confusion[:, i].sum() == 0],
        "absent": [c for i, c in enumerate(classes) if confusion[i].sum() == 0],
    }


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    return np.divide(numerator, denominator, out=np.zeros(numerator.shape), where=denominator > 0)
