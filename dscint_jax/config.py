"""A run's config: every field with its type, default, limits and meaning, in one entry each.

A config file, such as `configs/dscint.py`, has a function `get_config()` that returns a `Config`
and states what differs from the defaults. Values that do not fit are found here, before anything
is loaded. A run keeps its config as `config.json`.
"""

import copy
import dataclasses
import difflib
import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dscint_jax.config_fields import Duration, Group, check_json, field, probability
from tfds_builder.commandline.errors import UserError

VIEWS, STUDIES = "views", "studies"
PATIENT, AUGMENTED = "patient", "augmented"
AUTO, DEVICE, HOST, NONE = "auto", "device", "host", "none"
SHUFFLED, BALANCED = "shuffled", "balanced"
NO_FOLD = -1
"""What `data.fold` is where the data set is divided into train, validation and test."""

MAY_CHANGE = (
    "data.dir",
    "init_from",
    "spmd",
    "data.cache",
    "data.cache_gib",
    "data.threads",
    "keep_last",
    "keep_best",
    "trackers",
    "project",
)
"""Fields that may be others when a run is resumed: places, and what leaves the numbers alone."""


@dataclasses.dataclass(frozen=True)
class Data(Group):
    """Which images are trained on, how large, and where they are kept."""

    _PREFIX = "config.data."

    dir: str = field("data", "The --data_dir that tfds_builder.build filled.")
    records: str = field(
        VIEWS, "What one example is: an image, or both views of a study.", choices=(VIEWS, STUDIES)
    )
    fold: int = field(
        NO_FOLD,
        "Of a data set that was built in folds, the one to test on, from 0: the next one "
        "validates, the others train. -1: the data set is divided into train, validation and test.",
        least=-1,
    )
    training_share: float = field(
        1.0,
        "Share of the training patients of each class that is trained on, drawn by the seed; a "
        "smaller one is part of a larger: to measure what more patients bring.",
        above=0,
        most=1,
    )
    pool: int = field(
        1,
        "Side of the blocks of pixels whose counts are summed: 1 keeps 1024x256, 4 gives 256x64.",
        least=1,
    )
    clip: float = field(3.0, "Upper limit of a normalised pixel, sqrt(counts / scale).", above=0)
    cache: str = field(
        AUTO,
        "Where training images stay: on the accelerator, in this machine's memory or on the disk "
        "('none'); 'auto' takes the first that has room. The batches are the same.",
        choices=(AUTO, DEVICE, HOST, NONE),
    )
    cache_gib: float = field(
        8.0, "What 'auto' may take of the machine's memory for a split, GiB.", least=0
    )
    threads: int = field(2, "Threads that read images.", least=1)
    sampling: str = field(
        SHUFFLED,
        "'shuffled': every image once an epoch. 'balanced': every class equally often.",
        choices=(SHUFFLED, BALANCED),
    )
    copies: int = field(
        8, "Copies of every image under protocol 'augmented', itself among them.", least=2
    )


@dataclasses.dataclass(frozen=True)
class Augmentation(Group):
    """Ranges and probabilities of the random transformations; all zero changes nothing.

    A shift is a whole number of pixels, so that it leaves the noise as it is. Rotation and scaling
    interpolate, which smooths the noise, and a network that sees smoothed images only is a stranger
    to the others. Sizes and factors are even in their logarithm.
    """

    _PREFIX = "config.augmentation."

    mirror: float = probability(0.0, "exchanging left and right")
    translation: tuple[float, float] = field(
        (0.0, 0.0), "Largest shift, as fractions of the image's height and width.", least=0, below=1
    )
    translated: float = probability(1.0, "a shift")
    rotation: float = field(0.0, "Largest rotation, degrees.", least=0)
    rotated: float = probability(0.0, "a rotation")
    scaling: float = field(
        0.0,
        "Largest change of size: 0.1 gives sizes from 1/1.1 to 1.1. The counts a pixel stay: it is "
        "the patient who is larger.",
        least=0,
    )
    scaled: float = probability(0.0, "a change of size")
    intensity: float = field(
        0.0,
        "Largest change of brightness, in counts: 0.2 gives factors from 1/1.2 to 1.2.",
        least=0,
    )
    intensified: float = probability(0.0, "a change of brightness")
    thinning: float = field(
        0.0,
        "Largest share of the counts that is lost, as in a shorter scan. Each count is kept or "
        "lost by itself (binomial), so that Poisson counts stay Poisson counts.",
        least=0,
        below=1,
    )
    thinned: float = probability(0.0, "a loss of counts")

    @property
    def moves(self) -> bool:
        """Whether any image can be moved at all."""
        return bool(
            self.mirror
            or (any(self.translation) and self.translated)
            or (self.rotation and self.rotated)
            or (self.scaling and self.scaled)
        )

    @property
    def changes_intensity(self) -> bool:
        """Whether the brightness of any image can change."""
        return bool(self.intensity and self.intensified)

    @property
    def thins(self) -> bool:
        """Whether any image can lose counts."""
        return bool(self.thinning and self.thinned)


SOMETIMES = (
    ("rotation", "rotated"),
    ("scaling", "scaled"),
    ("intensity", "intensified"),
    ("thinning", "thinned"),
)
"""Sizes of an augmentation, each with its probability."""


@dataclasses.dataclass(frozen=True)
class Optimizer(Group):
    """How the parameters follow the gradients."""

    _PREFIX = "config.optimizer."

    name: str = field(
        "adamw",
        "'adamw' (Loshchilov and Hutter 2019); 'muon' (Jordan et al. 2024), which makes the steps "
        "of all kernels but the last layer's orthogonal and leaves the rest to AdamW without "
        "decay; or 'sgd' with Nesterov's momentum, whose decay is added to the gradient.",
        choices=("adamw", "muon", "sgd"),
    )
    momentum: float = field(0.9, "Of 'sgd'.", least=0, below=1)
    learning_rate: float = field(
        1e-3, "Peak of the schedule, after a linear warm-up from 0.", least=0
    )
    schedule: str = field(
        "cosine",
        "What follows the warm-up: half a cosine to zero, a straight way there, or the peak.",
        choices=("cosine", "linear", "constant"),
    )
    warmup_steps: Duration = field(500, "Length of the warm-up: steps, or '5 %', '2 epochs'.")
    weight_decay: float = field(
        1e-2,
        "Share of the parameters, times the learning rate, that a step takes away; of those with "
        "one axis, such as biases, nothing.",
        least=0,
    )
    clip_norm: float = field(1.0, "Largest norm of all gradients together.", above=0)


@dataclasses.dataclass(frozen=True)
class Config(Group):
    """All that a run is made from; the defaults are Dscint's at full size."""

    seed: int = field(0, "Everything random follows from this number.", least=0, below=2**32)
    steps: Duration = field(
        20_000,
        "Optimiser steps, or '30 epochs', '600_000 examples'; the learning rate's schedule ends "
        "with them.",
    )
    batch_size: int = field(32, "Images a step, over all devices together.", least=1)
    accumulation: int = field(
        1,
        "Parts that a batch is computed in, one after the other, where memory does not hold it at "
        "once. BatchNorm then normalises by each part.",
        least=1,
    )
    spmd: str = field(
        "jit",
        "How steps run on many devices: 'jit' (the compiler divides the batch) or 'pmap' (each "
        "device its own part); both end in the same numbers, up to rounding.",
        choices=("jit", "pmap"),
    )
    protocol: str = field(
        PATIENT,
        "'patient': no patient on both sides of a split. 'augmented': as the published system, "
        "every image is copied with random transformations first, and the copies are split: to "
        "measure what that leaks, not to report.",
        choices=(PATIENT, AUGMENTED),
    )
    loss: str = field(
        "cross_entropy",
        "'focal' (Lin et al. 2017) turns to what is hard, by focal_gamma.",
        choices=("cross_entropy", "focal"),
    )
    focal_gamma: float = field(2.0, "Exponent of the focal loss.", least=0)
    class_weights: str = field(
        "none",
        "Weights of the classes in the loss: 'balanced' is by inverse frequency.",
        choices=("none", "balanced"),
    )
    label_smoothing: float = field(
        0.0, "Share of the target that is spread over all classes.", least=0, most=1
    )
    mixup: float = field(
        0.0,
        "Mixes pairs of images and their labels (Zhang et al. 2018), in shares drawn from "
        "Beta(mixup, mixup); 0 does not.",
        least=0,
    )
    ema: float = field(
        0.0,
        "Decay of the exponential moving average of the parameters that is validated and tested, "
        "such as 0.999; 0 tests the parameters themselves.",
        least=0,
        below=1,
    )
    data: Data = Data()
    augmentation: Augmentation = Augmentation(
        mirror=0.5,
        translation=(0.03, 0.05),
        rotation=3.0,
        rotated=0.25,
        scaling=0.1,
        intensity=0.2,
        thinning=0.5,
    )
    model: str = field(
        "dscint", "A network of dscint_jax/models, or 'my_package.my_module:build' of your own."
    )
    model_options: Mapping[str, Any] = dataclasses.field(
        default_factory=dict, metadata={"meaning": "The network's own arguments; see its class."}
    )
    init_from: str = field(
        "", "A .safetensors or .pth file with weights to start from; empty: random ones."
    )
    optimizer: Optimizer = Optimizer()
    log_every: Duration = field(50, "Steps between two lines of train_metrics.jsonl.")
    evaluate_every: Duration = field(
        500, "Steps between two validations, each of which saves a checkpoint."
    )
    keep_last: int = field(2, "How many of the newest checkpoints are kept.", least=1)
    keep_best: int = field(1, "How many of the best by validation F-1 are kept.", least=1)
    trackers: tuple[str, ...] = field(
        ("tensorboard",),
        "Where metrics go beside train_metrics.jsonl: 'tensorboard', 'wandb', 'mlflow'.",
    )
    project: str = field("dscint", "What wandb and mlflow call the project.")

    def __post_init__(self) -> None:
        super().__post_init__()
        check_json("config.model_options", self.model_options)
        own, usual = self.augmentation, Config.augmentation
        for size, how_often in SOMETIMES:
            value, chance = getattr(own, size), getattr(own, how_often)
            # The usual sizes of what is off are there to be switched on.
            if value not in (0.0, getattr(usual, size)) and not chance:
                raise UserError(
                    f"config.augmentation.{size} is {value}, but config.augmentation.{how_often}, "
                    "its probability, is 0; set both"
                )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Config":
        """A config of nested mappings, such as config.json holds; lists become tuples.

        Raises:
          UserError: names the first field that is unknown or does not fit.
        """
        return _made_of(cls, values, "config.")

    def to_dict(self) -> dict[str, Any]:
        """The same as nested dicts."""
        return dataclasses.asdict(self)

    def replaced(self, fields: Mapping[str, Any]) -> "Config":
        """A copy with other values, such as {"steps": 12, "data.pool": 4, "model_options.norm": x}.

        Raises:
          UserError: names the first field that is unknown or does not fit.
        """
        values = self.to_dict()
        for name, value in fields.items():
            *groups, last = name.split(".")
            place = values
            for group in groups:
                place = place.setdefault(group, {})
            # A later field may lie within this value, which is the caller's.
            place[last] = copy.deepcopy(value)
        return self.from_dict(values)


def fields_of(config: Any, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field, Any]]:
    """Every field by its dotted name, with its description and value; groups are entered."""
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if dataclasses.is_dataclass(value):
            yield from fields_of(value, f"{prefix}{entry.name}.")
        else:
            yield f"{prefix}{entry.name}", entry, value


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, by dotted names: {"data": {"pool": 4}} as {"data.pool": 4}."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        inner = isinstance(value, Mapping)
        found |= flat(value, f"{prefix}{name}.") if inner else {prefix + name: value}
    return found


FIELDS = tuple(name for name, _, _ in fields_of(Config()))
"""The dotted names of all fields."""
DURATIONS = tuple(name for name, entry, _ in fields_of(Config()) if entry.type == Duration)
"""Those that hold a number of steps, or a text such as '30 epochs'."""


def read_config(path: Path) -> Config:
    """The config that a run keeps as config.json.

    Raises:
      UserError: the file cannot be read or is no config of a run.
    """
    try:
        values = json.loads(path.read_text())
        if not values:
            raise ValueError("nothing in it")
        return Config.from_dict(values)
    except OSError as error:
        raise UserError(f"{path}: {(error.strerror or str(error)).lower()}") from None
    except (ValueError, AttributeError, TypeError):
        raise UserError(f"{path} is no config of a run") from None
    except UserError as error:
        raise UserError(f"{path} is no config of a run: {error}") from None


def _made_of(kind: Any, values: Mapping[str, Any], prefix: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    kinds = typing.get_type_hints(kind)
    made = {}
    for name, value in values.items():
        if name not in fields:
            known = [one for one in FIELDS if f"config.{one}".startswith(prefix)]
            given = f"{prefix}{name}".removeprefix("config.")
            close = difflib.get_close_matches(given, known or FIELDS, n=1)
            hint = f"; did you mean config.{close[0]}?" if close else ""
            raise UserError(f"{prefix}{name} is no field of a config{hint}")
        if dataclasses.is_dataclass(kinds[name]) and isinstance(value, Mapping):
            value = _made_of(kinds[name], value, f"{prefix}{name}.")
        made[name] = with_tuples(value)
    # What is missing came after the file was written: its default leaves all as it was.
    return kind(**made)


def with_tuples(value: Any) -> Any:
    """The same of dicts and tuples, also where JSON made lists of them."""
    if isinstance(value, Mapping):
        return {name: with_tuples(inner) for name, inner in value.items()}
    return tuple(map(with_tuples, value)) if isinstance(value, (list, tuple)) else value
