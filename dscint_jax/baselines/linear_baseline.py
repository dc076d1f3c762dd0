"""A linear baseline: how far multinomial logistic regression on tiny images gets.

A data set on which it does well needs no network; it is printed beside every network's result.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Int
from sklearn.base import TransformerMixin, clone
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from dscint_jax.baselines.result import Baseline
from dscint_jax.config import VIEWS
from dscint_jax.input_pipeline import (
    NO_FOLD,
    HostBatch,
    Sample,
    Scintigrams,
    load_split,
)
from dscint_jax.metrics.intervals import Interval, bootstrap_intervals, patient_confusions
from dscint_jax.metrics.scores import defined, five_metrics
from dscint_jax.training.augment import Augmentation, images_seen

POOL = 16
"""Blocks of 16 x 16 pixels: a 1024x256 scintigram becomes 64x16."""

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Inverse regularisation strengths, of which validation accuracy chooses one."""

ELSEWHERE = "elsewhere"
"""What a split of another data set is called beside the training's own."""


def linear_baseline(
    data_dir: Path,
    split: str = "test",
    *,
    fold: int = NO_FOLD,
    records: str = VIEWS,
    copies: int | None = None,
    sample: Sample | None = None,
    ranges: Augmentation = Augmentation(),  # noqa: B008 - it is frozen
    elsewhere: Scintigrams | None = None,
) -> Baseline:
    """Fits on the training images, chooses its strength by validation, scores one split.

    Args:
      data_dir: where the data set lies.
      split: the one to score.
      fold, records, copies: as for `load_split`.
      sample: of the training patients.
      ranges: of the poses of copies, which are moved at the size of the tiny images.
      elsewhere: the split to score, summed over blocks of POOL, where it is another data set's;
        its labels are numbered as those of `data_dir`.

    Raises:
      UserError: there is no data set, or `fold` does not fit it.
    """
    load = functools.partial(
        load_split,
        data_dir,
        pool=POOL,
        cache_gib=math.inf,
        fold=fold,
        records=records,
        copies=copies,
    )
    training = load("train", sample=sample)
    parts = {"train": training, "validation": load("validation", beside=training)}
    if elsewhere:
        split, parts[ELSEWHERE] = ELSEWHERE, elsewhere
    elif split not in parts:
        parts[split] = load(split, beside=training)
    batches = {name: images.read(np.arange(len(images))) for name, images in parts.items()}
    return baseline_of(batches, split, len(training.classes), ranges=ranges)


def baseline_of(
    batches: Mapping[str, HostBatch],
    split: str,
    num_classes: int,
    *,
    ranges: Augmentation = Augmentation(),  # noqa: B008 - it is frozen
) -> Baseline:
    """The linear baseline on images in memory.

    Args:
      batches: the training images, the validation images and those to score, by split; their
        counts summed over blocks of POOL.
      split: the one to score.
      num_classes: of the labels.
      ranges: of the poses of copies.
    """
    features = {
        name: images_seen(batch, ranges).reshape(len(batch["label"]), -1)
        for name, batch in batches.items()
    }
    labels = {name: batch["label"] for name, batch in batches.items()}
    fit, strength = fit_logistic(StandardScaler(), features, labels, STRENGTHS)
    predicted = fit.predict(features[split])
    patients = batches[split]["patient_key"]
    return Baseline(
        *score_by_patient(labels[split], predicted, patients, num_classes),
        strength,
        batches[split]["counts"].shape[-3:-1],
    )


def fit_logistic(
    preprocess: TransformerMixin,
    features: Mapping[str, np.ndarray],
    labels: Mapping[str, Int[np.ndarray, " image"]],
    strengths: Sequence[float],
) -> tuple[Pipeline, float]:
    """Multinomial logistic regression, as strong as suits the validation images best.

    Args:
      preprocess: makes numbers of the features; fitted on the training images.
      features, labels: by split; 'train' and 'validation' are used.
      strengths: values of scikit-learn's C to try.

    Returns:
      The fit of the highest validation accuracy, the first of equals, and its strength. Of training
      images of one class, it says that class.
    """
    single = len(np.unique(labels["train"])) == 1
    fits = [
        make_pipeline(
            clone(preprocess),
            DummyClassifier() if single else LogisticRegression(C=strength, max_iter=1000),
        ).fit(features["train"], labels["train"])
        for strength in strengths
    ]
    accuracies = [fit.score(features["validation"], labels["validation"]) for fit in fits]
    best = int(np.argmax(accuracies))
    return fits[best], strengths[best]


def score_by_patient(
    labels: Int[np.ndarray, " image"],
    predicted: Int[np.ndarray, " image"],
    patients: Sequence[str] | np.ndarray,
    num_classes: int,
) -> tuple[dict[str, float | None], dict[str, Interval | None]]:
    """The five metrics by name, and their 95 % intervals, resampled by patient."""
    confusions = patient_confusions(labels, predicted, patients, num_classes)
    values = five_metrics(confusions.sum(0))
    return {name: defined(v) for name, v in values.items()}, bootstrap_intervals(confusions)
