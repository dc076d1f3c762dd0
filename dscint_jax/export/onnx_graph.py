"""A JAX function as an ONNX graph, for networks as they are here.

In: a function of one array whose first axis may have any length. Out: an ONNX model of the same
function, for onnxruntime and whatever else runs ONNX. What depends on the weights alone is computed
here and stored, so that the graph holds what depends on the images. An operation of JAX that no
network here has is named in an error.

Source: ONNX operators, https://onnx.ai/onnx/operators/.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import onnx
from jax.extend import core
from onnx import helper, numpy_helper

from tfds_builder.commandline.command import installed_version
from tfds_builder.commandline.errors import UserError

OPSET = 18
"""The oldest that has axes of all reductions as inputs."""
IR_VERSION = 10
"""What onnxruntime reads since 1.18."""

BATCH = "batch"

LARGEST = 2**31 - 2**24
"""Bytes of weights that a protocol buffer has room for, beside the graph."""

INLINED = {
    "jit": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}
"""Operations that hold a function of others, and under which name."""

SAME = {
    "add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "max": "Max", "min": "Min",
    "neg": "Neg", "sqrt": "Sqrt", "exp": "Exp", "abs": "Abs", "logistic": "Sigmoid", "tanh": "Tanh",
    "gt": "Greater", "ge": "GreaterOrEqual", "lt": "Less", "le": "LessOrEqual", "eq": "Equal",
    "not": "Not", "or": "Or", "and": "And", "stop_gradient": "Identity", "copy": "Identity",
}  # fmt: skip
"""Operations that ONNX has too, element by element."""

SPLIT = {"ne": ("Equal", "Not"), "rsqrt": ("Sqrt", "Reciprocal")}
"""Those that are two of ONNX, one after the other."""

Shape = tuple[Any, ...]
"""Lengths of axes: numbers, and expressions in the length of a batch."""


@dataclasses.dataclass(frozen=True)
class Value:
    """An array that hangs on the images.

    Attributes:
      name: in the graph.
      shape: of the array.
      held: of what the graph has under the name: 1 along axes where it is the same all over, as
        ONNX repeats it by itself in operations element by element.
    """

    name: str
    shape: Shape
    held: Shape


Known = np.ndarray | Value
"""A NumPy array hangs on the weights alone."""


def onnx_model(
    function: Callable[[jax.Array], jax.Array],
    shape: Sequence[int],
    dtype: Any,
    metadata: Mapping[str, str],
) -> onnx.ModelProto:
    """The model: input `counts` (batch, *shape), output `probabilities`.

    Args:
      function: of an array (batch, *shape).
      shape: of one example.
      dtype: of the input.
      metadata: kept in the model.

    Raises:
      UserError: the function has an operation that is not known here.
    """
    example = jax.ShapeDtypeStruct((*jax.export.symbolic_shape(BATCH), *shape), dtype)
    traced = jax.jit(function).trace(example).jaxpr
    graph = _Graph(example.shape)
    (result,) = graph.run(traced.jaxpr, traced.consts, [graph.counts])
    graph.node("Identity", [graph.whole(result)], outputs=["probabilities"])
    size = sum(array.nbytes for array in graph.constants.values())
    _refuse(size > LARGEST, "more than the 2 GiB of weights that fit into a file")
    proto = helper.make_graph(
        graph.nodes,
        "dscint_jax",
        [_described("counts", example)],
        [_described("probabilities", traced.out_avals[0])],
        [numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
    )
    model = helper.make_model(
        proto,
        producer_name="dscint_jax",
        producer_version=installed_version("dscint-jax") or "unknown",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.checker.check_model(model, full_check=True)
    return model


def _described(name: str, array: Any) -> onnx.ValueInfoProto:
    dims = [size if isinstance(size, int) else BATCH for size in array.shape]
    return helper.make_tensor_value_info(name, _type(array.dtype), dims)


def _refuse(applies: bool, what: str) -> None:
    if applies:
        raise UserError(
            f"the network has {what}, which cannot be written as ONNX here; write it as StableHLO "
            f"(--format stablehlo)"
        )


def _type(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _held(value: Known) -> Shape:
    return value.held if isinstance(value, Value) else value.shape


class _Graph:
    """The nodes and constants so far."""

    def __init__(self, shape: Shape) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, np.ndarray] = {}
        self.counts = Value("counts", shape, shape)
        self._count = 0

    def node(
        self, kind: str, inputs: Sequence[str], outputs: Sequence[str] = (), **attributes: Any
    ) -> str:
        """Adds a node; the name of its first output."""
        outputs = list(outputs) or [self._new_name()]
        self.nodes.append(helper.make_node(kind, list(inputs), outputs, **attributes))
        return outputs[0]

    def constant(self, array: Any) -> str:
        """Adds an array that is known; its name."""
        name = self._new_name()
        self.constants[name] = np.array(array, order="C")
        return name

    def whole(self, value: Known) -> str:
        """The name of an array that is held in its whole shape."""
        if not isinstance(value, Value):
            return self.constant(value)
        if value.held == value.shape:
            return value.name
        lengths = [
            self._length(1 if length == held else length)
            for length, held in zip(value.shape, value.held, strict=True)
        ]
        return self.node("Expand", [value.name, self.node("Concat", lengths, axis=0)])

    def run(self, jaxpr: Any, constants: Sequence[Any], arguments: Sequence[Known]) -> list[Known]:
        """Adds what a traced function does with its arguments; its results."""
        values: dict[Any, Known] = dict(zip(jaxpr.invars, arguments, strict=True))
        values |= zip(jaxpr.constvars, map(np.asarray, constants), strict=True)

        def read(atom: Any) -> Known:
            if isinstance(atom, core.Literal):
                aval: Any = atom.aval
                return np.asarray(atom.val, aval.dtype)
            return values[atom]

        for equation in jaxpr.eqns:
            results = self._apply(equation, [read(atom) for atom in equation.invars])
            values |= zip(equation.outvars, results, strict=True)
        return [read(atom) for atom in jaxpr.outvars]

    def _apply(self, equation: Any, inputs: list[Known]) -> list[Known]:
        kind, parameters = equation.primitive.name, equation.params
        if kind in INLINED:
            inner = parameters[INLINED[kind]]
            return self.run(inner.jaxpr, inner.consts, inputs)
        shape = equation.outvars[0].aval.shape
        hangs_on_images = any(isinstance(value, Value) for value in inputs)
        if not hangs_on_images and all(isinstance(length, int) for length in shape):
            results = equation.primitive.bind(*inputs, **parameters)
            results = results if equation.primitive.multiple_results else [results]
            return [np.asarray(result) for result in results]
        if kind in SAME:
            return [self._elementwise(SAME[kind], inputs, shape)]
        if kind in SPLIT:
            first, second = SPLIT[kind]
            return [self._elementwise(second, [self._elementwise(first, inputs, shape)], shape)]
        method: Any = getattr(self, f"_of_{kind}", None)
        _refuse(method is None, f"the operation '{kind}' of JAX")
        result = method(inputs, shape, parameters)
        if isinstance(result, list):
            return result
        return [result if isinstance(result, Value) else Value(result, shape, shape)]

    def _new_name(self) -> str:
        self._count += 1
        return f"v{self._count}"

    def _name(self, value: Known) -> str:
        return value.name if isinstance(value, Value) else self.constant(value)

    def _length(self, length: Any) -> str:
        """The length of an axis as an array of one number."""
        if isinstance(length, int):
            return self.constant(np.array([length], np.int64))
        batch = self.node("Shape", ["counts"], start=0, end=1)
        factor, rest = divmod(length, self.counts.shape[0])
        if not isinstance(factor, int) or not isinstance(rest, int) or rest:
            raise UserError(f"an axis of length {length} cannot be written as ONNX here")
        return self.node("Mul", [batch, self.constant(np.array([factor], np.int64))])

    def _reshaped(self, name: str, shape: Shape) -> str:
        lengths = [length if isinstance(length, int) else -1 for length in shape]
        return self.node("Reshape", [name, self.constant(np.array(lengths, np.int64))])

    def _elementwise(self, kind: str, inputs: Sequence[Known], shape: Shape) -> Value:
        name = self.node(kind, [self._name(value) for value in inputs])
        # Scalars have no axes, all others have all of them.
        lengths = zip(*filter(None, map(_held, inputs)), strict=True)
        return Value(name, shape, tuple(next((a for a in axis if a != 1), 1) for axis in lengths))

    # `_of_NAME` writes JAX's operation NAME: from its inputs, the shape of its first result and its
    # parameters.

    def _of_square(self, inputs: list[Known], shape: Shape, *_: Any) -> Value:
        return self._elementwise("Mul", [inputs[0], inputs[0]], shape)

    def _of_integer_pow(self, inputs: list[Known], shape: Shape, parameters: Any) -> Value:
        return self._elementwise("Pow", [inputs[0], np.array(parameters["y"], np.float32)], shape)

    def _of_select_n(self, inputs: list[Known], shape: Shape, *_: Any) -> Value:
        which, no, yes = inputs
        return self._elementwise("Where", [which, yes, no], shape)

    def _of_convert_element_type(self, inputs: list[Known], shape: Shape, parameters: Any) -> Value:
        name = self.node("Cast", [self._name(inputs[0])], to=_type(parameters["new_dtype"]))
        return Value(name, shape, _held(inputs[0]))

    def _of_broadcast_in_dim(self, inputs: list[Known], shape: Shape, parameters: Any) -> Value:
        name, before = self._name(inputs[0]), _held(inputs[0])
        held: list[Any] = [1] * len(shape)
        for axis, length in zip(parameters["broadcast_dimensions"], before, strict=True):
            held[axis] = length
        if before != tuple(held):
            name = self._reshaped(name, tuple(held))
        return Value(name, shape, tuple(held))

    def _of_reshape(self, inputs: list[Known], shape: Shape, *_: Any) -> str:
        return self._reshaped(self.whole(inputs[0]), shape)

    _of_squeeze = _of_expand_dims = _of_reshape

    def _of_transpose(self, inputs: list[Known], shape: Shape, parameters: Any) -> str:
        return self.node("Transpose", [self.whole(inputs[0])], perm=parameters["permutation"])

    def _of_slice(self, inputs: list[Known], shape: Shape, parameters: Any) -> str:
        starts, stops = parameters["start_indices"], parameters["limit_indices"]
        return self._cut(inputs[0], starts, stops, parameters["strides"] or (1,) * len(shape))

    def _of_gather(self, inputs: list[Known], shape: Shape, parameters: Any) -> str:
        # What `x[:, 2:4]` is to JAX where the length of another axis is not known.
        value, index = inputs
        numbers, sizes = parameters["dimension_numbers"], parameters["slice_sizes"]
        is_slice = isinstance(index, np.ndarray) and index.ndim == 1
        _refuse(not is_slice or bool(numbers.collapsed_slice_dims), "a choice of places by number")
        starts = [0] * len(sizes)
        for axis, start in zip(numbers.start_index_map, np.asarray(index).tolist(), strict=True):
            starts[axis] = start
        stops = [start + size for start, size in zip(starts, sizes, strict=True)]
        return self._cut(value, starts, stops, (1,) * len(sizes))

    def _cut(
        self, value: Known, starts: Sequence[Any], stops: Sequence[Any], strides: Sequence[int]
    ) -> str:
        limits = zip(starts, stops, strides, value.shape, strict=True)
        cut = [
            (axis, start, stop, stride)
            for axis, (start, stop, stride, length) in enumerate(limits)
            if (start, stride) != (0, 1) or stop != length
        ]
        if not cut:
            return self.whole(value)
        axes, first, last, steps = (np.array(part, np.int64) for part in zip(*cut, strict=True))
        places = [self.constant(array) for array in (first, last, axes, steps)]
        return self.node("Slice", [self.whole(value), *places])

    def _of_pad(self, inputs: list[Known], shape: Shape, parameters: Any) -> str:
        low, high, between = zip(*parameters["padding_config"], strict=True)
        _refuse(any(between), "padding between values")
        pads = self.constant(np.array((*low, *high), np.int64))
        return self.node("Pad", [self.whole(inputs[0]), pads, self.whole(inputs[1])])

    def _of_concatenate(self, inputs: list[Known], shape: Shape, parameters: Any) -> str:
        return self.node("Concat", list(map(self.whole, inputs)), axis=parameters["dimension"])

    def _of_stack(self, inputs: list[Known], shape: Shape, parameters: Any) -> str:
        axis = self.constant(np.array([parameters["axis"]], np.int64))
        parts = [self.node("Unsqueeze", [self.whole(value), axis]) for value in inputs]
        return self.node("Concat", parts, axis=parameters["axis"])

    def _reduced(self, kind: str, inputs: list[Known], shape: Shape, parameters: Any) -> str:
        axes = self.constant(np.array(parameters["axes"], np.int64))
        return self.node(kind, [self.whole(inputs[0]), axes], keepdims=0)

    _of_reduce_sum = functools.partialmethod(_reduced, "ReduceSum")
    _of_reduce_max = functools.partialmethod(_reduced, "ReduceMax")

    def _of_reduce_or(self, inputs: list[Known], shape: Shape, parameters: Any) -> str:
        axes = self.constant(np.array(parameters["axes"], np.int64))
        number = self.node("Cast", [self.whole(inputs[0])], to=_type(np.int32))
        largest = self.node("ReduceMax", [number, axes], keepdims=0)
        return self.node("Cast", [largest], to=_type(np.bool_))

    def _of_top_k(self, inputs: list[Known], shape: Shape, parameters: Any) -> list[Known]:
        _refuse(parameters.get("axis", -1) not in (-1, len(shape) - 1), "a choice by an inner axis")
        outputs = [self._new_name(), self._new_name()]
        count = self.constant(np.array([parameters["k"]], np.int64))
        self.node("TopK", [self.whole(inputs[0]), count], outputs, axis=-1)
        return [Value(name, shape, shape) for name in outputs]

    def _of_dot_general(self, inputs: list[Known], shape: Shape, parameters: Any) -> str:
        (left, right), (left_batch, right_batch) = parameters["dimension_numbers"]
        ranks = [len(value.shape) for value in inputs]
        letters = [[chr(97 + 16 * n + axis) for axis in range(r)] for n, r in enumerate(ranks)]
        for a, b in zip((*left_batch, *left), (*right_batch, *right), strict=True):
            letters[1][b] = letters[0][a]
        result = [letters[0][axis] for axis in left_batch]
        for own, gone in zip(letters, ((*left_batch, *left), (*right_batch, *right)), strict=True):
            result += [letter for axis, letter in enumerate(own) if axis not in gone]
        equation = f"{','.join(map(''.join, letters))}->{''.join(result)}"
        return self.node("Einsum", list(map(self.whole, inputs)), equation=equation)

    def _of_conv_general_dilated(self, inputs: list[Known], shape: Shape, parameters: Any) -> str:
        images, kernel = inputs
        axes = parameters["dimension_numbers"]
        low, high = zip(*parameters["padding"], strict=True)
        spread = {*parameters["lhs_dilation"], parameters["batch_group_count"]}
        _refuse(spread != {1}, "a transposed convolution")
        result = self.node(
            "Conv",
            [
                self.node("Transpose", [self.whole(images)], perm=axes.lhs_spec),
                self.constant(kernel.transpose(axes.rhs_spec))
                if isinstance(kernel, np.ndarray)
                else self.node("Transpose", [self.whole(kernel)], perm=axes.rhs_spec),
            ],
            strides=parameters["window_strides"],
            pads=(*low, *high),
            dilations=parameters["rhs_dilation"],
            group=parameters["feature_group_count"],
        )
        return self.node("Transpose", [result], perm=np.argsort(axes.out_spec).tolist())

    def _pooled(self, kind: str, inputs: list[Known], shape: Shape, parameters: Any) -> str:
        window, strides = parameters["window_dimensions"], parameters["window_strides"]
        low, high = zip(*parameters["padding"][1:-1], strict=True)
        spread = {*parameters["base_dilation"], *parameters["window_dilation"]}
        _refuse(
            spread != {1} or len(window) != 4 or {window[0], window[3]} != {1},
            "pooling over other axes than rows and columns",
        )
        attributes: dict[str, Any] = {} if kind == "MaxPool" else {"count_include_pad": 1}
        result = self.node(
            kind,
            [self.node("Transpose", [self.whole(inputs[0])], perm=(0, 3, 1, 2))],
            kernel_shape=window[1:-1],
            strides=strides[1:-1],
            pads=(*low, *high),
            **attributes,
        )
        if kind == "AveragePool":
            size = self.constant(np.float32(np.prod(window)))
            result = self.node("Mul", [result, size])
        return self.node("Transpose", [result], perm=(0, 2, 3, 1))

    _of_reduce_window_max = functools.partialmethod(_pooled, "MaxPool")
    _of_reduce_window_sum = functools.partialmethod(_pooled, "AveragePool")
