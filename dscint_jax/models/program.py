"""Follows values through a traced program: what is multiplied, and on which way.

In: a jaxpr, and of each of its inputs whether it is an image, a weight or a constant. Out: the same
of its outputs, with the layers on the longest way to them, and the multiply-adds of it all.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

from jax.extend import core

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
class Value:
    """Where an intermediate result comes from.

    Attributes:
      image: whether from the image.
      weights: whether from parameters.
      depth: layers on the longest way from the image to it.
    """

    image: bool = False
    weights: bool = False
    depth: WeightLayers = WeightLayers()


CONSTANT, WEIGHTS, IMAGE = Value(), Value(weights=True), Value(image=True)


def merged(values: Sequence[Value]) -> Value:
    """What is computed of all of them."""
    return Value(
        any(value.image for value in values),
        any(value.weights for value in values),
        max((value.depth for value in values), key=lambda d: d.total, default=WeightLayers()),
    )


def follow(
    program: core.Jaxpr, inputs: Sequence[Value], *, gated: bool = False
) -> tuple[list[Value], int]:
    """Follows values through a program; returns its outputs and its multiply-adds.

    Args:
      program: equations in the order of computation.
      inputs: of the program.
      gated: whether all of it computes a gate of attention.
    """
    known = dict(zip(program.invars, inputs, strict=True))
    multiply_adds = 0

    def value_of(variable: core.Var | core.Literal) -> Value:
        return CONSTANT if isinstance(variable, core.Literal) else known.get(variable, CONSTANT)

    for equation in program.eqns:
        operands = [value_of(variable) for variable in equation.invars]
        # An inner program's equations do not know the scopes around it.
        within = gated or GATE_SCOPE in str(equation.source_info.name_stack)
        step = _STEPS.get(equation.primitive.name, _follow_inner)
        results, count = step(equation, operands, within)
        known.update(zip(equation.outvars, results, strict=True))
        multiply_adds += count
    return [value_of(variable) for variable in program.outvars], multiply_adds


_Step = tuple[list[Value], int]


def _follow_inner(equation: core.JaxprEqn, operands: list[Value], gated: bool) -> _Step:
    """A call, whatever its name, is the program that it calls; anything else is one step."""
    for inner in map(_program, equation.params.values()):
        if inner is not None and (len(inner.invars), len(inner.outvars)) == (
            len(operands),
            len(equation.outvars),
        ):
            return follow(inner, operands, gated=gated)
    return [merged(operands)] * len(equation.outvars), 0


def _program(parameter: Any) -> core.Jaxpr | None:
    if isinstance(parameter, core.ClosedJaxpr):
        return parameter.jaxpr
    return parameter if isinstance(parameter, core.Jaxpr) else None


def _follow_scan(equation: core.JaxprEqn, operands: list[Value], gated: bool) -> _Step:
    length, carried = equation.params["length"], equation.params["num_carry"]
    return _repeat(
        equation.params["jaxpr"].jaxpr,
        operands,
        (equation.params["num_consts"], carried),
        length=length,
        gated=gated,
    )


def _follow_while(equation: core.JaxprEqn, operands: list[Value], gated: bool) -> _Step:
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
    operands: list[Value],
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
    multiply_adds, stacked = 0, [CONSTANT] * (len(body.outvars) - carried)
    for _ in range(length):
        outputs, count = follow(body, [*fixed, *state, *rows], gated=gated)
        state = outputs[:carried]
        stacked = [merged(pair) for pair in zip(stacked, outputs[carried:], strict=True)]
        multiply_adds += count
    return [*state, *stacked], multiply_adds


def _follow_alternatives(equation: core.JaxprEqn, operands: list[Value], gated: bool) -> _Step:
    choice, *rest = operands
    branches = [follow(branch.jaxpr, rest, gated=gated) for branch in equation.params["branches"]]
    outputs = [
        merged([choice, *alternatives])
        for alternatives in zip(*(outputs for outputs, _ in branches), strict=True)
    ]
    return outputs, max(count for _, count in branches)


def _follow_convolution(equation: core.JaxprEqn, operands: list[Value], gated: bool) -> _Step:
    kernel = equation.invars[1].aval.shape
    out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
    count = equation.outvars[0].aval.size * math.prod(kernel) // out_features
    return _product(operands, count, WeightLayers(convolutions=1), gated)


def _follow_matrix_product(equation: core.JaxprEqn, operands: list[Value], gated: bool) -> _Step:
    (contracted, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    count = equation.outvars[0].aval.size * math.prod(shape[axis] for axis in contracted)
    return _product(operands, count, WeightLayers(fully_connected=1), gated)


def _product(operands: list[Value], count: int, layer: WeightLayers, gated: bool) -> _Step:
    """A product with a constant is a fixed filter or a pooling; one of weights is done once."""
    result = merged(operands)
    if not result.image or CONSTANT in operands:
        return [result], 0
    if not gated and any(not operand.image for operand in operands):
        deeper = WeightLayers(
            result.depth.convolutions + layer.convolutions,
            result.depth.fully_connected + layer.fully_connected,
        )
        result = dataclasses.replace(result, depth=deeper)
    return [result], count


_STEPS: dict[str, Callable[[core.JaxprEqn, list[Value], bool], _Step]] = {
    "conv_general_dilated": _follow_convolution,
    "dot_general": _follow_matrix_product,
    "scan": _follow_scan,
    "while": _follow_while,
    "cond": _follow_alternatives,
}
