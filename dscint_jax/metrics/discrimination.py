"""How well the probability of a class tells its images from all others, at every threshold.

In: scores, and which images have the class. Out: the area under the ROC curve, average precision,
and the operating points that readers of a scan ask for. Weights, a set of them for each resample,
stand for images that a resample has several times or not at all.
"""

import dataclasses
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

from dscint_jax.metrics.scores import ratio


def auroc(
    scores: Float[np.ndarray, " image"],
    positive: Bool[np.ndarray, " image"],
    weights: Float[np.ndarray, "*resample image"] | None = None,
) -> Float[np.ndarray, "*resample"]:
    """Area under the ROC curve: the share of pairs that are in order, a tie being half of one.

    Args:
      scores: higher is more of the class.
      positive: which images have it.
      weights: of the images, at least 0; None: 1 for all.

    Returns:
      NaN where no image of positive weight has the class, or all have it.
    """
    with_class, others = _by_score(scores, positive, weights)
    below = np.cumsum(others, -1) - others
    pairs = with_class.sum(-1) * others.sum(-1)
    return ratio((with_class * (below + others / 2)).sum(-1), pairs)


def average_precision(
    scores: Float[np.ndarray, " image"],
    positive: Bool[np.ndarray, " image"],
    weights: Float[np.ndarray, "*resample image"] | None = None,
) -> Float[np.ndarray, "*resample"]:
    """Area under the precision-recall curve as a sum of steps, without interpolation.

    Arguments are those of `auroc`; NaN where no image of positive weight has the class.
    """
    with_class, others = _by_score(scores, positive, weights)
    hits = np.cumsum(with_class[..., ::-1], -1)
    precision = ratio(hits, hits + np.cumsum(others[..., ::-1], -1))
    steps = np.where(with_class[..., ::-1] > 0, with_class[..., ::-1] * precision, 0)
    return ratio(steps.sum(-1), with_class.sum(-1))


@dataclasses.dataclass(frozen=True)
class OperatingPoint:
    """What one threshold does: an image is called positive where its score reaches it.

    Attributes:
      threshold: infinite where nothing may be called positive.
      sensitivity: share of the images with the class that are called positive; NaN without any.
      specificity: share of the others that are not; NaN without any.
    """

    threshold: float
    sensitivity: float
    specificity: float


def operating_point(
    scores: Float[np.ndarray, " image"], positive: Bool[np.ndarray, " image"], threshold: float
) -> OperatingPoint:
    """What a threshold, chosen here or elsewhere, does to images."""
    called = scores >= threshold
    return OperatingPoint(
        threshold=float(threshold),
        sensitivity=_share(called[positive]),
        specificity=_share(~called[~positive]),
    )


def _share(right: Bool[np.ndarray, " image"]) -> float:
    return float(right.mean()) if len(right) else float("nan")


def best_point(
    scores: Float[np.ndarray, " image"],
    positive: Bool[np.ndarray, " image"],
    aim: Literal["specificity", "sensitivity"],
    least: float,
) -> OperatingPoint:
    """Of all thresholds that reach the aim, the one that does best by the other of the two.

    Of several such, it is one that reaches most of the aim too. There must be images with the
    class, and others.

    Args:
      scores, positive: as for `auroc`.
      aim: what has to be at least `least`.
      least: between 0 and 1.
    """
    thresholds = np.append(np.unique(scores), np.inf)
    below = [
        np.searchsorted(np.sort(scores[chosen]), thresholds) for chosen in (positive, ~positive)
    ]
    held, other = 1 - below[0] / positive.sum(), below[1] / (~positive).sum()
    if aim == "specificity":
        held, other = other, held
    best = np.lexsort((held, np.where(held >= least, other, -1)))[-1]
    return operating_point(scores, positive, float(thresholds[best]))


def _by_score(
    scores: np.ndarray, positive: np.ndarray, weights: np.ndarray | None
) -> tuple[Float[np.ndarray, "*resample score"], Float[np.ndarray, "*resample score"]]:
    """The weight of images with the class, and of the others, at each distinct score, rising."""
    weights = np.ones(len(scores)) if weights is None else weights
    order = np.argsort(scores, kind="stable")
    first = np.flatnonzero(np.diff(scores[order], prepend=-np.inf))
    if not len(first):
        return np.zeros((*weights.shape[:-1], 1)), np.zeros((*weights.shape[:-1], 1))
    sums = [
        np.add.reduceat(weights[..., order] * chosen[order], first, axis=-1)
        for chosen in (positive, ~positive)
    ]
    return sums[0], sums[1]
