"""Means of the scores of maps over images and groups of images, with their 95 % intervals.

In: the scores of each image, and what the network said of it. Out: plain values, as
explanations.json holds them; None is what is not defined.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from dscint_jax.explain.lesions import GROUPS
from dscint_jax.explain.maps import METHODS
from dscint_jax.explain.scores import BASELINES, SCORES
from dscint_jax.metrics.intervals import (
    RESAMPLES,
    Interval,
    patient_weights,
    percentile_interval,
)
from dscint_jax.metrics.predictions import Predictions
from dscint_jax.metrics.scores import defined

MAP_TITLES = METHODS | {name: name for name in BASELINES}
"""What the maps are called in tables, the methods first."""

METHOD = f"percentile bootstrap of the patients of each class, {RESAMPLES} resamples"


def score_table(
    scores: Float[np.ndarray, "image group map score"],
    predictions: Predictions,
    maps: tuple[str, ...],
) -> dict[str, Any]:
    """All means over the scored images, and over those of each group.

    Args:
      scores: by SCORES, of the maps, on the lesions of each of GROUPS; NaN where an image has none.
      predictions: of the same images.
      maps: names of the maps, the BASELINES last.

    Returns:
      'all'; by 'site', 'size' and 'contrast' of lesions, where only those of a group count; by the
      'class', the 'view' and the 'reading' of images. Of each, the mean of every map and of what a
      method has more than a baseline has, under 'METHOD - BASELINE'.
    """
    found: dict[str, Any] = {}
    for index, (kind, name) in enumerate(GROUPS):
        found.setdefault(kind, {})[name] = _means(scores[:, index], predictions, maps)
    every = scores[:, 0]
    right = predictions.predicted == predictions.labels
    for kind, chosen in (
        ("class", {n: predictions.labels == i for i, n in enumerate(predictions.classes)}),
        ("view", {str(v): predictions.facts["view"] == v for v in set(predictions.facts["view"])}),
        ("reading", {"right": right, "wrong": ~right}),
    ):
        found[kind] = {
            name: _means(every[which], predictions.only(which), maps)
            for name, which in sorted(chosen.items())
        }
    # There is one group of all lesions.
    found["all"] = found["all"][GROUPS[0][1]]
    return found


def verdicts(means: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Of each method, in words, which baselines it is not shown to point better than.

    Args:
      means: of one score, as `score_table` has them.

    Returns:
      None of a method whose differences have no intervals. Better is a difference whose interval
      lies above 0.
    """
    found = []
    for method, title in METHODS.items():
        bounds = {
            name: means[f"{method} - {name}"]["interval"] for name in BASELINES if method in means
        }
        if not bounds or None in bounds.values():
            continue
        title = title[0].upper() + title[1:]
        missed = [name for name, (low, _) in bounds.items() if low <= 0]
        if missed:
            found.append(f"{title} is not shown to point better than {', '.join(missed)}.")
        else:
            found.append(f"{title} points better than {', '.join(BASELINES)}.")
    return found


def agreement(
    correlations: Float[np.ndarray, "image map"], predictions: Predictions, maps: tuple[str, ...]
) -> dict[str, Any]:
    """Mean rank correlations, by map, over the images where neither map is constant (NaN)."""
    found = {}
    for values, name in zip(correlations.T, maps, strict=True):
        known = ~np.isnan(values)
        (mean,), (interval,) = mean_with_interval(values[known, None], predictions.only(known))
        found[name] = {
            "images": int(known.sum()),
            "constant": int(np.sum(~known)),
            "rank_correlation": defined(mean),
            "interval": interval,
        }
    return found


def mean_with_interval(
    values: Float[np.ndarray, "image column"], predictions: Predictions
) -> tuple[Float[np.ndarray, " column"], list[Interval | None]]:
    """Means over images, and the intervals that resampling whole patients gives."""
    if not len(values):
        return np.full(values.shape[1], np.nan), [None] * values.shape[1]
    _, patient = np.unique(predictions.patients, return_inverse=True)
    sums = np.zeros((patient.max() + 1, values.shape[1]))
    np.add.at(sums, patient, values)
    weights = patient_weights(predictions.confusions())
    if weights is None:
        return values.mean(0), [None] * values.shape[1]
    resampled = weights @ sums / (weights @ np.bincount(patient))[:, None]
    return values.mean(0), [percentile_interval(column) for column in resampled.T]


def _means(
    scores: Float[np.ndarray, "image map score"], predictions: Predictions, maps: tuple[str, ...]
) -> dict[str, Any]:
    scored = ~np.isnan(scores[:, 0, 0])
    scores, predictions = scores[scored], predictions.only(scored)
    found: dict[str, Any] = {
        "images": len(scores),
        "patients": len(np.unique(predictions.patients)),
    }
    for index, score in enumerate(SCORES):
        columns = {name: scores[:, i, index] for i, name in enumerate(maps)}
        columns |= {
            f"{method} - {baseline}": columns[method] - columns[baseline]
            for method in maps
            if method not in BASELINES
            for baseline in BASELINES
        }
        values = np.stack([*columns.values()], axis=1)
        found[score] = {
            name: {"mean": defined(mean), "interval": interval}
            for name, mean, interval in zip(
                columns, *mean_with_interval(values, predictions), strict=True
            )
        }
    return found
