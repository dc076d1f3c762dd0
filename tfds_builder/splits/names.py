"""Names and shares of the splits: train, validation and test, or folds."""

from collections.abc import Collection
from pathlib import Path

from tfds_builder.commandline.errors import UserError
from tfds_builder.manifest import FOLD, SPLITS

FRACTIONS = (0.7, 0.15, 0.15)
FEWEST_FOLDS = 3
"""One fold to test, one to validate, and one at least to train."""


def split_names(folds: int | None = None) -> tuple[str, ...]:
    """The names of the splits: train, validation and test, or fold_0 to fold_{folds - 1}.

    Raises UserError on fewer folds than `FEWEST_FOLDS`.
    """
    if folds is None:
        return SPLITS
    if folds < FEWEST_FOLDS:
        raise UserError(
            f"--folds {folds}: at least {FEWEST_FOLDS} are needed, to test, to validate and to "
            "train on"
        )
    return tuple(f"fold_{n}" for n in range(folds))


def shares_of(
    folds: int | None = None, fractions: tuple[float, float, float] = FRACTIONS
) -> dict[str, float]:
    """The share of patients that each split is to get; raises as `split_names`.

    Args:
      folds: how many, of equal shares; None: train, validation and test.
      fractions: shares of train, validation and test; they add up to 1.
    """
    names = split_names(folds)
    values = fractions if folds is None else (1 / folds,) * folds
    return dict(zip(names, values, strict=True))


def is_split_name(name: str) -> bool:
    """Whether this is train, validation, test or a fold."""
    return name in SPLITS or FOLD.fullmatch(name) is not None


def check_division(found: set[str], names: tuple[str, ...], file: Path) -> None:
    """Checks that the splits found in a file are those that patients are to be divided into.

    The file holds a whole division: four folds are never the first four of five. Raises UserError.
    """
    divided, wanted = _division(found), _division(names)
    if found and (divided != wanted or not found <= set(names)):
        raise UserError(
            f"{file} divides into {divided}, not into {wanted}: use another --data_dir, or remove "
            "the file to divide all patients anew"
        )


def _division(names: Collection[str]) -> str:
    if set(names) <= set(SPLITS):
        return ", ".join(SPLITS)
    folds = [int(fold[1]) for name in names if (fold := FOLD.fullmatch(name))]
    if len(folds) == len(names):
        return f"{1 + max(folds)} folds"
    return ", ".join(sorted(names))
