"""Where arrays live: a mesh of all devices, the batch split over it, the state on each of them.

One step serves one device and many: each takes it on its own rows of the batch, and the means over
the mesh axis `data` are in the step. Evaluation needs none, and is divided by the compiler.
"""

import functools
import math
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


def fitting_batch_size(
    batch_size: int, examples: int, devices: int, *, accumulation: int = 1, pairs: bool = False
) -> int:
    """The batch size, or, where that is more than there are examples, the largest that fits.

    Args:
      batch_size: examples a step, over all devices, as the config asks for.
      examples: of the training split.
      devices: how many share a batch out evenly.
      accumulation, pairs: as for `check_batch_size`.

    Raises:
      DscintError: there are too few for one batch.
    """
    if batch_size <= examples:
        return batch_size
    least = math.lcm(devices * accumulation, 2 * devices if pairs else 1)
    if examples < least:
        parts = f", config.accumulation {accumulation}" if accumulation > 1 else ""
        mixed = ", config.mixup in pairs" if pairs else ""
        raise DscintError(
            f"the training split has {examples}, and a batch needs {least} at least ({devices} "
            f"device(s){parts}{mixed}); build a data set of more patients, or train on fewer "
            f"devices"
        )
    return examples // least * least


def check_batch_size(
    batch_size: int, mesh: Mesh, *, accumulation: int = 1, pairs: bool = False
) -> None:
    """Raises DscintError unless every device gets the same number of images.

    Args:
      batch_size: images a step, over all devices.
      mesh: the devices.
      accumulation: parts that each device computes its images in.
      pairs: whether images are mixed in pairs.
    """
    if batch_size % (mesh.size * accumulation):
        parts = f" in config.accumulation {accumulation} parts each" if accumulation > 1 else ""
        raise DscintError(
            f"config.batch_size {batch_size} cannot be shared out evenly over {mesh.size} "
            f"device(s){parts}; choose a multiple of {mesh.size * accumulation}"
        )
    if pairs and batch_size // mesh.size % 2:
        raise DscintError(
            f"config.mixup mixes pairs of images, and config.batch_size {batch_size} gives each of "
            f"{mesh.size} device(s) an odd number; choose a multiple of {2 * mesh.size}"
        )


def local_rows(batch_size: int, mesh: Mesh) -> slice:
    """The rows of a batch, shared out over the mesh, that go to this process's devices.

    Raises:
      DscintError: the devices do not get the same number of rows, or this process has none of
        them, or its own do not lie side by side.
    """
    check_batch_size(batch_size, mesh)
    process = jax.process_index()
    own = [n for n, device in enumerate(mesh.devices.flat) if device.process_index == process]
    if not own or own != list(range(own[0], own[0] + len(own))):
        raise DscintError(
            f"process {process} has devices {own} of {mesh.size}, which do not lie side by side; "
            f"start as many processes on each machine, with as many devices each"
        )
    each = batch_size // mesh.size
    return slice(own[0] * each, (own[-1] + 1) * each)


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


def compile_train_step(recipe: Recipe, mesh: Mesh, spmd: str = "jit") -> TrainStep:
    """The compiled train step; the state it is given is donated and must not be used again.

    Args:
      recipe: whose `axis` is `AXIS`.
      mesh: the devices.
      spmd: 'jit', or 'pmap': the same step mapped over the devices by the other of JAX's two means.
    """
    step = functools.partial(train_step, recipe=recipe)
    return _pmapped(step, mesh) if spmd == "pmap" else _jitted(step, mesh)


def _jitted(step: TrainStep, mesh: Mesh) -> TrainStep:
    everywhere = NamedSharding(mesh, PartitionSpec())
    # What comes out is the same on every device because the step takes means over the axis; that
    # is not checked again, so that gradients are summed where the step says, and only there.
    on_each_device = jax.shard_map(
        step,
        mesh=mesh,
        in_specs=(PartitionSpec(), PartitionSpec(AXIS)),
        out_specs=PartitionSpec(),
        check_vma=False,
    )
    return jax.jit(
        on_each_device,
        in_shardings=(everywhere, NamedSharding(mesh, PartitionSpec(AXIS))),
        out_shardings=everywhere,
        donate_argnums=0,
    )


def _pmapped(step: TrainStep, mesh: Mesh) -> TrainStep:
    here = None if mesh.size == jax.device_count() else list(mesh.devices.flat)
    mapped = jax.pmap(step, AXIS, in_axes=(None, 0), out_axes=None, devices=here, donate_argnums=0)
    by_device = jax.jit(
        lambda batch: jax.tree.map(lambda x: x.reshape(mesh.size, -1, *x.shape[1:]), batch),
        out_shardings=NamedSharding(mesh, PartitionSpec(AXIS)),
    )
    everywhere = NamedSharding(mesh, PartitionSpec())

    def whole(array: jax.Array) -> jax.Array:
        # Of several processes each is given an array on its own devices.
        if array.sharding.device_set == everywhere.device_set:
            return array
        copies = [shard.data for shard in array.addressable_shards]
        return jax.make_array_from_single_device_arrays(array.shape, everywhere, copies)

    def take_step(state: TrainState, batch: DeviceBatch) -> tuple[TrainState, dict[str, jax.Array]]:
        return jax.tree.map(whole, mapped(state, by_device(batch)))

    return take_step


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
