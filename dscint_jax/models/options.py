"""What the options of networks may hold.

Networks check their own options, which they know by name; where in the config these stand is known
to `models.build`, which says so before the error.
"""

import math
from collections.abc import Iterable
from typing import Any

from tfds_builder.commandline.errors import UserError


class OptionError(UserError):
    """An option does not fit.

    Args:
      option: its name among the network's arguments.
      fault: what is wrong and what to do.
    """

    def __init__(self, option: str, fault: str):
        super().__init__(f"{option} {fault}")


def check_sizes(option: str, given: Any) -> None:
    """Raises OptionError unless all of the option is whole numbers of at least 1."""
    if not _are_integers(given) or not given or min(given) < 1:
        raise OptionError(option, f"{_shown(given)} must be whole numbers, at least 1 each")


def check_size(option: str, given: Any) -> None:
    """Raises OptionError unless the option is a whole number of at least 1."""
    if not _are_integers([given]) or given < 1:
        raise OptionError(option, f"{given!r} must be a whole number, at least 1")


def check_layers(option: str, given: Any, lowest: int, highest: int) -> None:
    """Raises OptionError unless all of the option is numbers of convolutions."""
    if not _are_integers(given):
        raise OptionError(option, f"{_shown(given)} must be numbers of convolutions")
    for layer in given:
        if not lowest <= layer <= highest:
            raise OptionError(option, f"{layer} is no convolution; use {lowest} to {highest}")


def check_choice(option: str, given: Any, choices: Iterable[str]) -> None:
    """Raises OptionError unless the option is one of its choices."""
    if given not in tuple(choices):
        raise OptionError(option, f"'{given}' is not one of {', '.join(choices)}")


def check_flag(option: str, given: Any) -> None:
    """Raises OptionError unless the option is a truth value."""
    if not isinstance(given, bool):
        raise OptionError(option, f"{given!r} must be True or False")


def check_factor(option: str, given: Any) -> None:
    """Raises OptionError unless the option is a finite number of more than 0."""
    if not _is_number(given) or not 0 < given < math.inf:
        raise OptionError(option, f"{given!r} must be a number of more than 0")


def check_dropout(rate: Any) -> None:
    """Raises OptionError unless the rate is in [0, 1)."""
    if not _is_number(rate) or not 0 <= rate < 1:
        raise OptionError("dropout", f"{rate!r} must be in [0, 1)")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_integers(values: Any) -> bool:
    # True is an int in Python, but as a size it is a mistake.
    return isinstance(values, (list, tuple)) and all(type(value) is int for value in values)


def _shown(value: Any) -> str:
    return str(tuple(value)) if isinstance(value, list) else repr(value)
