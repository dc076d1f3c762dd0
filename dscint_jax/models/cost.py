"""What a network costs: parameters, multiply-adds, weight layers, activation memory.

In: a network of the registry or one of a user's own, and the size of its images. Out: counts, taken
from the program that JAX traces of it, so that no network has to tell them and no array is made.
"""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.extend import core

from dscint_jax import models
from dscint_jax.errors import DscintError
from dscint_jax.models.program import (
    CONSTANT,
    IMAGE,
    WEIGHTS,
    Value,
    WeightLayers,
    follow,
    merged,
)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one network costs; an example is an image, or a study of two views.

    Attributes:
      parameters: trained numbers; those shared by several layers once.
      weight_layers: on the longest way from the image to the logits.
      multiply_adds: of one example's forward pass in evaluation, as `Forward` has them.
      activation_bytes: what back-propagation keeps of a batch's forward pass, as `activation_bytes`
        has it.
    """

    parameters: int
    weight_layers: WeightLayers
    multiply_adds: int
    activation_bytes: int


@dataclasses.dataclass(frozen=True)
class Forward:
    """What one example's forward pass consists of.

    Attributes:
      multiply_adds: of convolutions and matrix products, of what comes from the image with weights
        or with itself, gates of attention too. Each output of a convolution takes kernel rows x
        kernel columns x input channels / groups of them; padding counts as if it were image.
        Nothing else counts: sums, normalisations, activations, poolings (also those that are a
        matrix product with a constant), and what is computed of the weights alone. The body of a
        loop of unknown length counts once; of alternatives, the largest.
      weight_layers: on the longest way from the image to the logits.
    """

    multiply_adds: int
    weight_layers: WeightLayers


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module that has parameters of its own.

    Attributes:
      path: its attributes and indices from the network, joined by dots.
      kind: the name of its class.
      shapes: of its own parameters, by name.
    """

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
      name: as for `models.build`.
      num_classes: outputs.
      size: height and width of an image.
      channels: of an image.
      batch: examples of a training step.
      options: the network's own keyword arguments.

    Raises:
      DscintError: as `models.build` does, or the network does not take such images.
    """
    model = abstract_network(name, num_classes=num_classes, channels=channels, options=options)
    shape = example_shape(model, size, channels)
    with _reading(name, shape):
        forward = forward_cost(model, shape)
        memory = activation_bytes(model, shape, batch=batch)
    return Cost(parameter_count(model), forward.weight_layers, forward.multiply_adds, memory)


def network_layers(
    name: str,
    *,
    num_classes: int = 4,
    size: tuple[int, int] = (1024, 256),
    channels: int = 1,
    options: Mapping[str, Any] | None = None,
) -> list[Layer]:
    """Every module that has parameters of its own, in the order of the forward pass.

    Arguments and errors as for `network_cost`.
    """
    model = abstract_network(name, num_classes=num_classes, channels=channels, options=options)
    shape = example_shape(model, size, channels)
    with _reading(name, shape):
        return layers_of(model, shape)


@contextlib.contextmanager
def _reading(name: str, shape: tuple[int, ...]) -> Iterator[None]:
    try:
        yield
    # A user's own network may raise anything.
    except Exception as error:
        reason = (
            str(error) if isinstance(error, DscintError) else f"{type(error).__name__}: {error}"
        )
        sizes = "x".join(map(str, shape))
        raise DscintError(f"{name} cannot read an example of {sizes}: {reason}") from error


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


def example_shape(model: nnx.Module, size: tuple[int, int], channels: int) -> tuple[int, ...]:
    """What one example is: (height, width, channel), or (2, height, width, channel).

    A network whose attribute `RECORDS` is 'studies' reads both views of a study at once; any other
    reads single views.
    """
    view = (*size, channels)
    return (2, *view) if getattr(model, "RECORDS", "views") == "studies" else view


def parameter_count(model: nnx.Module) -> int:
    """Trained numbers; running statistics are none."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def layers_of(model: nnx.Module, shape: Sequence[int]) -> list[Layer]:
    """Every module that has parameters of its own, in the order of the forward pass.

    Args:
      model: a network.
      shape: of one example.
    """
    program, params, _ = _forward_program(model, shape)
    first_use: dict[core.Var, int] = {}
    for number, equation in enumerate(program.eqns):
        for variable in equation.invars:
            if isinstance(variable, core.Var):
                first_use.setdefault(variable, number)
    leaves, structure = jax.tree.flatten(params)
    turns = [first_use.get(v, len(program.eqns)) for v in program.invars[: len(leaves)]]
    turn_of = dict(nnx.to_flat_state(jax.tree.unflatten(structure, turns)))
    layers: dict[tuple, Layer] = {}
    in_turn = sorted(nnx.to_flat_state(params), key=lambda item: turn_of[item[0]].get_value())
    for (*owner, name), variable in in_turn:
        kind = type(functools.reduce(_child, owner, model)).__name__
        layer = layers.setdefault(tuple(owner), Layer(".".join(map(str, owner)), kind, {}))
        layer.shapes[str(name)] = tuple(variable.shape)
    return list(layers.values())


def _child(module: Any, key: str | int) -> Any:
    attributes = vars(module)
    return attributes[key] if key in attributes else module[key]


def activation_bytes(model: nnx.Module, shape: Sequence[int], *, batch: int) -> int:
    """What back-propagation keeps of a batch's forward pass, the images too.

    Counted are the arrays that the derivative by the parameters needs, each once, without those
    that are the same for any images, as the parameters are. XLA may hold less, as it merges steps
    and recomputes cheap ones (the float32 copies that a bfloat16 BatchNorm makes count here), or
    more, as passing results come on top: on a CPU, `pytest --run-slow -k activation_memory` holds
    the two to within a factor of 0.7 to 1.4.

    Args:
      model: a network.
      shape: of one example.
      batch: examples of a training step.
    """
    model.train()
    graph, params, random, statistics = nnx.split(model, nnx.Param, nnx.RngState, ...)

    def pullback(
        params: nnx.State,
        statistics: nnx.State,
        random: nnx.State,
        key: jax.Array,
        images: jax.Array,
    ) -> Callable:
        def logits(params: nnx.State) -> jax.Array:
            network = nnx.merge(graph, params, random, statistics, copy=True)
            return network(images, rngs=nnx.Rngs(key))

        _, to_params = jax.vjp(logits, params)
        return to_params

    key = jax.eval_shape(lambda: jax.random.key(0))
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    program = jax.make_jaxpr(pullback)(params, statistics, random, key, images).jaxpr
    inputs = [
        *_all(WEIGHTS, params),
        *_all(CONSTANT, statistics),
        # Masks of dropout are kept as the images are.
        *_all(IMAGE, (random, key, images)),
    ]
    kept, _ = follow(program, inputs)
    of_batch = {
        variable for variable, value in zip(program.outvars, kept, strict=True) if value.image
    }
    return sum(variable.aval.size * variable.aval.dtype.itemsize for variable in of_batch)


class _UnwrittenCount(nnx.RngCount):
    """A counter of random draws that stands still, where only shapes matter.

    On every write Flax asks for the old and the new value's sharding, and for a traced value JAX
    then searches all of the program so far: long, in a network of many layers.
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        """Leaves the count as it is."""


def _all(value: Value, tree: Any) -> list[Value]:
    return [value] * len(jax.tree.leaves(tree))


def forward_cost(model: nnx.Module, shape: Sequence[int]) -> Forward:
    """Multiply-adds and weight layers of a network in evaluation.

    Args:
      model: a network.
      shape: of one example.
    """
    program, params, statistics = _forward_program(model, shape)
    inputs = [*_all(WEIGHTS, params), *_all(CONSTANT, statistics), IMAGE]
    outputs, multiply_adds = follow(program, inputs)
    return Forward(multiply_adds, merged(outputs).depth)


def _forward_program(
    model: nnx.Module, shape: Sequence[int]
) -> tuple[core.Jaxpr, nnx.State, nnx.State]:
    """One example's forward pass in evaluation, and its inputs before the image."""
    model.eval()
    graph, params, statistics = nnx.split(model, nnx.Param, ...)

    def logits(params: nnx.State, statistics: nnx.State, images: jax.Array) -> jax.Array:
        return nnx.merge(graph, params, statistics, copy=True)(images)

    images = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.make_jaxpr(logits)(params, statistics, images).jaxpr, params, statistics
