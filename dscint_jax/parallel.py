"""Where arrays live: a mesh of all devices, the batch split over it, the state on each of them.

One compiled step serves one device and many: XLA adds the gradient sum over the mesh axis `data`.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from dscint_jax.errors import DscintError
from dscint_jax.models import AttentionMaps
from dscint_jax.train_step import (
    Evaluation,
    Recipe,
    TrainState,
    attention_step,
    eval_step,
    train_step,
)

AXIS = "data"

DeviceBatch = dict[str, jax.Array]
TrainStep = Callable[[TrainState, DeviceBatch], tuple[TrainState, dict[str, jax.Array]]]
EvalStep = Callable[[nnx.State, nnx.State, DeviceBatch], Evaluation]
AttentionStep = Callable[[nnx.State, nnx.State, DeviceBatch], AttentionMaps]


def data_mesh() -> Mesh:
    """All devices in a row, along the axis 'data'."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises DscintError unless every device gets the same number of images."""
    if batch_size % mesh.size:
        raise DscintError(
            f"config.batch_size {batch_size} cannot be shared out evenly over {mesh.size} "
            f"device(s); choose a multiple of {mesh.size}"
        )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts a copy of every array on every device."""
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec()))


def replicated_shapes(tree: Any, mesh: Mesh) -> Any:
    """Shapes and types of a tree whose arrays are to lie on every device."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=everywhere), tree
    )


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> DeviceBatch:
    """Splits a host batch over the devices along its first axis."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return {
        name: jax.make_array_from_process_local_data(sharding, values)
        for name, values in batch.items()
    }


def compile_train_step(recipe: Recipe, mesh: Mesh) -> TrainStep:
    """The jitted train step; the state it is given is donated and must not be used again."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        functools.partial(train_step, recipe=recipe),
        in_shardings=(everywhere, NamedSharding(mesh, PartitionSpec(AXIS))),
        out_shardings=everywhere,
        donate_argnums=0,
    )


def compile_eval_step(recipe: Recipe, mesh: Mesh) -> EvalStep:
    """The jitted evaluation of (params, statistics, batch); results on every device."""
    return _compile_inference(eval_step, recipe, mesh)


def compile_attention_step(recipe: Recipe, mesh: Mesh) -> AttentionStep:
    """The jitted attention maps of (params, statistics, batch); results on every device."""
    return _compile_inference(attention_step, recipe, mesh)


def _compile_inference(step: Callable[..., Any], recipe: Recipe, mesh: Mesh) -> Callable[..., Any]:
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        functools.partial(step, recipe=recipe),
        in_shardings=(everywhere, everywhere, NamedSharding(mesh, PartitionSpec(AXIS))),
        out_shardings=everywhere,
    )
