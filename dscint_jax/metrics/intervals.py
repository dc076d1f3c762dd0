"""Uncertainty of the metrics, with the patient as the unit of sampling.

Images of one patient (two views, several studies) are not independent; resampling images would
make intervals too narrow, so whole patients are resampled, and every resample is scored over the
same classes as the data.
`python -m tests.interval_coverage` measures how often the intervals hold the true value.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from dscint_jax.metrics.scores import five_metrics

LEVEL = 0.95
TAILS = (100 * (1 - LEVEL) / 2, 100 * (1 + LEVEL) / 2)
"""The percentiles that an interval lies between."""

RESAMPLES = 2000

METHOD = f"Bayesian bootstrap of patients and one more, {RESAMPLES} resamples"
"""What `bootstrap_intervals` does, in words."""

FEW_PATIENTS = 10
"""Of a class; of fewer, intervals of areas, calibration and differences are too narrow."""

CHUNKS = 20
"""That resamples are worked on in: the weights of all images in all of them are large."""

Interval = list[float]
"""Low and high, as JSON has them."""


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


def patient_weights(
    confusions: Int[np.ndarray, "patient true predicted"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Float[np.ndarray, "resample patient"] | None:
    """How often each patient counts in each of many resamples (Efron and Tibshirani 1993, ch. 13).

    Of n patients of a class, n - 1 are drawn with replacement and weighed by n / (n - 1): with n
    draws the variance comes out too small by (n - 1) / n (Rao and Wu, J Am Stat Assoc 1988;83:231).
    A patient whose images have several classes belongs to that of the fewest patients (of equally
    few, the first), which could get lost among others.

    Args:
      confusions: one confusion matrix a patient.
      resamples: how many times patients are drawn.
      seed: of the draws; the same seed gives the same weights.

    Returns:
      None where a class has one patient: nothing is known of how patients of that class differ.
    """
    if not len(confusions) or classes_of_one_patient(confusions):
        return None
    strata = _strata(confusions)
    sizes = np.bincount(strata)
    random = np.random.Generator(np.random.PCG64(seed))
    weights = np.zeros((resamples, len(confusions)))
    for stratum in np.flatnonzero(sizes):
        size = sizes[stratum]
        draws = random.multinomial(size - 1, np.full(size, 1 / size), size=resamples)
        weights[:, strata == stratum] = draws * size / (size - 1)
    return weights


def bootstrap_intervals(
    confusions: Int[np.ndarray, "patient *seed true predicted"],
    metrics: Callable[[np.ndarray], Mapping[str, np.ndarray]] = five_metrics,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval | None]:
    """Intervals of the five metrics, or of others, that hold near 0 and 1 too.

    Patients are weighed at random (Bayesian bootstrap: Rubin, Ann Stat 1981;9:130), and each class
    keeps its number of images. No weighing of patients who were all read rightly makes an error, so
    one more patient is weighed with them, whose images have any one class and are all read as any
    one; each end is the furthest that this takes it. With one image a patient, the interval of a
    recall is so that of Clopper and Pearson (Biometrika 1934;26:404).

    Args:
      confusions: one confusion matrix a patient; or one a patient and seed, of the same images.
      metrics: by name, of confusion matrices along leading axes; their values have no seed axis.
      resamples: how many times patients are weighed.
      seed: of the weights; the same seed gives the same intervals.

    Returns:
      By name; None where a metric is not defined, or a class has one patient.
    """
    whole = confusions.sum(0)
    found: dict[str, Interval | None] = dict.fromkeys(metrics(whole))
    if not len(confusions):
        return found
    by_patient = confusions.reshape(len(confusions), -1, *whole.shape[-2:])[:, 0]
    if classes_of_one_patient(by_patient):
        return found
    random = np.random.Generator(np.random.PCG64(seed))
    sums = np.tensordot(
        random.standard_exponential((resamples, len(confusions))), confusions, axes=1
    )
    support, patients = whole.sum(-1, keepdims=True), _patients_of(by_patient)
    images = by_patient.sum((0, 2)) / np.maximum(patients, 1)
    one_more = random.standard_exponential((resamples, *[1] * (sums.ndim - 3)))
    ends = [np.array([*metrics(whole).values()], float)]
    for true in np.flatnonzero(patients):
        for read in range(len(patients)):
            more = sums.copy()
            more[..., true, read] += one_more * images[true]
            more *= support / np.where(support, more.sum(-1, keepdims=True), 1)
            ends += [*np.percentile([*metrics(more).values()], TAILS, axis=1)]
    return {
        name: None if np.isnan(low) else [float(low), float(high)]
        for name, low, high in zip(found, np.min(ends, 0), np.max(ends, 0), strict=True)
    }


def share_interval(
    right: Bool[np.ndarray, " image"], patients: Sequence[str] | np.ndarray
) -> Interval | None:
    """The interval of the share of images that are right, as `bootstrap_intervals` has it."""
    confusions = patient_confusions(np.zeros(len(right), int), 1 - right, patients, 2)
    return bootstrap_intervals(confusions, lambda m: {"": five_metrics(m)["accuracy"]})[""]


def percentile_interval(values: Float[np.ndarray, " resample"]) -> Interval | None:
    """What the middle LEVEL of the resampled values lie between; None where one is NaN."""
    low, high = np.percentile(values, TAILS)
    return None if np.isnan(low) else [float(low), float(high)]


def interval_of(
    statistic: Callable[[Float[np.ndarray, "resample image"]], Float[np.ndarray, " resample"]],
    weights: Float[np.ndarray, "resample patient"] | None,
    patient: Int[np.ndarray, " image"],
) -> Interval | None:
    """The interval of what is computed from weighed images, such as an area under a curve.

    Args:
      statistic: of the images, for many sets of weights at once.
      weights: of `patient_weights`.
      patient: the number of each image's patient, in the order of `weights`.

    Returns:
      None where an interval is not defined.
    """
    if weights is None:
        return None
    values = [statistic(chunk[:, patient]) for chunk in np.array_split(weights, CHUNKS)]
    return percentile_interval(np.concatenate(values))


def classes_of_one_patient(confusions: Int[np.ndarray, "patient true predicted"]) -> list[int]:
    """The classes that leave no intervals: one patient has them, or would be drawn alone."""
    sizes = np.bincount(_strata(confusions), minlength=confusions.shape[-1])
    return np.flatnonzero((_patients_of(confusions) == 1) | (sizes == 1)).tolist()


def classes_of_few_patients(confusions: Int[np.ndarray, "patient true predicted"]) -> list[int]:
    """The classes of two patients or more and fewer than FEW_PATIENTS: intervals are rough."""
    patients = _patients_of(confusions)
    return np.flatnonzero((patients > 1) & (patients < FEW_PATIENTS)).tolist()


def _strata(confusions: Int[np.ndarray, "patient true predicted"]) -> Int[np.ndarray, " patient"]:
    """The class within which each patient is drawn."""
    has = confusions.sum(-1) > 0
    return np.where(has, _patients_of(confusions), len(confusions) + 1).argmin(-1)


def _patients_of(confusions: Int[np.ndarray, "patient true predicted"]) -> Int[np.ndarray, " true"]:
    """How many patients have images of each class."""
    return (confusions.sum(-1) > 0).sum(0)
