"""What a network costs: parameters, layers, operations, activation memory.

In: a network of the registry or one of a user's own, and the size of its images. Out: counts, taken
from what JAX traces of it, so that no network has to tell them and no array is made.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from dscint_jax import models
from tfds_builder.commandline.errors import UserError


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one network costs; an example is an image, or a study of two views.

    Attributes:
      parameters: trained numbers; those shared by several layers once.
      convolutions, fully_connected: kernels, as `kernel_counts` has them.
      flops, activation_bytes: as the functions of these names have them.
    """

    parameters: int
    convolutions: int
    fully_connected: int
    flops: int
    activation_bytes: int


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module that has parameters of its own: its dotted path, its class, and their shapes."""

    path: str
    kind: str
    shapes: dict[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        """How many numbers they are."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def network_cost(
    name: str,
    *,
    num_classes: int = 4,
    size: tuple[int, int] = (1024, 256),
    channels: int = 1,
    batch: int = 32,
    options: Mapping[str, Any] | None = None,
) -> Cost:
    """Counts everything of one network.

    Args:
      name, num_classes, options: as for `models.build`.
      size: height and width of an image.
      channels: of an image.
      batch: examples of a training step.

    Raises:
      UserError: as `models.build` does, or the network does not take such images.
    """
    with _read(name, num_classes, size, channels, options) as (model, shape):
        convolutions, fully_connected = kernel_counts(model)
        return Cost(
            parameters=parameter_count(model),
            convolutions=convolutions,
            fully_connected=fully_connected,
            flops=forward_flops(model, shape),
            activation_bytes=activation_bytes(model, shape, batch=batch),
        )


def network_layers(
    name: str,
    *,
    num_classes: int,
    size: tuple[int, int],
    channels: int,
    options: Mapping[str, Any],
) -> list[Layer]:
    """Every module that has parameters of its own, in the order of the forward pass.

    Arguments and errors as for `network_cost`.
    """
    with _read(name, num_classes, size, channels, options) as (model, shape):
        evaluate, (params, *rest) = _evaluation(model, shape)
        program = jax.make_jaxpr(evaluate)(params, *rest).jaxpr
    first_use: dict[core.Var, int] = {}
    for number, equation in enumerate(program.eqns):
        for variable in equation.invars:
            if isinstance(variable, core.Var):
                first_use.setdefault(variable, number)
    leaves, structure = jax.tree.flatten(params)
    turns = [first_use.get(v, len(program.eqns)) for v in program.invars[: len(leaves)]]
    turn_of = dict(nnx.to_flat_state(jax.tree.unflatten(structure, turns)))
    kinds = {path: type(node).__name__ for path, node in nnx.iter_graph(model)}
    layers: dict[tuple, Layer] = {}
    in_turn = sorted(nnx.to_flat_state(params), key=lambda item: turn_of[item[0]].get_value())
    for (*path, leaf), variable in in_turn:
        owner = tuple(path)
        layer = layers.setdefault(owner, Layer(".".join(map(str, owner)), kinds[owner], {}))
        layer.shapes[str(leaf)] = tuple(variable.shape)
    return list(layers.values())


@contextlib.contextmanager
def _read(
    name: str,
    num_classes: int,
    size: tuple[int, int],
    channels: int,
    options: Mapping[str, Any] | None,
) -> Iterator[tuple[nnx.Module, tuple[int, ...]]]:
    """A network and the shape of an example that it reads: a view, or the two of a study."""
    model = abstract_network(name, num_classes=num_classes, channels=channels, options=options)
    reads_studies = getattr(model, "RECORDS", "views") == "studies"
    shape = (*((2,) if reads_studies else ()), *size, channels)
    try:
        yield model, shape
    # A user's own network may raise anything.
    except Exception as error:
        reason = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        sizes = "x".join(map(str, shape))
        raise UserError(f"{name} cannot read an example of {sizes}: {reason}") from error


def abstract_network(
    name: str,
    *,
    num_classes: int,
    channels: int = 1,
    options: Mapping[str, Any] | None = None,
) -> nnx.Module:
    """Builds a network of shapes instead of arrays; arguments and errors as for `network_cost`."""
    options = dict(options or {})
    # Networks of one channel need not have the option at all.
    if channels != 1:
        options["in_channels"] = channels

    def build() -> nnx.Module:
        rngs = nnx.Rngs(params=0)
        rngs.params.count = _UnwrittenCount(rngs.params.count[...], tag="params")
        return models.build(name, num_classes=num_classes, rngs=rngs, options=options)

    return nnx.eval_shape(build)


def parameter_count(model: nnx.Module) -> int:
    """Trained numbers; running statistics are none."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def kernel_counts(model: nnx.Module) -> tuple[int, int]:
    """How many parameters have four axes, as kernels of convolutions, and two, as matrices.

    Shortcuts and gates of attention have theirs too.
    """
    axes = [leaf.ndim for leaf in jax.tree.leaves(nnx.state(model, nnx.Param))]
    return axes.count(4), axes.count(2)


def forward_flops(model: nnx.Module, shape: Sequence[int]) -> int:
    """Floating-point operations of one example's forward pass in evaluation, as XLA counts them.

    A multiply-add is two. Padding is not computed and does not count, so that there are a few
    percent less than twice the multiply-adds that papers give; what is no convolution or matrix
    product counts too, and is little. `shape` is that of one example.
    """
    evaluate, arguments = _evaluation(model, shape)
    counted = jax.jit(evaluate).lower(*arguments).cost_analysis()
    if counted is None:
        raise UserError(f"XLA counts no operations on this {jax.default_backend()}")
    return int(counted["flops"])


def activation_bytes(model: nnx.Module, shape: Sequence[int], *, batch: int) -> int:
    """What back-propagation keeps of a batch's forward pass, the images too.

    Counted are the arrays that the derivative by the parameters needs, each once, without those
    that are the same for any images, as the parameters are. XLA may hold less, as it merges steps
    and recomputes cheap ones (the float32 copies that a bfloat16 BatchNorm makes count here), or
    more, as passing results come on top: on a CPU, `pytest --run-slow -k activation_memory` holds
    the two to within a factor of 0.7 to 1.4. `shape` is that of one example.
    """
    model.train()
    graph, params, random, statistics = nnx.split(model, nnx.Param, nnx.RngState, ...)

    def pullback(
        params: nnx.State, statistics: nnx.State, random: nnx.State, key: Any, images: Any
    ) -> Callable:
        def logits(params: nnx.State) -> jax.Array:
            network = nnx.merge(graph, params, random, statistics, copy=True)
            return network(images, rngs=nnx.Rngs(key))

        return jax.vjp(logits, params)[1]

    key = jax.eval_shape(lambda: jax.random.key(0))
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    program = jax.make_jaxpr(pullback)(params, statistics, random, key, images).jaxpr
    fixed = len(jax.tree.leaves((params, statistics)))
    # Masks of dropout are kept as the images are.
    depends = _depends(program, [place >= fixed for place in range(len(program.invars))])
    kept = {variable for variable, one in zip(program.outvars, depends, strict=True) if one}
    return sum(array.aval.size * array.aval.dtype.itemsize for array in kept)


def _depends(program: core.Jaxpr, inputs: Sequence[bool]) -> list[bool]:
    """Which outputs are computed of any of those inputs that are True."""
    known = {variable for variable, one in zip(program.invars, inputs, strict=True) if one}
    for equation in program.eqns:
        operands = [isinstance(one, core.Var) and one in known for one in equation.invars]
        if equation.primitive.name in ("jit", "pjit"):
            results = _depends(equation.params["jaxpr"].jaxpr, operands)
        else:
            results = [any(operands)] * len(equation.outvars)
        known |= {variable for variable, one in zip(equation.outvars, results, strict=True) if one}
    return [isinstance(one, core.Var) and one in known for one in program.outvars]


class _UnwrittenCount(nnx.RngCount):
    """A counter of random draws that stands still, where only shapes matter.

    On every write Flax asks for the old and the new value's sharding, and for a traced value JAX
    then searches all of the program so far: long, in a network of many layers.
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        """Leaves the count as it is."""


def _evaluation(
    model: nnx.Module, shape: Sequence[int]
) -> tuple[Callable[..., jax.Array], tuple[nnx.State, nnx.State, jax.ShapeDtypeStruct]]:
    """One example's forward pass in evaluation; its parameters, statistics and image."""
    model.eval()
    graph, params, statistics = nnx.split(model, nnx.Param, ...)

    def logits(params: nnx.State, statistics: nnx.State, images: jax.Array) -> jax.Array:
        return nnx.merge(graph, params, statistics, copy=True)(images)

    return logits, (params, statistics, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
