"""Whether probabilities mean what they say, and what becomes of a reader that may abstain.

In: probabilities and true classes. Out: expected calibration error, Brier score, the reliability
curve, the temperature that repairs overconfidence, accuracy against coverage, and the least
confidence at which answers are right often enough.
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float, Int

from dscint_jax.metrics.scores import ratio

BINS = 15
"""Of equal width, as Guo et al., ICML 2017, have them."""

TEMPERATURES = (0.05, 20.0)
"""What a temperature is looked for between."""

CONFIDENCE = 0.95
"""With which a threshold is shown to keep its target."""

LEAST_COVERAGE = 0.25
"""Where thresholds begin to be tried: among fewer images, one sure error would end the search."""


def brier_score(
    probabilities: Float[np.ndarray, "image classes"],
    labels: Int[np.ndarray, " image"],
    weights: Float[np.ndarray, "*resample image"] | None = None,
) -> Float[np.ndarray, "*resample"]:
    """Mean over images of the squared distance to the true class, summed over classes (0 to 2)."""
    distances = ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(1)
    weights = np.ones(len(labels)) if weights is None else weights
    return ratio(weights @ distances, weights.sum(-1))


def calibration_error(
    probabilities: Float[np.ndarray, "image classes"],
    labels: Int[np.ndarray, " image"],
    weights: Float[np.ndarray, "*resample image"] | None = None,
) -> Float[np.ndarray, "*resample"]:
    """Expected calibration error of the predicted class over BINS bins of equal width.

    It is the mean over images of |accuracy - mean confidence| of their bin. Of few images it is
    too high even where every probability is right (Kumar et al., NeurIPS 2019).
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    gaps = np.zeros((len(labels), BINS))
    gaps[np.arange(len(labels)), _bin_of(confidence)] = right - confidence
    weights = np.ones(len(labels)) if weights is None else weights
    return ratio(np.abs(weights @ gaps).sum(-1), weights.sum(-1))


def reliability_curve(
    probabilities: Float[np.ndarray, "image classes"], labels: Int[np.ndarray, " image"]
) -> dict[str, np.ndarray]:
    """How often the predicted class is right, by how sure the network is of it.

    Returns:
      Mean `confidence` and `accuracy` of the `images` of each bin; bins without any are left out.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = _bin_of(confidence)
    images = np.bincount(bins, minlength=BINS)
    there = images > 0

    def mean(values: np.ndarray) -> np.ndarray:
        return np.bincount(bins, values, minlength=BINS)[there] / images[there]

    return {"confidence": mean(confidence), "accuracy": mean(right), "images": images[there]}


def fit_temperature(
    probabilities: Float[np.ndarray, "image classes"], labels: Int[np.ndarray, " image"]
) -> float:
    """The temperature of the least cross-entropy (Guo et al., ICML 2017).

    Args:
      probabilities: of images that neither trained nor test the network.
      labels: their true classes.

    Returns:
      What logits are divided by: above 1 where the network is too sure; within TEMPERATURES.
    """
    from scipy.optimize import minimize_scalar

    def cross_entropy(log_temperature: float) -> float:
        warmed = with_temperature(probabilities, float(np.exp(log_temperature)))
        return float(-np.log(warmed[np.arange(len(labels)), labels]).mean())

    found = minimize_scalar(cross_entropy, bounds=np.log(TEMPERATURES), method="bounded")
    return float(np.exp(found.x))


def with_temperature(
    probabilities: Float[np.ndarray, "image classes"], temperature: float
) -> Float[np.ndarray, "image classes"]:
    """The softmax of the logits divided by a temperature; no class becomes impossible."""
    logits = np.log(np.maximum(probabilities, np.finfo(np.float32).tiny)) / temperature
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class AbstentionCurve:
    """Accuracy on the images that a reader who abstains when unsure still reads.

    Attributes:
      threshold: the least confidence that is read, falling.
      coverage: share of the images that are read.
      accuracy: share of those that are right.
    """

    threshold: Float[np.ndarray, " threshold"]
    coverage: Float[np.ndarray, " threshold"]
    accuracy: Float[np.ndarray, " threshold"]


def abstention_curve(
    probabilities: Float[np.ndarray, "image classes"], labels: Int[np.ndarray, " image"]
) -> AbstentionCurve:
    """Coverage and accuracy at every confidence; images of the same are read together."""
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    order = np.argsort(-confidence, kind="stable")
    read = np.arange(1, len(order) + 1)
    last = np.flatnonzero(np.diff(confidence[order], append=-np.inf))
    return AbstentionCurve(
        threshold=confidence[order][last],
        coverage=read[last] / max(len(order), 1),
        accuracy=np.cumsum(right[order])[last] / read[last],
    )


def fewest_read(accuracy: float) -> int:
    """How many images, all of them right, show an accuracy with CONFIDENCE."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(accuracy))


def threshold_of_accuracy(
    probabilities: Float[np.ndarray, "image classes"],
    labels: Int[np.ndarray, " image"],
    accuracy: float,
) -> float | None:
    """The least confidence that may be read, for what is read to be right often enough.

    An exact binomial test has to show the accuracy with CONFIDENCE. Thresholds are tried one after
    the other, falling, until one fails, so that the choice among many costs nothing of it (Learn
    then test, Angelopoulos et al., 2021); the first reads LEAST_COVERAGE, or as many images as it
    takes to show it.

    Args:
      probabilities, labels: as for `fit_temperature`.
      accuracy: the target, between 0 and 1.

    Returns:
      0 where all images may be read; None where no threshold is shown to keep the target.
    """
    from scipy.stats import binom

    curve = abstention_curve(probabilities, labels)
    read = np.rint(curve.coverage * len(labels))
    right = np.rint(curve.accuracy * read)
    shown = binom.sf(right - 1, read, accuracy) <= 1 - CONFIDENCE
    tried = shown[read >= max(fewest_read(accuracy), LEAST_COVERAGE * len(labels))]
    kept = int(np.logical_and.accumulate(tried).sum())
    if not kept:
        return None
    last = len(shown) - len(tried) + kept - 1
    return 0.0 if last == len(shown) - 1 else float(curve.threshold[last])


def _bin_of(confidence: Float[np.ndarray, " image"]) -> Int[np.ndarray, " image"]:
    """Bins hold their upper bound, as those of Guo et al. do."""
    return np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)
