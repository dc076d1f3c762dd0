"""The fields a config has, and what they may hold; `configs/dscint.py` says what each means.

A field that is missing, misspelt or of another type is found here, before anything is loaded.
"""

import copy
import difflib
import math
from typing import Any

from ml_collections import ConfigDict

from dscint_jax.errors import DscintError

VIEWS, STUDIES = "views", "studies"
PATIENT, AUGMENTED = "patient", "augmented"

FIELDS: dict[str, type] = {
    "seed": int,
    "steps": object,
    "batch_size": int,
    "accumulation": int,
    "spmd": str,
    "protocol": str,
    "loss": str,
    "focal_gamma": float,
    "class_weights": str,
    "label_smoothing": float,
    "mixup": float,
    "ema": float,
    "data.dir": str,
    "data.records": str,
    "data.fold": int,
    "data.pool": int,
    "data.clip": float,
    "data.cache": str,
    "data.cache_gib": float,
    "data.threads": int,
    "data.sampling": str,
    "data.copies": int,
    "augmentation.mirror": float,
    "augmentation.translation": tuple,
    "augmentation.translated": float,
    "augmentation.rotation": float,
    "augmentation.rotated": float,
    "augmentation.scaling": float,
    "augmentation.scaled": float,
    "augmentation.intensity": float,
    "augmentation.intensified": float,
    "augmentation.thinning": float,
    "augmentation.thinned": float,
    "model": str,
    "model_options": ConfigDict,
    "init_from": str,
    "optimizer.name": str,
    "optimizer.momentum": float,
    "optimizer.learning_rate": float,
    "optimizer.schedule": str,
    "optimizer.warmup_steps": object,
    "optimizer.weight_decay": float,
    "optimizer.clip_norm": float,
    "log_every": object,
    "evaluate_every": object,
    "keep_last": int,
    "keep_best": int,
    "trackers": tuple,
    "project": str,
}

DURATIONS = ("steps", "optimizer.warmup_steps", "log_every", "evaluate_every")
"""Fields that hold a number of steps, or a text such as '30 epochs': see `durations`."""

LATER_FIELDS: dict[str, Any] = {
    "data.fold": -1,
    "data.records": VIEWS,
    "init_from": "",
    "keep_best": 1,
    "accumulation": 1,
    "spmd": "jit",
    "protocol": PATIENT,
    "loss": "cross_entropy",
    "focal_gamma": 2.0,
    "mixup": 0.0,
    "ema": 0.0,
    "data.cache": "auto",
    "data.threads": 2,
    "data.sampling": "shuffled",
    "data.copies": 8,
    "optimizer.name": "adamw",
    "optimizer.momentum": 0.9,
    "optimizer.schedule": "cosine",
    "trackers": ["tensorboard"],
    "project": "dscint",
    "augmentation.translated": 1.0,
    "augmentation.scaling": 0.1,
    "augmentation.scaled": 0.0,
    "augmentation.intensity": 0.2,
    "augmentation.intensified": 0.0,
    "augmentation.thinning": 0.5,
    "augmentation.thinned": 0.0,
}
"""Fields that earlier versions did not have, with the value that means what those did."""

LATER_DSCINT_OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "norm": "batch",
    "reading": "eight",
    "width": 1.0,
    "widths": None,
    "strides": None,
    "pool_after": None,
    "kernel": 3,
    "attention_reduction": 8,
}
"""The same of Dscint's own options."""

PROBABILITIES = tuple(
    f"augmentation.{name}"
    for name in ("mirror", "translated", "rotated", "scaled", "intensified", "thinned")
)
"""Fields that hold the probability of a random transformation."""

AT_LEAST: dict[str, float] = {
    "seed": 0,
    "batch_size": 1,
    "accumulation": 1,
    "focal_gamma": 0,
    "label_smoothing": 0,
    "mixup": 0,
    "ema": 0,
    "data.fold": -1,
    "data.pool": 1,
    "data.cache_gib": 0,
    "data.threads": 1,
    "data.copies": 2,
    **dict.fromkeys(PROBABILITIES, 0),
    "augmentation.rotation": 0,
    "augmentation.scaling": 0,
    "augmentation.intensity": 0,
    "augmentation.thinning": 0,
    "optimizer.learning_rate": 0,
    "optimizer.momentum": 0,
    "optimizer.weight_decay": 0,
    "keep_last": 1,
    "keep_best": 1,
}

CHOICES: dict[str, tuple[str, ...]] = {
    "data.records": (VIEWS, STUDIES),
    "data.cache": ("auto", "device", "host", "none"),
    "data.sampling": ("shuffled", "balanced"),
    "spmd": ("jit", "pmap"),
    "protocol": (PATIENT, AUGMENTED),
    "loss": ("cross_entropy", "focal"),
    "class_weights": ("none", "balanced"),
    "optimizer.name": ("adamw", "sgd"),
    "optimizer.schedule": ("cosine", "linear", "constant"),
}

MORE_THAN_ZERO = ("data.clip", "optimizer.clip_norm")
AT_MOST_ONE = ("label_smoothing", *PROBABILITIES)
LESS_THAN_ONE = ("augmentation.thinning", "ema", "optimizer.momentum")


def check_config(config: ConfigDict) -> None:
    """Checks names, types and ranges of all fields.

    Raises:
      DscintError: names the first field that does not fit.
    """
    given = _flatten(config)
    for field, value in given.items():
        _check_json(field, value)
    for field in given:
        if field not in FIELDS:
            close = difflib.get_close_matches(field, FIELDS, n=1)
            hint = f"; did you mean config.{close[0]}?" if close else ""
            raise DscintError(f"config.{field} is no field of a config{hint}")
    for field, kind in FIELDS.items():
        if field not in given:
            raise DscintError(f"config.{field} is missing; configs/dscint.py has every field")
        _check_type(field, given[field], kind)
    if given["seed"] >= 2**32:
        raise DscintError(f"config.seed is {given['seed']}; it must be less than 2**32")
    for field, value in given.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise DscintError(f"config.{field} is {value}; it must be finite")
    for field, least in AT_LEAST.items():
        if given[field] < least:
            raise DscintError(f"config.{field} is {given[field]}; it must be at least {least}")
    for field in MORE_THAN_ZERO:
        if given[field] <= 0:
            raise DscintError(f"config.{field} is {given[field]}; it must be more than 0")
    for field in AT_MOST_ONE:
        if given[field] > 1:
            raise DscintError(f"config.{field} is {given[field]}; it must be at most 1")
    for field in LESS_THAN_ONE:
        if given[field] >= 1:
            raise DscintError(f"config.{field} is {given[field]}; it must be less than 1")
    for field, choices in CHOICES.items():
        if given[field] not in choices:
            raise DscintError(
                f"config.{field} is '{given[field]}'; it must be {' or '.join(choices)}"
            )
    translation = given["augmentation.translation"]
    if len(translation) != 2 or not all(_is_fraction(part) for part in translation):
        raise DscintError(
            f"config.augmentation.translation is {translation}; it must be two fractions in [0, 1)"
        )


def add_later_fields(config: dict[str, Any]) -> dict[str, Any]:
    """A config that an earlier version wrote, with `LATER_FIELDS` where it has none."""
    config = copy.deepcopy(config)
    for field, value in LATER_FIELDS.items():
        *groups, name = field.split(".")
        place = config
        for group in groups:
            place = place.setdefault(group, {})
        place.setdefault(name, value)
    if config.get("model") == "dscint":
        config["model_options"] = LATER_DSCINT_OPTIONS | config["model_options"]
    return config


def _is_fraction(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 1


def _flatten(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    fields = {}
    for name, value in config.items():
        field = prefix + name
        if isinstance(value, ConfigDict) and FIELDS.get(field) is not ConfigDict:
            fields.update(_flatten(value, field + "."))
        else:
            fields[field] = value
    return fields


def _check_json(field: str, value: Any) -> None:
    """A work directory keeps its config as JSON."""
    if isinstance(value, ConfigDict):
        for name, inner in value.items():
            _check_json(f"{field}.{name}", inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            _check_json(field, inner)
    elif not isinstance(value, (str, int, float, bool, type(None))):
        raise DscintError(
            f"config.{field} is a {type(value).__name__}; it must be a number, a text, a truth "
            "value, None, or a list of them"
        )


def _check_type(field: str, value: Any, kind: type) -> None:
    accepted = {float: (float, int), tuple: (tuple, list)}.get(kind, kind)
    if kind is object:
        # What a duration may be, `durations` knows.
        return
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise DscintError(
            f"config.{field} is {value!r}; it must be of type {kind.__name__.lower()}"
        )
