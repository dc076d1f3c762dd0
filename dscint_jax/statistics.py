"""Uncertainty of the metrics, with the patient as the unit of sampling.

Images of one patient (two views, several studies) are not independent; resampling images would
make intervals too narrow, so whole patients are resampled.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from dscint_jax.metrics import five_metrics


def patient_confusions(
    labels: Int[np.ndarray, " image"],
    predicted: Int[np.ndarray, " image"],
    patients: Sequence[str],
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
) -> dict[str, tuple[float, float]]:
    """Percentile bootstrap intervals of the five metrics (Efron and Tibshirani 1993, ch. 13).

    Args:
      confusions: one confusion matrix a patient.
      level: coverage aimed at.
      resamples: how many times as many patients are drawn with replacement.
      seed: of the draws; the same seed gives the same intervals.

    Returns:
      (low, high) by metric name.
    """
    patients = len(confusions)
    random = np.random.Generator(np.random.PCG64(seed))
    draws = random.multinomial(patients, np.full(patients, 1 / patients), size=resamples)
    resampled = np.einsum("rp,ptq->rtq", draws, confusions)
    tail = 100 * (1 - level) / 2
    return {
        name: tuple(float(v) for v in np.percentile(values, [tail, 100 - tail]))
        for name, values in five_metrics(resampled).items()
    }
