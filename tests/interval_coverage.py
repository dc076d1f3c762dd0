"""How often the 95 % intervals hold the true value, by patients a class; a table.

    python -m tests.interval_coverage

Simulated readers of four classes: two images a patient, both read alike with probability 0.5, each
right with the probability of its class. One reads some classes worse than others, one all nearly
rightly. True values: the metrics of 200,000 patients a class.
"""

import argparse

import numpy as np

from dscint_jax.metrics.intervals import bootstrap_intervals
from dscint_jax.metrics.scores import METRIC_NAMES, five_metrics, one_vs_rest

READERS = {"0.75 to 0.95": (0.95, 0.85, 0.75, 0.9), "0.98": (0.98, 0.98, 0.98, 0.98)}
"""How often each class is read rightly."""
IMAGES = 2
FIRST = ("precision of one", "recall of one")
COLUMNS = (*METRIC_NAMES, *FIRST)


def simulate(random: np.random.Generator, right: tuple[float, ...], patients: int) -> np.ndarray:
    """One confusion matrix a patient, `patients` of each class."""
    classes = len(right)
    true = np.repeat(np.arange(classes), patients)
    is_right = random.random((len(true), IMAGES)) < np.array(right)[true, None]
    alike = random.random(len(true)) < 0.5
    is_right[alike] = is_right[alike, :1]
    wrong = (true[:, None] + random.integers(1, classes, is_right.shape)) % classes
    predicted = np.where(is_right, true[:, None], wrong)
    matrices = np.zeros((len(true), classes, classes), np.int64)
    np.add.at(matrices, (np.arange(len(true))[:, None], true[:, None], predicted), 1)
    return matrices


def measured(confusions: np.ndarray) -> dict[str, np.ndarray]:
    """The five metrics, and two of the first class alone."""
    first = {n: one_vs_rest(confusions)[n.split()[0]][..., 0] for n in FIRST}
    return five_metrics(confusions) | first


def coverage(
    right: tuple[float, ...], patients: int, trials: int, seed: int = 0, resamples: int = 1000
) -> dict[str, float]:
    """The share of simulated data sets whose interval holds the true value, by metric."""
    random = np.random.default_rng(seed)
    truth = measured(simulate(np.random.default_rng(1), right, 200_000).sum(0))
    held = dict.fromkeys(COLUMNS, 0)
    for trial in range(trials):
        confusions = simulate(random, right, patients)
        intervals = bootstrap_intervals(confusions, measured, resamples=resamples, seed=trial)
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
    print("read rightly | patients a class", *COLUMNS, sep=" | ")
    for name, right in READERS.items():
        for patients in (3, 10, 30, 100):
            row = coverage(right, patients, trials)
            print(name, patients, *(f"{row[n]:.3f}" for n in COLUMNS), sep=" | ", flush=True)


if __name__ == "__main__":
    main()
