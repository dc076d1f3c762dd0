"""What a baseline reaches: importing this takes no scikit-learn."""

import dataclasses

from dscint_jax.metrics.intervals import Interval


@dataclasses.dataclass(frozen=True)
class Baseline:
    """What logistic regression reaches.

    Attributes:
      scores: the five metrics by name; None where one is not defined.
      intervals: of the same, 95 %, resampled by patient; low and high by name, or None.
      strength: scikit-learn's C, the best on the validation images.
      side: height and width of the images it saw, pixels; of a study, of each view.
    """

    scores: dict[str, float | None]
    intervals: dict[str, Interval | None]
    strength: float
    side: tuple[int, int]
