"""What a file says besides its image: who made it, how large, how bright."""

import numpy as np
from jaxtyping import Int
from sklearn.preprocessing import OneHotEncoder

from dscint_jax.baselines.inputs import DECILES, Inputs
from dscint_jax.baselines.linear_baseline import fit_logistic

FACT_STRENGTHS = (1e-2, 1e-1, 1.0, 10.0)
"""Inverse regularisation strengths, of which validation accuracy chooses one."""


def fact_predictions(inputs: dict[str, Inputs], split: str) -> Int[np.ndarray, " image"]:
    """What logistic regression on the facts alone says of one of the splits."""
    labels = {name: part.thumbnails["label"] for name, part in inputs.items()}
    facts = {name: fact_table(inputs["train"].facts, part.facts) for name, part in inputs.items()}
    fit, _ = fit_logistic(OneHotEncoder(handle_unknown="ignore"), facts, labels, FACT_STRENGTHS)
    return fit.predict(facts[split])


def fact_table(
    train: dict[str, np.ndarray], facts: dict[str, np.ndarray]
) -> Int[np.ndarray, "image fact"]:
    """Every fact as a category; a number is the tenth of the training images' range it lies in.

    Categories, because what a protocol gives away need not rise or fall with it.

    Args:
      train: the facts of the training images.
      facts: those to turn into a table.

    Returns:
      Columns in the order of `facts`; -1 for what no training image has.
    """
    return np.stack([_categories(train[name], values) for name, values in facts.items()], 1)


def _categories(train: np.ndarray, values: np.ndarray) -> Int[np.ndarray, " image"]:
    if np.issubdtype(train.dtype, np.number):
        known = train[np.isfinite(train)]
        edges = np.unique(np.quantile(known, DECILES)) if len(known) else np.zeros(0)
        return np.where(np.isfinite(values), np.searchsorted(edges, values), -1)
    known = np.unique(train)
    index = np.searchsorted(known, values).clip(max=len(known) - 1)
    return np.where(known[index] == values, index, -1)
