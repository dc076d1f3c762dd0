"""Devices as a mesh of one axis, `data`: batches lie divided over it, all else on each device."""

import math
from typing import Any, TypeAlias

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tfds_builder.commandline.errors import UserError

AXIS = "data"
Device: TypeAlias = jax.Device  # pyright: ignore[reportInvalidTypeForm]
DeviceBatch = dict[str, jax.Array]


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
      UserError: there are too few.
    """
    if batch_size <= examples:
        return batch_size
    least = math.lcm(devices * accumulation, 2 * devices if pairs else 1)
    if examples < least:
        parts = f", config.accumulation {accumulation}" if accumulation > 1 else ""
        mixed = ", config.mixup in pairs" if pairs else ""
        raise UserError(
            f"the training split has {examples}, and a batch needs {least} at least ({devices} "
            f"device(s){parts}{mixed}); build a data set of more patients, or train on fewer "
            f"devices"
        )
    return examples // least * least


def check_batch_size(
    batch_size: int, mesh: Mesh, *, accumulation: int = 1, pairs: bool = False
) -> None:
    """Raises UserError unless every device gets the same number of images.

    Args:
      batch_size: images a step, over all devices.
      mesh: the devices.
      accumulation: parts that each device computes its images in.
      pairs: whether images are mixed in pairs.
    """
    if batch_size % (mesh.size * accumulation):
        parts = f" in config.accumulation {accumulation} parts each" if accumulation > 1 else ""
        raise UserError(
            f"config.batch_size {batch_size} cannot be shared out evenly over {mesh.size} "
            f"device(s){parts}; choose a multiple of {mesh.size * accumulation}"
        )
    if pairs and batch_size // mesh.size % 2:
        raise UserError(
            f"config.mixup mixes pairs of images, and config.batch_size {batch_size} gives each of "
            f"{mesh.size} device(s) an odd number; choose a multiple of {2 * mesh.size}"
        )


def local_rows(batch_size: int, mesh: Mesh) -> slice:
    """The rows of a batch, shared out over the mesh, that go to this process's devices.

    Raises:
      UserError: the devices do not get the same number of rows, or this process has none of
        them, or its own do not lie side by side.
    """
    check_batch_size(batch_size, mesh)
    process = jax.process_index()
    own = [n for n, device in enumerate(mesh.devices.flat) if device.process_index == process]
    if not own or own != list(range(own[0], own[0] + len(own))):
        raise UserError(
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


def batch_shapes(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of a whole host batch that is to lie divided over the devices."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return {
        name: jax.ShapeDtypeStruct(values.shape, values.dtype, sharding=sharding)
        for name, values in batch.items()
    }


def shard_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> DeviceBatch:
    """Splits a host batch over the devices along its first axis."""
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    return {
        name: jax.make_array_from_process_local_data(sharding, values)
        for name, values in batch.items()
    }
