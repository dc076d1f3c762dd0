"""Uncertainty of the metrics, with the patient as the unit of sampling.

Images of one patient (two views, several studies) are not independent; resampling images would
make intervals too narrow, so whole patients are resampled. They are resampled within their class,
so that every resample is scored over the same classes as the data.
`python -m tests.interval_coverage` measures how often the intervals hold the true value.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from dscint_jax.metrics.confusion import METRIC_NAMES, five_metrics


def patient_confusions(
    labels: Int[np.ndarray, " image"],
    predicted: Int[np.ndarray, " image"],
    patients: Sequence[str] | np.ndarray,
    num_classes: int,
) -> Int[np.ndarray, "patient true predicted"]:
    """One confusion matrix a patient, patients in sorted order."""
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    matrices = np.zeros((len(names), num_classes, num_classes), np.int64)
    np.add.at(matrices, (index, labels, predicted), 1)
    return matrices


def bootstrap_intervals(
    confusions: Int[np.ndarray, "patient true predicted"],
    *,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, tuple[float, float] | None]:
    """Percentile bootstrap intervals of the five metrics (Efron and Tibshirani 1993, ch. 13).

    Of n patients of a class, n - 1 are drawn with replacement and weighed by n / (n - 1): with n
    draws the variance comes out too small by (n - 1) / n (Rao and Wu, J Am Stat Assoc 1988;83:231).
    A patient whose images have several classes belongs to that of the fewest patients (of equally
    few, the first), which could get lost among others.
    Where a class has one patient, nothing is known of how patients of that class differ: there is
    no interval.

    Args:
      confusions: one confusion matrix a patient.
      level: coverage aimed at.
      resamples: how many times patients are drawn.
      seed: of the draws; the same seed gives the same intervals.

    Returns:
      (low, high) by metric name; None where a metric, or an interval, is not defined.
    """
    if not len(confusions) or classes_of_one_patient(confusions):
        return dict.fromkeys(METRIC_NAMES)
    strata = _strata(confusions)
    sizes = np.bincount(strata)
    random = np.random.Generator(np.random.PCG64(seed))
    resampled = np.zeros((resamples, *confusions.shape[1:]))
    for stratum in np.flatnonzero(sizes):
        own, size = confusions[strata == stratum], sizes[stratum]
        draws = random.multinomial(size - 1, np.full(size, 1 / size), size=resamples)
        resampled += np.einsum("rp,ptq->rtq", draws, own) * size / (size - 1)
    tail = 100 * (1 - level) / 2
    intervals = {}
    for name, values in five_metrics(resampled).items():
        low, high = np.percentile(values, [tail, 100 - tail])
        intervals[name] = None if np.isnan(low) else (float(low), float(high))
    return intervals


def classes_of_one_patient(confusions: Int[np.ndarray, "patient true predicted"]) -> list[int]:
    """The classes that leave no intervals: one patient has them, or would be drawn alone."""
    sizes = np.bincount(_strata(confusions), minlength=confusions.shape[-1])
    return np.flatnonzero((_patients_of(confusions) == 1) | (sizes == 1)).tolist()


def _strata(confusions: Int[np.ndarray, "patient true predicted"]) -> Int[np.ndarray, " patient"]:
    """The class within which each patient is drawn."""
    has = confusions.sum(-1) > 0
    return np.where(has, _patients_of(confusions), len(confusions) + 1).argmin(-1)


def _patients_of(confusions: Int[np.ndarray, "patient true predicted"]) -> Int[np.ndarray, " true"]:
    """How many patients have images of each class."""
    return (confusions.sum(-1) > 0).sum(0)
