"""A linear baseline: how far multinomial logistic regression on tiny images gets.

A data set on which it does well needs no network; it is printed beside every network's result.
"""

import dataclasses
import math
from pathlib import Path

import numpy as np
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from dscint_jax.input_pipeline import NO_FOLD, load_split
from dscint_jax.metrics import five_metrics

POOL = 16
"""Blocks of 16 x 16 pixels: a 1024x256 scintigram becomes 64x16."""

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1)
"""Inverse regularisation strengths, of which validation accuracy chooses one."""


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What logistic regression reaches.

    Attributes:
      scores: the five metrics by name.
      strength: scikit-learn's C, the best on the validation images.
      side: height and width of the images it saw, pixels.
    """

    scores: dict[str, float]
    strength: float
    side: tuple[int, int]


def linear_baseline(data_dir: Path, split: str = "test", *, fold: int = NO_FOLD) -> Baseline:
    """Fits on the training images, chooses its strength by validation, scores one split.

    Args:
      data_dir: where the data set lies.
      split: the one to score.
      fold: as for `load_split`.

    Raises:
      DscintError: there is no data set, or `fold` does not fit it.
    """
    features, labels = {}, {}
    for name in {"train", "validation", split}:
        images = load_split(data_dir, name, pool=POOL, cache_gib=math.inf, fold=fold)
        batch = images.read(np.arange(len(images)))
        features[name], labels[name] = _features(batch), batch["label"]
        classes, side = len(images.classes), batch["counts"].shape[1:3]
    fits = [_fit(features["train"], labels["train"], strength) for strength in STRENGTHS]
    accuracies = [fit.score(features["validation"], labels["validation"]) for fit in fits]
    best = int(np.argmax(accuracies))
    confusion = np.zeros((classes, classes), int)
    np.add.at(confusion, (labels[split], fits[best].predict(features[split])), 1)
    scores = {name: float(value) for name, value in five_metrics(confusion).items()}
    return Baseline(scores, STRENGTHS[best], side)


def _features(batch: dict[str, np.ndarray]) -> Float[np.ndarray, "image feature"]:
    """Pixels as the networks see them: the square root of counts over the image's scale."""
    ratio = batch["counts"] / batch["scale"][:, None, None, None]
    return np.sqrt(ratio).reshape(len(ratio), -1)


def _fit(features: np.ndarray, labels: np.ndarray, strength: float):
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000)).fit(
        features, labels
    )
