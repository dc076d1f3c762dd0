"""Durations in steps, epochs, examples or percent become steps.

In: a config as a person writes it. Out: the same with whole steps, once the number of training
examples is known.
"""

import re
from collections.abc import Mapping
from typing import Any

from dscint_jax.config import DURATIONS, Config, fields_of
from dscint_jax.config_fields import Duration
from tfds_builder.commandline.errors import UserError

MAY_BE_ZERO = ("optimizer.warmup_steps",)
MOST_STEPS = 2**31 - 1
"""What the step number of a training state, an int32, can hold."""
_DURATION = re.compile(
    r"([0-9]+(?:_[0-9]+)*(?:\.[0-9]+)?)\s*(steps?|epochs?|examples?|percent|%)?",
    re.ASCII | re.IGNORECASE,
)


def resolve_durations(config: Config, *, examples: int, batch_size: int) -> Config:
    """A copy of the config in which every duration is a number of steps.

    An epoch is as many steps as the training split has whole batches; what does not come out even
    is rounded to the nearest step, and to one at least. A share is one of all steps.

    Args:
      config: with durations in any unit.
      examples: images, or studies, of the training split.
      batch_size: those of a step.

    Raises:
      UserError: names the field that is no duration.
    """
    units = {"step": 1.0, "epoch": float(max(examples // batch_size, 1)), "example": 1 / batch_size}
    given = {name: value for name, _, value in fields_of(config) if name in DURATIONS}
    total = _steps("steps", given.pop("steps"), units)
    units["percent"] = total / 100
    rest = {name: _steps(name, value, units) for name, value in given.items()}
    return config.replaced({"steps": total, **rest})


def _steps(field: str, value: Duration, units: Mapping[str, float]) -> int:
    least = 0 if field in MAY_BE_ZERO else 1
    number, unit = _parse_duration(field, value)
    if unit not in units:
        raise UserError(
            f"config.{field} is '{value}'; give it in steps, epochs or examples: percent are of it"
        )
    if number < least:
        raise UserError(f"config.{field} is {value}; it must be at least {least}")
    if number > MOST_STEPS / units[unit]:
        raise UserError(f"config.{field} is more than {MOST_STEPS} steps; make it shorter")
    if unit == "step" and number != int(number):
        raise UserError(f"config.{field} is {value}; steps are whole")
    return max(round(number * units[unit]), least)


def _parse_duration(field: str, value: Any) -> tuple[float, str]:
    """A number and its unit, in the singular."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return value, "step"
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise UserError(
            f"config.{field} is {value!r}; it must be a whole number of steps, or a text such as "
            f"'30 epochs', '50000 examples' or '5 %'"
        )
    return float(match[1]), (match[2] or "step").lower().replace("%", "percent").rstrip("s")
