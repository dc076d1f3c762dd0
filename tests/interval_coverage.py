"""How often the 95 % intervals hold the true value, by patients a class; a table.

    python -m tests.interval_coverage

Simulated readers of four classes: two images a patient, both read alike with probability 0.5, each
right with the probability of its class. True values: the metrics of 200,000 patients a class.
"""

import argparse

import numpy as np

from dscint_jax.metrics.intervals import bootstrap_intervals
from dscint_jax.metrics.scores import METRIC_NAMES, five_metrics

RIGHT = (0.95, 0.85, 0.75, 0.9)
IMAGES = 2


def simulate(random: np.random.Generator, patients: int) -> np.ndarray:
    """One confusion matrix a patient, `patients` of each class."""
    classes = len(RIGHT)
    true = np.repeat(np.arange(classes), patients)
    right = random.random((len(true), IMAGES)) < np.array(RIGHT)[true, None]
    alike = random.random(len(true)) < 0.5
    right[alike] = right[alike, :1]
    wrong = (true[:, None] + random.integers(1, classes, right.shape)) % classes
    predicted = np.where(right, true[:, None], wrong)
    matrices = np.zeros((len(true), classes, classes), np.int64)
    np.add.at(matrices, (np.arange(len(true))[:, None], true[:, None], predicted), 1)
    return matrices


def coverage(patients: int, trials: int, seed: int = 0) -> dict[str, float]:
    """The share of simulated data sets whose interval holds the true value, by metric."""
    random = np.random.default_rng(seed)
    truth = five_metrics(simulate(np.random.default_rng(1), 200_000).sum(0))
    held = dict.fromkeys(METRIC_NAMES, 0)
    for trial in range(trials):
        intervals = bootstrap_intervals(simulate(random, patients), resamples=1000, seed=trial)
        for name, (low, high) in intervals.items():
            held[name] += low <= truth[name] <= high
    return {name: count / trials for name, count in held.items()}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.interval_coverage", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--trials", type=int, default=1000, help="simulated data sets (1000)")
    trials = parser.parse_args().trials
    print("patients a class", *(f"{name:>12}" for name in METRIC_NAMES))
    for patients in (3, 10, 30, 100):
        row = coverage(patients, trials)
        print(f"{patients:16}", *(f"{row[name]:12.3f}" for name in METRIC_NAMES))


if __name__ == "__main__":
    main()
