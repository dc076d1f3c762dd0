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
from dscint_jax.models.attention import GATE_SCOPE


@dataclasses.dataclass(frozen=True)
class WeightLayers:
    """The longest way from the image to the logits, in layers that have weights.

    A layer is a convolution or a matrix product of what comes from the image with what comes from
    parameters alone. Layers beside the longest way do not count, such as the convolution in a
    shortcut, nor do those that compute a gate of attention; one that is passed twice counts twice.

    Attributes:
      convolutions: convolutions on it.
      fully_connected: matrix products on it.
    """

    convolutions: int = 0
    fully_connected: int = 0

    @property
    def total(self) -> int:
        """Both together: the number in names such as ResNet-50."""
        return self.convolutions + self.fully_connected


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
            _leave_statistics(network)
            return network(images, rngs=nnx.Rngs(key))

        _, to_params = jax.vjp(logits, params)
        return to_params

    key = jax.eval_shape(lambda: jax.random.key(0))
    images = jax.ShapeDtypeStruct((batch, *shape), jnp.float32)
    program = jax.make_jaxpr(pullback)(params, statistics, random, key, images).jaxpr
    inputs = [
        *_all(_WEIGHTS, params),
        *_all(_CONSTANT, statistics),
        # Masks of dropout are kept as the images are.
        *_all(_IMAGE, (random, key, images)),
    ]
    kept, _ = _follow(program, inputs, gated=False)
    of_batch = {
        variable for variable, value in zip(program.outvars, kept, strict=True) if value.image
    }
    return sum(variable.aval.size * variable.aval.dtype.itemsize for variable in of_batch)


class _Unwritten:
    """A variable that keeps its value, where only shapes matter.

    On every write Flax asks for the old and the new value's sharding, and for a traced value JAX
    then searches all of the program so far: minutes, in a network of many layers.
    """

    def __setitem__(self, key: Any, value: Any) -> None:
        """Leaves the value as it is."""


class _UnwrittenCount(_Unwritten, nnx.RngCount):
    pass


class _UnwrittenStatistic(_Unwritten, nnx.BatchStat):
    pass


def _leave_statistics(network: nnx.Module) -> None:
    for _, module in nnx.iter_modules(network):
        for name, variable in list(vars(module).items()):
            if isinstance(variable, nnx.BatchStat):
                setattr(module, name, _UnwrittenStatistic(variable[...]))


def _all(value: "_Value", tree: Any) -> list["_Value"]:
    return [value] * len(jax.tree.leaves(tree))


def forward_cost(model: nnx.Module, shape: Sequence[int]) -> Forward:
    """Multiply-adds and weight layers of a network in evaluation.

    Args:
      model: a network.
      shape: of one example.
    """
    program, params, statistics = _forward_program(model, shape)
    inputs = [*_all(_WEIGHTS, params), *_all(_CONSTANT, statistics), _IMAGE]
    outputs, multiply_adds = _follow(program, inputs, gated=False)
    return Forward(multiply_adds, _merged(outputs).depth)


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


@dataclasses.dataclass(frozen=True)
class _Value:
    """Where an intermediate result comes from.

    Attributes:
      image: whether from the image.
      weights: whether from parameters.
      depth: layers on the longest way from the image to it.
    """

    image: bool = False
    weights: bool = False
    depth: WeightLayers = WeightLayers()


_CONSTANT, _WEIGHTS, _IMAGE = _Value(), _Value(weights=True), _Value(image=True)


def _merged(values: Sequence[_Value]) -> _Value:
    """What is computed of all of them."""
    return _Value(
        any(value.image for value in values),
        any(value.weights for value in values),
        max((value.depth for value in values), key=lambda d: d.total, default=WeightLayers()),
    )


def _follow(
    program: core.Jaxpr, inputs: Sequence[_Value], *, gated: bool
) -> tuple[list[_Value], int]:
    """Follows values through a program; returns its outputs and its multiply-adds.

    Args:
      program: equations in the order of computation.
      inputs: of the program.
      gated: whether all of it computes a gate of attention.
    """
    known = dict(zip(program.invars, inputs, strict=True))
    multiply_adds = 0

    def value_of(variable: core.Var | core.Literal) -> _Value:
        return _CONSTANT if isinstance(variable, core.Literal) else known.get(variable, _CONSTANT)

    for equation in program.eqns:
        operands = [value_of(variable) for variable in equation.invars]
        # An inner program's equations do not know the scopes around it.
        within = gated or GATE_SCOPE in str(equation.source_info.name_stack)
        step = _STEPS.get(equation.primitive.name, _follow_inner)
        results, count = step(equation, operands, within)
        known.update(zip(equation.outvars, results, strict=True))
        multiply_adds += count
    return [value_of(variable) for variable in program.outvars], multiply_adds


_Step = tuple[list[_Value], int]


def _follow_inner(equation: core.JaxprEqn, operands: list[_Value], gated: bool) -> _Step:
    """A call, whatever its name, is the program that it calls; anything else is one step."""
    for inner in map(_program, equation.params.values()):
        if inner is not None and (len(inner.invars), len(inner.outvars)) == (
            len(operands),
            len(equation.outvars),
        ):
            return _follow(inner, operands, gated=gated)
    return [_merged(operands)] * len(equation.outvars), 0


def _program(parameter: Any) -> core.Jaxpr | None:
    if isinstance(parameter, core.ClosedJaxpr):
        return parameter.jaxpr
    return parameter if isinstance(parameter, core.Jaxpr) else None


def _follow_scan(equation: core.JaxprEqn, operands: list[_Value], gated: bool) -> _Step:
    length, carried = equation.params["length"], equation.params["num_carry"]
    return _repeat(
        equation.params["jaxpr"].jaxpr,
        operands,
        (equation.params["num_consts"], carried),
        length=length,
        gated=gated,
    )


def _follow_while(equation: core.JaxprEqn, operands: list[_Value], gated: bool) -> _Step:
    of_condition, of_body = equation.params["cond_nconsts"], equation.params["body_nconsts"]
    return _repeat(
        equation.params["body_jaxpr"].jaxpr,
        operands[of_condition:],
        (of_body, len(equation.outvars)),
        length=1,
        gated=gated,
    )


def _repeat(
    body: core.Jaxpr,
    operands: list[_Value],
    constants_and_carried: tuple[int, int],
    *,
    length: int,
    gated: bool,
) -> _Step:
    constants, carried = constants_and_carried
    fixed, state, rows = (
        operands[:constants],
        operands[constants : constants + carried],
        operands[constants + carried :],
    )
    multiply_adds, stacked = 0, [_CONSTANT] * (len(body.outvars) - carried)
    for _ in range(length):
        outputs, count = _follow(body, [*fixed, *state, *rows], gated=gated)
        state = outputs[:carried]
        stacked = [_merged(pair) for pair in zip(stacked, outputs[carried:], strict=True)]
        multiply_adds += count
    return [*state, *stacked], multiply_adds


def _follow_alternatives(equation: core.JaxprEqn, operands: list[_Value], gated: bool) -> _Step:
    choice, *rest = operands
    branches = [_follow(branch.jaxpr, rest, gated=gated) for branch in equation.params["branches"]]
    outputs = [
        _merged([choice, *alternatives])
        for alternatives in zip(*(outputs for outputs, _ in branches), strict=True)
    ]
    return outputs, max(count for _, count in branches)


def _follow_convolution(equation: core.JaxprEqn, operands: list[_Value], gated: bool) -> _Step:
    kernel = equation.invars[1].aval.shape
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    count = equation.outvars[0].aval.size * math.prod(kernel) // out_features
    return _product(operands, count, WeightLayers(convolutions=1), gated)


def _follow_matrix_product(equation: core.JaxprEqn, operands: list[_Value], gated: bool) -> _Step:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    count = equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    return _product(operands, count, WeightLayers(fully_connected=1), gated)


def _product(operands: list[_Value], count: int, layer: WeightLayers, gated: bool) -> _Step:
    """A product with a constant is a fixed filter or a pooling; one of weights is done once."""
    result = _merged(operands)
    if not result.image or _CONSTANT in operands:
        return [result], 0
    if not gated and any(not operand.image for operand in operands):
        deeper = WeightLayers(
            result.depth.convolutions + layer.convolutions,
            result.depth.fully_connected + layer.fully_connected,
        )
        result = dataclasses.replace(result, depth=deeper)
    return [result], count


_STEPS: dict[str, Callable[[core.JaxprEqn, list[_Value], bool], _Step]] = {
    "conv_general_dilated": _follow_convolution,
    "dot_general": _follow_matrix_product,
    "scan": _follow_scan,
    "while": _follow_while,
    "cond": _follow_alternatives,
}
