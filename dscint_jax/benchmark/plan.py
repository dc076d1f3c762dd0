"""What a benchmark compares: networks, conditions, seeds; and the cells that this makes.

In: a config file with a function `get_config(size)` that returns a `Benchmark`, such as
configs/benchmark.py. Out: cells, each with the `Config` of one normal run.
"""

import dataclasses
import re
import runpy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dscint_jax.config import Config
from dscint_jax.config_files import config_file
from tfds_builder.commandline.errors import UserError

NAME = re.compile(r"[a-z0-9_]+")
"""What networks, ablations and conditions may be called: they name folders."""


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """A matrix of runs; all have the same data, budget and augmentation.

    Attributes:
      base: the config that all runs share.
      networks: fields that differ, by the network's name in the tables; the first is the one that
        the others are compared with. `model` is the name itself unless it is given.
      ablations: fields that differ from the first network's, by what is left out. They are trained
        under the first condition, with the first network's learning rate.
      conditions: fields that differ, such as the protocol, by name. Under the first one learning
        rates are chosen.
      learning_rates: those that every network is tried with, by the first seed; the one with the
        best F-1 on the validation split is taken for all its runs.
      seeds: of the runs.
    """

    base: Config
    networks: Mapping[str, Mapping[str, Any]]
    ablations: Mapping[str, Mapping[str, Any]]
    conditions: Mapping[str, Mapping[str, Any]]
    learning_rates: tuple[float, ...]
    seeds: tuple[int, ...]

    def __post_init__(self) -> None:
        for kind in ("networks", "conditions", "learning_rates", "seeds"):
            values = getattr(self, kind)
            if not values or len(set(values)) != len(values):
                raise UserError(f"the benchmark's {kind} are empty or have one twice")
        if not isinstance(self.base.steps, int):
            raise UserError(
                f"the benchmark's steps are '{self.base.steps}'; give a number: all networks have "
                "the same budget"
            )
        names = [*self.networks, *self.ablations]
        for name in (*names, *self.conditions):
            if not NAME.fullmatch(name) or names.count(name) > 1:
                raise UserError(
                    f"the benchmark's name '{name}' is taken twice or has other signs than a to z, "
                    f"0 to 9 and _; rename it"
                )

    @property
    def first(self) -> str:
        """The network that the others are compared with."""
        return next(iter(self.networks))

    @property
    def chosen_under(self) -> str:
        """The condition under which learning rates are chosen."""
        return next(iter(self.conditions))

    def network_of(self, name: str) -> str:
        """The network of that name, or the one that an ablation of that name leaves something out
        of: it has the same learning rate.
        """
        return name if name in self.networks else self.first

    def config(self, cell: "Cell") -> Config:
        """The config of a cell's run; UserError if a field does not fit."""
        network = self.network_of(cell.name)
        own = {"model": network, **self.networks[network], **self.ablations.get(cell.name, {})}
        run = {"seed": cell.seed, "optimizer.learning_rate": cell.learning_rate}
        return self.base.replaced({**self.conditions[cell.condition], **own, **run})

    def trials(self, name: str) -> list["Cell"]:
        """The cells among which a network's learning rate is chosen."""
        return [Cell(name, self.chosen_under, r, self.seeds[0]) for r in self.learning_rates]

    def cells(self, name: str, learning_rate: float) -> list["Cell"]:
        """The cells of the tables that a network or an ablation has."""
        conditions = self.conditions if name in self.networks else [self.chosen_under]
        return [Cell(name, c, learning_rate, seed) for seed in self.seeds for c in conditions]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the matrix."""

    name: str
    condition: str
    learning_rate: float
    seed: int

    @property
    def place(self) -> Path:
        """Its work directory, below the benchmark's folder of cells."""
        return Path(self.condition, self.name, f"lr{self.learning_rate:g}", f"seed{self.seed}")

    def __str__(self) -> str:
        return f"{self.name}, {self.condition}, seed {self.seed}, rate {self.learning_rate:g}"


def read_benchmark(value: str, data_dir: Path | None = None) -> Benchmark:
    """The benchmark of a config file.

    Args:
      value: FILE or FILE:SIZE, such as configs/benchmark.py:cpu.
      data_dir: of the data set, instead of the config's.

    Raises:
      UserError: there is no such file or size, or a field does not fit.
    """
    name, _, size = value.partition(".py:")
    file = config_file(name if name.endswith(".py") else f"{name}.py", plans=True)
    try:
        found = runpy.run_path(str(file))["get_config"](*[size] * bool(size))
    except UserError:
        raise
    # A config file is the user's own Python: it may raise anything.
    except Exception as error:
        raise UserError(f"--config {value}: {type(error).__name__}: {error}") from error
    if not isinstance(found, Benchmark):
        raise UserError(
            f"--config {value}: get_config returns a {type(found).__name__}; a benchmark is "
            f"configs/benchmark.py, or a copy of it"
        )
    base = found.base
    if data_dir is not None:
        base = base.replaced({"data.dir": str(data_dir)})
    # Relative to where the command is given; a cell's own process may be elsewhere.
    base = base.replaced({"data.dir": str(Path(base.data.dir).expanduser().absolute())})
    found = dataclasses.replace(found, base=base)
    rate = found.learning_rates[0]
    for name in (*found.networks, *found.ablations):
        for cell in found.cells(name, rate):
            found.config(cell)
    return found
