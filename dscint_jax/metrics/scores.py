"""The five published metrics, computed from confusion matrices.

Accuracy is the overall one; precision, recall, specificity and F-1 are means of one-vs-rest values
over the classes that are present: those that at least one image truly has. Dscint's published
figures fit this reading and no other usual one (1 - (1 - 0.9801) / 3 = 0.9934, and their
specificity is 0.9933).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import numpy as np
from jaxtyping import Float, Int, Real

METRIC_NAMES = ("accuracy", "precision", "recall", "specificity", "f1")
CLASS_METRICS = METRIC_NAMES[1:]
"""Those that each class has of its own."""

PUBLISHED_DSCINT = {
    "accuracy": 0.9801,
    "precision": 0.9795,
    "recall": 0.9791,
    "specificity": 0.9933,
    "f1": 0.9792,
}
"""Lin et al., Med Phys 2021: Dscint on the test data of their augmented dataset."""

PUBLISHED_CLASSES = frozenset({"normal", "metastasis", "arthritis", "thyroid_carcinoma"})
"""The classes of the same."""

NOT_DEFINED = "not defined"
"""What is printed where a metric has no value."""

Numbers = np.ndarray | np.number


def one_vs_rest(
    confusion: Real[np.ndarray, "... true predicted"],
) -> dict[str, Float[np.ndarray, "... classes"]]:
    """Precision, recall, specificity and F-1 of each class against all others.

    A class that no image has is not defined: NaN. So is the specificity of a class that all images
    have. The precision of a class that images have and that was never predicted is 0.

    Args:
      confusion: one matrix, or many along leading axes; rows true, columns predicted.
    """
    confusion = np.asarray(confusion, np.float64)
    hit = np.diagonal(confusion, axis1=-2, axis2=-1)
    support, predicted = confusion.sum(-1), confusion.sum(-2)
    negatives = confusion.sum((-2, -1))[..., None] - support
    present = support > 0
    return {
        "precision": np.where(present, np.nan_to_num(ratio(hit, predicted)), np.nan),
        "recall": ratio(hit, support),
        "specificity": np.where(present, ratio(negatives - (predicted - hit), negatives), np.nan),
        "f1": np.where(present, ratio(2 * hit, support + predicted), np.nan),
    }


def five_metrics(confusion: Real[np.ndarray, "... true predicted"]) -> dict[str, np.ndarray]:
    """Accuracy and the class means of precision, recall, specificity and F-1.

    The means run over the classes that images of the same matrix have: scikit-learn's
    `average='macro', zero_division=0` with these as `labels`. An image that is predicted as a class
    that none has is missed by its own class, and counts nowhere else.

    Args:
      confusion: one matrix, or many along leading axes; rows true, columns predicted.

    Returns:
      By METRIC_NAMES, float64 of the leading axes' shape; NaN where a metric is not defined: all of
      no image, the specificity of images of one class.
    """
    confusion = np.asarray(confusion, np.float64)
    accuracy = ratio(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))
    means = {name: _mean(values) for name, values in one_vs_rest(confusion).items()}
    return {"accuracy": accuracy, **means}


def has_published_classes(result: Mapping[str, Any]) -> bool:
    """Whether the means of a metrics.json run over the classes of the published figures."""
    return {*result["classes"]} - {*result.get("absent", ())} == PUBLISHED_CLASSES


def defined(value: SupportsFloat) -> float | None:
    """A number as JSON can hold it: None where it is not defined."""
    return None if math.isnan(value) else float(value)


def in_words(value: float | None, digits: int = 4) -> str:
    """A metric as tables print it."""
    return NOT_DEFINED if value is None else f"{value:.{digits}f}"


def interval_in_words(bounds: Sequence[float] | None) -> str:
    """An interval as tables print it."""
    return NOT_DEFINED if bounds is None else f"{bounds[0]:z.3f} to {bounds[1]:z.3f}"


def spread_in_words(values: Mapping[str, Any]) -> str:
    """Mean and standard deviation over seeds, `mean` and `sd`, as tables print them."""
    mean = in_words(values["mean"])
    return mean if values["sd"] is None else f"{mean} ± {values['sd']:.4f}"


def p_in_words(p: float | None) -> str:
    """A p value as tables print it; '-' where nothing was tested."""
    return "-" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def summary(confusion: Int[np.ndarray, "true predicted"], classes: Sequence[str]) -> dict[str, Any]:
    """The metrics of one evaluation as metrics.json holds them (plain Python values).

    What is not defined is None. Named are the classes that no image has, which no mean counts, and
    those that images have and that were never predicted, whose precision counts as 0.
    """
    confusion = np.asarray(confusion)
    per_class = one_vs_rest(confusion)
    absent = [c for i, c in enumerate(classes) if confusion[i].sum() == 0]
    return {
        **{name: defined(value) for name, value in five_metrics(confusion).items()},
        "per_class": {
            label: {
                **{name: defined(values[i]) for name, values in per_class.items()},
                "support": int(confusion[i].sum()),
            }
            for i, label in enumerate(classes)
        },
        "confusion_matrix": confusion.astype(int).tolist(),
        "classes": list(classes),
        "support": int(confusion.sum()),
        "never_predicted": [
            c for i, c in enumerate(classes) if confusion[:, i].sum() == 0 and c not in absent
        ],
        "absent": absent,
    }


def ratio(numerator: Numbers, denominator: Numbers) -> np.ndarray:
    """A quotient; NaN where nothing is divided by."""
    numerator, denominator = np.broadcast_arrays(numerator, denominator)
    undefined = np.full(numerator.shape, np.nan)
    return np.divide(numerator, denominator, out=undefined, where=denominator > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """The mean over the last axis of what is defined; NaN where nothing is."""
    there = ~np.isnan(values)
    return ratio(np.where(there, values, 0).sum(-1), there.sum(-1))
