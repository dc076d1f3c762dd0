"""The compiled steps: over the devices of a mesh, the batch divided, the state on each of them.

One step serves one device and many: each takes it on its own rows of the batch, and the means over
the mesh axis `data` are in the step. Evaluation needs none, and is divided by the compiler.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from dscint_jax.mesh import AXIS, DeviceBatch
from dscint_jax.metrics.passes import Evaluation
from dscint_jax.training.state import TrainState
from dscint_jax.training.step import NetworkMaps, StepSpec, train_step

TrainStep = Callable[[TrainState, DeviceBatch], tuple[TrainState, dict[str, jax.Array]]]
EvalStep = Callable[[nnx.State, nnx.State, DeviceBatch], Evaluation]
MapsStep = Callable[[nnx.State, nnx.State, DeviceBatch], NetworkMaps]


def compile_train_step(spec: StepSpec, mesh: Mesh, spmd: str = "jit") -> TrainStep:
    """The compiled train step; the state it is given is donated and must not be used again.

    The `axis` of the spec is `AXIS`; 'pmap' maps the same step by the other of JAX's two means.
    """
    step = functools.partial(train_step, spec=spec)
    return _pmapped(step, mesh) if spmd == "pmap" else _jitted(step, mesh)


def compile_ahead(step: Callable[..., Any], *arguments: Any) -> None:
    """Compiles a jitted step for these arguments, and gives back the memory that this took.

    C's allocator keeps what the compiler freed, which may be more than the steps take; one without
    `malloc_trim` (macOS) goes on to. Of a step by pmap, nothing is done.
    """
    # What pmap maps is compiled when it is called.
    if not isinstance(step, jax.stages.Wrapped):
        return
    step.lower(*arguments).compile()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)


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


def compile_inference(step: Callable[..., Any], spec: StepSpec, mesh: Mesh) -> Callable[..., Any]:
    """`eval_step` or `maps_step`, jitted: of (params, batch_stats, batch), results everywhere."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.jit(
        functools.partial(step, spec=spec),
        in_shardings=(everywhere, everywhere, NamedSharding(mesh, PartitionSpec(AXIS))),
        out_shardings=everywhere,
    )
