"""A copy of the training images on the devices, and batches gathered from it.

In: a split and a mesh. Every device holds an equal part of the images, in the smallest type that
holds their counts. Out: batches by their global indices, with the shapes, types and sharding of
host batches that `shard_batch` put on the devices, and the same bits.
"""

import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from dscint_jax.input_pipeline.records import (
    COPY,
    DEVICE_FIELDS,
    HostBatch,
    Images,
    count_type,
    padded,
    read_columns,
)
from dscint_jax.input_pipeline.scintigrams import Scintigrams
from dscint_jax.mesh import AXIS, Device, DeviceBatch, local_rows, shard_batch

Columns = Mapping[str, jax.Array]


class DeviceCache:
    """The images of a split on the devices; each process reads those of its own devices.

    Of copies, the images that they are copies of are held once.
    """

    def __init__(self, images: Scintigrams, mesh: Mesh):
        self._images, self._mesh = images, mesh
        self._columns = _on_devices(images.images, mesh)
        self._gather = jax.jit(
            functools.partial(_gather, mesh=mesh),
            out_shardings=NamedSharding(mesh, PartitionSpec(AXIS)),
        )

    def batch(self, indices: Int[np.ndarray, "batch"]) -> DeviceBatch:
        """The images of a batch, sharded over the devices in the order of their indices."""
        everywhere = NamedSharding(self._mesh, PartitionSpec())
        sources = self._images.sources(indices).astype(np.int32)
        sources = jax.make_array_from_process_local_data(everywhere, sources)
        batch = self._gather(self._columns, sources)
        if self._images.copies is None:
            return batch
        rows = indices[local_rows(len(indices), self._mesh)]
        copies = {COPY: self._images.copy_field(rows)}
        return batch | shard_batch(copies, self._mesh)


def _on_devices(images: Images, mesh: Mesh) -> dict[str, jax.Array]:
    """All images, as many on each device."""
    each = -(-len(images) // mesh.size)
    sharding = NamedSharding(mesh, PartitionSpec(AXIS))
    places = sharding.addressable_devices_indices_map((each * mesh.size,))
    parts: dict[Device, HostBatch] = {}
    for device, place in places.items():
        rows = np.arange(each * mesh.size)[place]
        rows = rows[rows < len(images)]
        # One image is read for a device without any, for its shape.
        columns = read_columns(images, rows if len(rows) else np.arange(1))
        parts[device] = {name: columns[name][: len(rows)] for name in DEVICE_FIELDS}
    kind = _agreed_type(max(int(part["counts"].max(initial=0)) for part in parts.values()))
    shards: dict[str, list[jax.Array]] = {name: [] for name in DEVICE_FIELDS}
    for device in places:
        part = parts.pop(device)
        part["counts"] = part["counts"].astype(kind, copy=False)
        for name in DEVICE_FIELDS:
            column = padded(part[name], each - len(part[name]))
            shards[name].append(jax.device_put(column, device))
    return {
        name: jax.make_array_from_single_device_arrays(
            (each * mesh.size, *arrays[0].shape[1:]), sharding, arrays
        )
        for name, arrays in shards.items()
    }


def _agreed_type(most: int) -> type[np.integer]:
    """The type of counts that suits all processes."""
    if jax.process_count() > 1:
        most = int(multihost_utils.process_allgather(np.int32(most)).max())
    return count_type(most)


def _gather(columns: Columns, indices: Int[Array, " batch"], *, mesh: Mesh) -> dict[str, jax.Array]:
    """Rows of sharded columns by their global indices, sharded alike."""
    if mesh.size == 1:
        return {name: _widened(column[indices]) for name, column in columns.items()}
    sharded = PartitionSpec(AXIS)
    gather = jax.shard_map(
        _gather_local, mesh=mesh, in_specs=(sharded, PartitionSpec()), out_specs=sharded
    )
    return gather(columns, indices)


def _gather_local(columns: Columns, indices: Int[Array, " batch"]) -> dict[str, jax.Array]:
    """Of every device: adds up what each of them has of the batch; gives each its rows."""
    here = len(columns["label"])
    local = indices - jax.lax.axis_index(AXIS) * here
    mine = (local >= 0) & (local < here)

    def gather(column: jax.Array) -> jax.Array:
        rows = _widened(column[jnp.clip(local, 0, here - 1)])
        kind, is_float = rows.dtype, rows.dtype == jnp.float32
        rows = jax.lax.bitcast_convert_type(rows, jnp.int32) if is_float else rows.astype(jnp.int32)
        # All but one device add zero, and sums of integers are exact.
        rows = jnp.where(mine.reshape(-1, *(1,) * (rows.ndim - 1)), rows, 0)
        rows = jax.lax.psum_scatter(rows, AXIS, tiled=True)
        return jax.lax.bitcast_convert_type(rows, kind) if is_float else rows.astype(kind)

    return {name: gather(column) for name, column in columns.items()}


def _widened(values: jax.Array) -> jax.Array:
    """Counts as the steps take them."""
    return values.astype(jnp.int32) if jnp.issubdtype(values.dtype, jnp.integer) else values
