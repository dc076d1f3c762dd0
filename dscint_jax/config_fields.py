"""What a field of a config is: a type, a default, limits and a meaning, checked as it is given."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any

from tfds_builder.commandline.errors import UserError

Duration = int | str
"""Steps, or a text such as '30 epochs', '50_000 examples', '5 %'; see `resolve_durations`."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a field may hold: bounds that belong to it, bounds that do not, or choices."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    below: float = math.inf
    choices: tuple[str, ...] = ()

    def fault(self, value: Any) -> str | None:
        """What a value must be and is not."""
        if self.choices:
            return None if value in self.choices else " or ".join(self.choices)
        for number in value if isinstance(value, tuple) else (value,):
            if not isinstance(number, (int, float)):
                continue
            if isinstance(number, float) and not math.isfinite(number):
                return "finite"
            if number < self.least:
                return f"at least {self.least}"
            if number > self.most:
                return f"at most {self.most}"
            if number <= self.above:
                return f"more than {self.above}"
            if number >= self.below:
                return f"less than {self.below}"
        return None


def limits_of(field: dataclasses.Field[Any]) -> Limits:
    """What a field may hold."""
    return field.metadata.get("limits", Limits())


def meaning_of(field: dataclasses.Field[Any]) -> str:
    """What a field is for, with its choices."""
    choices = limits_of(field).choices
    chosen = f" One of {', '.join(choices)}." if choices else ""
    return field.metadata["meaning"] + chosen


def field(default: Any, meaning: str, **limits: Any) -> Any:
    """A field of a group; `--help` and the reference show its meaning. Limits are of `Limits`."""
    metadata = {"meaning": meaning, "limits": Limits(**limits)}
    return dataclasses.field(default=default, metadata=metadata)


def probability(default: float, of: str) -> Any:
    """A field that holds the probability of something."""
    return field(default, f"Probability of {of}.", least=0, most=1)


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value is of a field's type; a bool is no number here, an int is a float."""
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        # What a duration may be is said when it is resolved.
        return True
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, tuple):
            return False
        if arguments[-1] is ...:
            return all(_is_of(part, arguments[0]) for part in value)
        return len(value) == len(arguments) and all(map(_is_of, value, arguments))
    accepted = (float, int) if kind is float else typing.get_origin(kind) or kind
    return isinstance(value, accepted) and not isinstance(value, bool)


def _in_words(kind: Any) -> str:
    if typing.get_origin(kind) is tuple:
        inner = typing.get_args(kind)
        return "a list of texts" if inner[-1] is ... else f"{len(inner)} numbers"
    if dataclasses.is_dataclass(kind) or typing.get_origin(kind):
        return "a group of fields"
    return {int: "a whole number", float: "a number", str: "a text"}[kind]


def check_json(name: str, value: Any) -> None:
    """Raises UserError unless config.json can hold a value."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            check_json(f"{name}.{key}", inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            check_json(name, inner)
    elif not isinstance(value, (str, int, float, bool, type(None))):
        raise UserError(
            f"{name} is a {type(value).__name__}; it must be a number, a text, a truth value, "
            "None, or a list of them"
        )


@dataclasses.dataclass(frozen=True)
class Group:
    """Fields that are checked as they are given; `_PREFIX` is what stands before their names."""

    _PREFIX = "config."

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            name, value = self._PREFIX + field.name, getattr(self, field.name)
            if not _is_of(value, kinds[field.name]):
                raise UserError(f"{name} is {value!r}; it must be {_in_words(kinds[field.name])}")
            fault = limits_of(field).fault(value)
            if fault:
                shown = f"'{value}'" if isinstance(value, str) else value
                raise UserError(f"{name} is {shown}; it must be {fault}")
