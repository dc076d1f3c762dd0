"""How long: steps, epochs, examples or a share of the training, resolved once to steps.

In: a config whose durations are whole numbers of steps or texts such as '30 epochs',
'50_000 examples', '5 %', and the number of training examples. Out: the config in steps, which is
all that the rest of the code sees.
"""

import re
from typing import Any

from ml_collections import ConfigDict, FieldReference

from dscint_jax.config import DURATIONS
from dscint_jax.errors import DscintError

TOTAL = "steps"
"""The duration that a share is a share of."""

MAY_BE_ZERO = ("optimizer.warmup_steps",)

MOST_STEPS = 2**31 - 1
"""What the step number of a training state, an int32, can hold."""

_TEXT = re.compile(
    r"([0-9_]+(?:\.[0-9]+)?)\s*(steps?|epochs?|examples?|percent|%)?", re.ASCII | re.IGNORECASE
)


def free_durations(config: ConfigDict) -> None:
    """Lets every duration of a config be a number or a text, whichever its file has.

    A ConfigDict holds a field to the type of its first value, so that '30 epochs' could not be set
    over 1200, nor 1200 over '30 epochs'.
    """
    for field in DURATIONS:
        place, name = _place(config, field)
        if isinstance(place, ConfigDict) and name in place:
            value = place[name]
            with place.unlocked():
                del place[name]
                place[name] = FieldReference(value, field_type=object)


def resolve_durations(config: ConfigDict, *, examples: int, batch_size: int) -> ConfigDict:
    """A copy of the config in which every duration is a number of steps.

    An epoch is as many steps as the training split has whole batches; what does not come out even
    is rounded to the nearest step, and to one at least.

    Args:
      config: as `configs/dscint.py` documents.
      examples: images, or studies, of the training split.
      batch_size: those of a step.

    Raises:
      DscintError: names the field that is no duration.
    """
    # A copy by ConfigDict itself would keep the types of the texts.
    resolved = config.to_dict()
    units = {"step": 1.0, "epoch": float(max(examples // batch_size, 1)), "example": 1 / batch_size}
    total = _steps(config, TOTAL, units)
    units["percent"] = total / 100
    for field in DURATIONS:
        place, name = _place(resolved, field)
        place[name] = total if field == TOTAL else _steps(config, field, units)
    return ConfigDict(resolved)


def _place(config: Any, field: str) -> tuple[Any, str]:
    """The group that a field belongs to, None where there is none, and the field's name in it."""
    *groups, name = field.split(".")
    for group in groups:
        config = config.get(group)
    return config, name


def _steps(config: ConfigDict, field: str, units: dict[str, float]) -> int:
    place, name = _place(config, field)
    value = place[name]
    least = 0 if field in MAY_BE_ZERO else 1
    number, unit = _parse(field, value)
    if unit not in units:
        raise DscintError(
            f"config.{field} is '{value}'; give it in steps, epochs or examples: percent are of it"
        )
    if number < least:
        raise DscintError(f"config.{field} is {value}; it must be at least {least}")
    if number > MOST_STEPS / units[unit]:
        raise DscintError(f"config.{field} is more than {MOST_STEPS} steps; make it shorter")
    if unit == "step" and number != int(number):
        raise DscintError(f"config.{field} is {value}; steps are whole")
    return max(round(number * units[unit]), least)


def _parse(field: str, value: Any) -> tuple[float, str]:
    """A number and its unit, in the singular."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value, "step"
    match = _TEXT.fullmatch(value.strip()) if isinstance(value, str) else None
    try:
        number = float(match[1]) if match else None
    except ValueError:
        number = None
    if number is None:
        raise DscintError(
            f"config.{field} is {value!r}; it must be a whole number of steps, or a text such as "
            f"'30 epochs', '50000 examples' or '5 %'"
        )
    unit = (match[2] or "step").lower().replace("%", "percent")
    return number, unit if unit == "percent" else unit.rstrip("s")
