"""Whether one network reads the same patients better than another.

In: what each read, patient by patient. Out: differences with intervals and p values. The patient is
the unit of every test: images of one patient are drawn, swapped and summed together.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Real
from scipy.special import ndtr, ndtri

from dscint_jax.metrics.intervals import (
    LEVEL,
    RESAMPLES,
    Interval,
    bootstrap_intervals,
    patient_weights,
    percentile_interval,
)
from dscint_jax.metrics.scores import METRIC_NAMES, five_metrics


@dataclasses.dataclass(frozen=True)
class Difference:
    """First minus second.

    Attributes:
      value: the difference; NaN where it is not defined.
      low, high: its 95 % interval, NaN where there is none.
      p: of no difference, two-sided; NaN where it was not tested.
    """

    value: float
    low: float = np.nan
    high: float = np.nan
    p: float = np.nan


def compare_metrics(
    first: Int[np.ndarray, "of_first patient true predicted"],
    second: Int[np.ndarray, "of_second patient true predicted"],
    *,
    resamples: int = RESAMPLES,
    permutations: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Difference]:
    """The five metrics of two networks: paired bootstrap intervals and a permutation test.

    A network's metric is the mean over its seeds. Intervals draw the same patients for both
    networks. The test swaps, for every patient by a coin, all that the one read with all that the
    other read (Good 2005, ch. 3); it needs as many seeds of both.

    Args:
      first, second: confusion matrices of the same patients in the same order, by seed.
      resamples: how many times patients are drawn.
      permutations: how often coins are thrown; p is at least one in so many and one.
      seed: of both; the same seed gives the same numbers.

    Returns:
      By METRIC_NAMES.
    """
    # Of both, as one may have images of patients whom the other has none of.
    weights = patient_weights(first.sum(0) + second.sum(0), resamples=resamples, seed=seed)
    observed = _differences(first.sum(1), second.sum(1))
    drawn, swapped = {}, {}
    if weights is not None:
        drawn = _differences(_weighted(weights, first), _weighted(weights, second))
    if len(first) == len(second):
        swapped = _swapped(first, second, permutations, seed)
    found = {}
    for name in METRIC_NAMES:
        value, low, high, p = float(observed[name]), np.nan, np.nan, np.nan
        if drawn:
            low, high = percentile_interval(drawn[name]) or (np.nan, np.nan)
        if swapped and not np.isnan(value):
            # What rounding makes of equal differences counts as equal; the data are one of the
            # throws themselves (Phipson and Smyth 2010).
            as_far = np.abs(swapped[name]) >= abs(value) - 1e-12
            p = (1 + np.sum(as_far)) / (1 + permutations)
        found[name] = Difference(value, float(low), float(high), float(p))
    return found


def _swapped(
    first: Int[np.ndarray, "seed patient true predicted"],
    second: Int[np.ndarray, "seed patient true predicted"],
    permutations: int,
    seed: int,
) -> dict[str, Float[np.ndarray, " permutation"]]:
    """Differences where coins decide, patient by patient, which network read what."""
    random = np.random.Generator(np.random.PCG64([seed, 1]))
    more = first - second
    # To swap what is alike changes nothing.
    more = more[:, (more != 0).any((0, 2, 3))]
    found = []
    for start in range(0, permutations, RESAMPLES):
        throws = min(RESAMPLES, permutations - start)
        moved = _weighted(random.integers(0, 2, (throws, more.shape[1])).astype(float), more)
        ours, theirs = first.sum(1)[:, None] - moved, second.sum(1)[:, None] + moved
        found.append(_differences(ours, theirs))
    return {name: np.concatenate([values[name] for values in found]) for name in METRIC_NAMES}


def seed_mean_intervals(
    confusions: Int[np.ndarray, "seed patient true predicted"],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Interval | None]:
    """Intervals of each metric's mean over the seeds, patients weighed once for all.

    As `bootstrap_intervals` has them, of confusion matrices of the same patients by seed.
    """
    return bootstrap_intervals(
        np.moveaxis(confusions, 0, 1),
        lambda matrices: {n: v.mean(-1) for n, v in five_metrics(matrices).items()},
        resamples=resamples,
        seed=seed,
    )


def _weighted(
    weights: Float[np.ndarray, "resample patient"],
    confusions: Int[np.ndarray, "seed patient true predicted"],
) -> Float[np.ndarray, "seed resample true predicted"]:
    seeds, patients, true, predicted = confusions.shape
    sums = weights @ confusions.reshape(seeds, patients, true * predicted)
    return sums.reshape(seeds, len(weights), true, predicted)


def _differences(
    first: Real[np.ndarray, "of_first *resample true predicted"],
    second: Real[np.ndarray, "of_second *resample true predicted"],
) -> dict[str, Float[np.ndarray, "*resample"]]:
    of_first, of_second = five_metrics(first), five_metrics(second)
    return {n: np.asarray(of_first[n].mean(0) - of_second[n].mean(0)) for n in METRIC_NAMES}


def mcnemar(
    first: Bool[np.ndarray, " patient"], second: Bool[np.ndarray, " patient"]
) -> tuple[int, int, float]:
    """McNemar's exact test (Psychometrika 1947;12:153) of which patients were read rightly.

    Returns:
      How many only the first read rightly, how many only the second, and p, two-sided.
    """
    from scipy.stats import binomtest

    only_first, only_second = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    either = only_first + only_second
    return only_first, only_second, float(binomtest(only_first, either).pvalue) if either else 1.0


def delong(
    scores: Sequence[Float[np.ndarray, " image"]],
    positive: Bool[np.ndarray, " image"],
    patients: np.ndarray,
) -> tuple[Float[np.ndarray, " reader"], Float[np.ndarray, "reader reader"]]:
    """Areas under the ROC curve of several readers of the same images, and their covariance.

    DeLong et al. (Biometrics 1988;44:837), with the components of a patient's images summed, as
    Obuchowski (Biometrics 1997;53:567) has it. With one image a patient both are the same.

    Args:
      scores: of each reader.
      positive: which images have the class.
      patients: whom each image is of.

    Returns:
      Areas and covariance; NaN where fewer than two patients have the class, or lack it.
    """
    readers = len(scores)
    _, patient = np.unique(patients, return_inverse=True)
    with_class, others = (len(np.unique(patient[chosen])) for chosen in (positive, ~positive))
    if with_class < 2 or others < 2:
        return np.full(readers, np.nan), np.full((readers, readers), np.nan)
    areas, sums = np.zeros(readers), np.zeros((2, readers, patient.max() + 1))
    for reader, values in enumerate(scores):
        components = _components(np.asarray(values, float), positive)
        areas[reader] = components[positive].mean()
        for side, chosen in enumerate((positive, ~positive)):
            # A patient's images less what as many images have on the average.
            np.add.at(sums[side, reader], patient[chosen], components[chosen] - areas[reader])
    pos, neg = positive.sum(), (~positive).sum()
    count = patient.max() + 1
    of_pos = with_class / (with_class - 1) * sums[0] @ sums[0].T / pos**2
    of_neg = others / (others - 1) * sums[1] @ sums[1].T / neg**2
    mixed = count / (count - 1) * sums[0] @ sums[1].T / (pos * neg)
    return areas, of_pos + of_neg + mixed + mixed.T


def compare_areas(
    first: Sequence[Float[np.ndarray, " image"]],
    second: Sequence[Float[np.ndarray, " image"]],
    positive: Bool[np.ndarray, " image"],
    patients: np.ndarray,
) -> Difference:
    """The areas under the ROC curve of two networks, each the mean over its seeds, by `delong`.

    The scores of both are of the same images, by seed.
    """
    areas, covariance = delong([*first, *second], positive, patients)
    shares = np.array([1 / len(first)] * len(first) + [-1 / len(second)] * len(second))
    value, variance = float(shares @ areas), float(shares @ covariance @ shares)
    if np.isnan(variance):
        return Difference(value)
    # What rounding leaves of no difference at all is none.
    error = float(np.sqrt(variance)) if variance > 1e-15 else 0.0
    if not error:
        # Patients who do not vary tell no difference from chance; no difference needs none.
        return Difference(value) if abs(value) > 1e-12 else Difference(0, 0, 0, 1)
    half = float(-ndtri((1 - LEVEL) / 2) * error)
    return Difference(value, value - half, value + half, float(2 * ndtr(-abs(value) / error)))


def _components(
    scores: Float[np.ndarray, " image"], positive: Bool[np.ndarray, " image"]
) -> Float[np.ndarray, " image"]:
    """Of an image with the class, the share of the others it outscores; of these, by how many."""
    components = np.zeros(len(scores))
    for chosen, rising in ((positive, True), (~positive, False)):
        rest = np.sort(scores[~chosen])
        below = np.searchsorted(rest, scores[chosen], "left")
        up_to = np.searchsorted(rest, scores[chosen], "right")
        share = (below + up_to) / (2 * len(rest))
        components[chosen] = share if rising else 1 - share
    return components


def holm(p_values: Sequence[float] | np.ndarray) -> list[float]:
    """Adjusted for having tested them all (Holm, Scand J Stat 1979;6:65); NaN stays NaN."""
    adjusted, highest = list(map(float, p_values)), 0.0
    tested = sorted((p, i) for i, p in enumerate(adjusted) if not np.isnan(p))
    for rank, (p, i) in enumerate(tested):
        highest = min(max(highest, (len(tested) - rank) * p), 1.0)
        adjusted[i] = highest
    return adjusted
