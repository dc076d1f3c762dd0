"""The state of a training: all that its steps change, and the items that a checkpoint has of it.

`model` holds step, parameters and statistics; `ema`, where they are kept, the running means of the
latter two; `optimizer` the rest.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Int, PyTree

from dscint_jax.pytree import pytree


@pytree
@dataclasses.dataclass(frozen=True)
class TrainState:
    """All that training changes; what a checkpoint holds.

    Attributes:
      step: steps taken.
      params: trained parameters.
      batch_stats: what the network gathers besides (BatchNorm's running mean and variance).
      optimizer: state of the optax transformation.
      ema: running means of params and of statistics; None where none are kept.
    """

    step: Int[Array, ""]
    params: nnx.State
    batch_stats: nnx.State
    optimizer: PyTree
    ema: tuple[nnx.State, nnx.State] | None = None

    @property
    def evaluated(self) -> tuple[nnx.State, nnx.State]:
        """The parameters and statistics that are validated and tested."""
        return self.ema or (self.params, self.batch_stats)

    @property
    def items(self) -> dict[str, Any]:
        """The items of a checkpoint."""
        model = {"step": self.step, "params": self.params, "batch_stats": self.batch_stats}
        items = {"model": model, "optimizer": self.optimizer}
        if self.ema:
            items["ema"] = dict(zip(("params", "batch_stats"), self.ema, strict=True))
        return items

    @classmethod
    def from_items(cls, items: Mapping[str, Any]) -> "TrainState":
        """The state whose `items` these are."""
        model, ema = items["model"], items.get("ema")
        return cls(
            **model,
            optimizer=items["optimizer"],
            ema=(ema["params"], ema["batch_stats"]) if ema else None,
        )


def evaluated_items(params: nnx.State, batch_stats: nnx.State) -> dict[str, Any]:
    """The items of which an evaluator needs the first that a checkpoint has.

    Given and returned are shapes, types and shardings.
    """
    sharding = jax.tree.leaves(params)[0].sharding
    weights = {"params": params, "batch_stats": batch_stats}
    step = jax.ShapeDtypeStruct((), "int32", sharding=sharding)
    return {"ema": weights, "model": {"step": step, **weights}}
