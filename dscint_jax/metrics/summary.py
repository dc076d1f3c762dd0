"""All that is measured of what a network says of a split, as metrics.json holds it.

In: predictions, and those on the validation images, on which thresholds and temperature are chosen.
Out: plain values; None is what is not defined.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from dscint_jax.metrics import calibration
from dscint_jax.metrics.discrimination import (
    auroc,
    average_precision,
    best_point,
    operating_point,
)
from dscint_jax.metrics.intervals import (
    LEVEL,
    METHOD,
    bootstrap_intervals,
    classes_of_few_patients,
    classes_of_one_patient,
    interval_of,
    patient_weights,
    share_interval,
)
from dscint_jax.metrics.predictions import KEYS, MIXED, Predictions
from dscint_jax.metrics.scores import CLASS_METRICS, defined, one_vs_rest, ratio
from dscint_jax.metrics.scores import summary as scores_of

LEAST = 0.95
"""What specificity is asked for where sensitivity is told, and the other way round."""

TARGETS = (0.9, 0.95)
"""Accuracies of answers that a least confidence is chosen for."""

COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
"""Shares of the images that are read where the network may abstain from the others."""


def summarise(predictions: Predictions, validation: Predictions | None = None) -> dict[str, Any]:
    """All that is measured of a split.

    Args:
      predictions: one row a record.
      validation: the same network's on images that neither trained nor test it; None: no
        threshold and no temperature is chosen.
    """
    measured = _calibration(predictions, validation)
    return {
        **with_intervals(predictions),
        "areas": _areas(predictions),
        "operating_points": validation and _operating_points(predictions, validation),
        "calibration": measured,
        "abstention": _abstention(predictions),
        "answers": validation and _answers(predictions, validation, measured["temperature"]),
        "groups": {
            fact: _groups(predictions, values)
            for fact, values in predictions.facts.items()
            if fact not in KEYS
        },
        "studies": _combined(predictions, "study_key"),
        "patients": _combined(predictions, "patient_key"),
    }


def with_intervals(predictions: Predictions) -> dict[str, Any]:
    """The five metrics, over all classes and of each, with their 95 % intervals."""
    confusions, classes = predictions.confusions(), predictions.classes
    each = bootstrap_intervals(confusions, lambda matrices: _by_class(matrices, classes))
    found = scores_of(confusions.sum(0), classes)
    for label in classes:
        for name in CLASS_METRICS:
            found["per_class"][label][f"{name}_interval"] = each[f"{name} {label}"]
    return {
        **found,
        "intervals": {
            "method": METHOD,
            "level": LEVEL,
            "patients": len(confusions),
            "classes_of_one_patient": [classes[n] for n in classes_of_one_patient(confusions)],
            "classes_of_few_patients": [classes[n] for n in classes_of_few_patients(confusions)],
            "values": bootstrap_intervals(confusions),
        },
    }


def _by_class(matrices: np.ndarray, classes: Sequence[str]) -> dict[str, np.ndarray]:
    values = one_vs_rest(matrices)
    return {
        f"{name} {label}": values[name][..., i]
        for i, label in enumerate(classes)
        for name in CLASS_METRICS
    }


def _areas(predictions: Predictions) -> dict[str, Any]:
    """AUROC and average precision of each class against the others."""
    measured = _measuring(predictions)
    found: dict[str, Any] = {}
    for i, label in enumerate(predictions.classes):
        scores, positive = predictions.probabilities[:, i], predictions.labels == i
        found[label] = {
            "prevalence": defined(positive.mean()),
            **measured("auroc", auroc, scores, positive),
            **measured("average_precision", average_precision, scores, positive),
        }
    return found


def _operating_points(predictions: Predictions, validation: Predictions) -> dict[str, Any]:
    """Of each class, two thresholds chosen on validation, and what they do there and here."""
    patients = predictions.patients
    found: dict[str, Any] = {}
    for i, label in enumerate(predictions.classes):
        chosen_on = validation.probabilities[:, i], validation.labels == i
        scores, positive = predictions.probabilities[:, i], predictions.labels == i
        found[label] = {}
        if not chosen_on[1].any() or chosen_on[1].all():
            continue
        for aim in ("specificity", "sensitivity"):
            point = best_point(*chosen_on, aim, LEAST)
            here = operating_point(scores, positive, point.threshold)
            called = scores >= point.threshold
            found[label][f"{aim}_{100 * LEAST:.0f}"] = {
                "threshold": point.threshold if np.isfinite(point.threshold) else None,
                "validation": {
                    "sensitivity": defined(point.sensitivity),
                    "specificity": defined(point.specificity),
                },
                "sensitivity": defined(here.sensitivity),
                "sensitivity_interval": share_interval(called[positive], patients[positive]),
                "specificity": defined(here.specificity),
                "specificity_interval": share_interval(~called[~positive], patients[~positive]),
            }
    return found


def _calibration(predictions: Predictions, validation: Predictions | None) -> dict[str, Any]:
    measured = _measuring(predictions)

    def calibrated(probabilities: np.ndarray) -> dict[str, Any]:
        images = probabilities, predictions.labels
        curve = calibration.reliability_curve(*images)
        return {
            **measured("ece", calibration.calibration_error, *images),
            **measured("brier", calibration.brier_score, *images),
            **{name: values.tolist() for name, values in curve.items()},
        }

    temperature = after = None
    if validation is not None:
        temperature = calibration.fit_temperature(validation.probabilities, validation.labels)
        after = calibrated(calibration.with_temperature(predictions.probabilities, temperature))
    own = calibrated(predictions.probabilities)
    return {**own, "bins": calibration.BINS, "temperature": temperature, "after": after}


def _abstention(predictions: Predictions) -> list[dict[str, float]]:
    """Accuracy where at least these shares of the images are read, the surest first."""
    curve = calibration.abstention_curve(predictions.probabilities, predictions.labels)
    places = [int(np.argmax(curve.coverage >= coverage - 1e-9)) for coverage in COVERAGES]
    return [
        {
            "coverage": float(curve.coverage[at]),
            "confidence": float(curve.threshold[at]),
            "accuracy": float(curve.accuracy[at]),
        }
        for at in places
    ]


def _answers(
    predictions: Predictions, validation: Predictions, temperature: float
) -> list[dict[str, Any]]:
    """Of each target, the least confidence chosen on validation, and what it does there and here.

    What is answered are studies, at the temperature, as `dscint_jax.predict` answers them.
    """
    here, there = _studies(predictions, temperature), _studies(validation, temperature)
    found = []
    for target in TARGETS:
        threshold = calibration.threshold_of_accuracy(there.probabilities, there.labels, target)
        least = np.inf if threshold is None else threshold
        answered = here.probabilities.max(1) >= least
        right = (here.predicted == here.labels)[answered]
        found.append(
            {
                "accuracy_target": target,
                "least_confidence": threshold,
                "validation": {"studies": len(there), **_answered(there, least)},
                "studies": len(here),
                **_answered(here, least),
                "coverage_interval": share_interval(answered, here.patients),
                "accuracy_interval": share_interval(right, here.patients[answered]),
                "coverage_by_class": {
                    label: _answered(here.only(here.labels == i), least)["coverage"]
                    for i, label in enumerate(here.classes)
                },
            }
        )
    return found


def _answered(studies: Predictions, least: float) -> dict[str, float | None]:
    """The share of the studies that are answered, and of these that are right."""
    answered = studies.probabilities.max(1) >= least
    right = answered & (studies.predicted == studies.labels)
    return {
        "coverage": defined(ratio(answered.sum(), np.int64(len(studies)))),
        "accuracy": defined(ratio(right.sum(), answered.sum())),
    }


def _studies(predictions: Predictions, temperature: float) -> Predictions:
    warmed = calibration.with_temperature(predictions.probabilities, temperature)
    return dataclasses.replace(predictions, probabilities=warmed).combined("study_key")[0]


def _groups(predictions: Predictions, values: np.ndarray) -> dict[str, Any]:
    return {
        str(value) or "unknown": with_intervals(predictions.only(values == value))
        for value in np.unique(values)
    }


def _combined(predictions: Predictions, unit: str) -> dict[str, Any]:
    combined, left_out = predictions.combined(unit)
    rule = f"mean of the probabilities; of images of several classes, {MIXED}, none"
    return {"rule": rule, "left_out": left_out, **with_intervals(combined)}


def _measuring(predictions: Predictions) -> Callable[..., dict[str, Any]]:
    """A function that gives, by name, what is computed from weighed images, and its interval."""
    weights = patient_weights(predictions.confusions())
    _, patient = np.unique(predictions.patients, return_inverse=True)

    def measured(name: str, measure: Callable[..., Any], *images: np.ndarray) -> dict[str, Any]:
        interval = interval_of(functools.partial(measure, *images), weights, patient)
        return {name: defined(measure(*images)), f"{name}_interval": interval}

    return measured
