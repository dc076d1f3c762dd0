"""Where the first value that is not finite comes from, in any function of arrays.

In: a function and its arguments. Out: its result, and for a value in it that is not finite the
operation that made it of finite ones. The function is traced and its operations are done some at a
time, so that the result of each is seen.

An infinity that is meant, such as the padding of a maximum, leads to nothing that is not finite and
so is not found: the way is followed back from the result.
"""

import dataclasses
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

BODIES = ("jaxpr", "call_jaxpr")
"""Names of the parameters by which operations that only call others hold these."""

MOST_OPERATIONS, MOST_VALUES = 64, 2**28
"""How many are compiled together, and how many values they may give."""

LIBRARIES = tuple(
    Path(sysconfig.get_paths()[name]).resolve() for name in ("purelib", "platlib", "stdlib")
)


@dataclasses.dataclass(frozen=True)
class Origin:
    """An operation whose result is not finite.

    Attributes:
      operation: JAX's name of it.
      place: file, line and function that asked for it, and whether in the way back (gradients).
      shape: of its result.
      nan, infinite: how many values of it are.
      rows: indices along the first axis where any is; empty of a scalar.
      came_from: those of its operands that are not finite either.
    """

    operation: str
    place: str
    shape: tuple[int, ...]
    nan: int
    infinite: int
    rows: tuple[int, ...]
    came_from: tuple["Origin", ...]

    def first(self) -> "Origin":
        """The first on the way to this; of several a NaN's rather than an infinity's."""
        origin = self
        while origin.came_from:
            origin = max(origin.came_from, key=lambda one: one.nan > 0)
        return origin


@dataclasses.dataclass(frozen=True)
class _Traced:
    value: Any
    origin: Origin | None


def follow(
    function: Callable[..., Any],
    arguments: Mapping[str, Any],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Any, list[Origin | None]]:
    """Calls a function and finds out where values that are not finite come from.

    Args:
      function: of arrays in any trees.
      arguments: by the names that are shown for those that are not finite themselves.
      progress: told how many of how many operations are done.

    Returns:
      The function's result; and for each of its leaves that is not finite the origin, else None.
    """
    traced, shape = jax.make_jaxpr(function, return_shape=True)(*arguments.values())
    named = [
        _input(f"{name}{jax.tree_util.keystr(path)}", leaf)
        for name, tree in arguments.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]
    constants = [_Traced(value, None) for value in traced.consts]
    total = len(traced.jaxpr.eqns)
    results = _run(traced.jaxpr, constants, named, lambda done: progress(done, total))
    values = jax.tree.unflatten(jax.tree.structure(shape), [one.value for one in results])
    return values, [one.origin for one in results]


def _run(
    jaxpr: core.Jaxpr,
    constants: Sequence[_Traced],
    arguments: Sequence[_Traced],
    progress: Callable[[int], None] = lambda done: None,
) -> list[_Traced]:
    known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*constants, *arguments], strict=True))
    last_use = {
        variable: number
        for number, equation in enumerate(jaxpr.eqns)
        for variable in _variables(equation.invars)
    }
    results = set(_variables(jaxpr.outvars))

    def read(operand: Any) -> _Traced:
        return _Traced(operand.val, None) if isinstance(operand, core.Literal) else known[operand]

    done = 0
    for equations in _batches(jaxpr.eqns):
        values = _values(equations, jaxpr, known)
        for equation in equations:
            operands = [read(operand) for operand in equation.invars]
            known.update(zip(equation.outvars, _judge(equation, operands, values), strict=True))
            for variable in set(_variables(equation.invars)) - results:
                if last_use[variable] == done:
                    del known[variable]
            done += 1
        progress(done)
    return [read(operand) for operand in jaxpr.outvars]


def _batches(equations: Sequence[core.JaxprEqn]) -> Iterator[Sequence[core.JaxprEqn]]:
    """As many operations at a time as are compiled together, for their results fit the memory."""
    batch, size = [], 0
    for equation in equations:
        size += sum(getattr(one.aval, "size", 0) for one in equation.outvars)
        if batch and (len(batch) == MOST_OPERATIONS or size > MOST_VALUES):
            yield batch
            batch, size = [], 0
        batch.append(equation)
    if batch:
        yield batch


def _values(
    equations: Sequence[core.JaxprEqn], jaxpr: core.Jaxpr, known: Mapping[core.Var, _Traced]
) -> dict[core.Var, Any]:
    """All results of some operations."""
    made = list(dict.fromkeys(one for equation in equations for one in equation.outvars))
    needed = [
        variable
        for variable in dict.fromkeys(_variables([o for e in equations for o in e.invars]))
        if variable in known
    ]
    part = jaxpr.replace(
        constvars=[],
        invars=needed,
        outvars=made,
        eqns=list(equations),
        debug_info=jaxpr.debug_info.with_unknown_names(),
    )
    function = jax.jit(core.jaxpr_as_fun(core.ClosedJaxpr(part, ())))
    return dict(zip(made, function(*(known[one].value for one in needed)), strict=True))


def _judge(
    equation: core.JaxprEqn, operands: Sequence[_Traced], values: Mapping[core.Var, Any]
) -> list[_Traced]:
    """The results of an operation, and of those that are not finite the origin."""
    causes = tuple(one.origin for one in operands if one.origin)
    name, place = equation.primitive.name, _place(equation)
    results = [
        _Traced(values[one], _origin(values[one], name, place, causes)) for one in equation.outvars
    ]
    if not any(one.origin for one in results) or any(cause.nan for cause in causes):
        return results
    # Some operations hold others; it began in one of these.
    inner = _within(equation, operands)
    if inner is None:
        return results
    return [
        _Traced(one.value, one.origin and (found.origin or one.origin))
        for one, found in zip(results, inner, strict=True)
    ]


def _within(equation: core.JaxprEqn, operands: Sequence[_Traced]) -> list[_Traced] | None:
    """The results of an operation by way of those that it holds; None if it holds none."""
    name, parameters = equation.primitive.name, equation.params
    if name == "scan":
        return _scan(parameters, operands)
    if name == "cond":
        branches = parameters["branches"]
        chosen = branches[int(np.clip(operands[0].value, 0, len(branches) - 1))]
        return _run(chosen.jaxpr, _plain(chosen.consts), operands[1:])
    for body in (parameters[key] for key in BODIES if key in parameters):
        inner = getattr(body, "jaxpr", body)
        if len(inner.invars) == len(operands):
            return _run(inner, _plain(getattr(body, "consts", ())), operands)
    return None


def _scan(parameters: Mapping[str, Any], operands: Sequence[_Traced]) -> list[_Traced]:
    constants, carried = parameters["num_consts"], parameters["num_carry"]
    body, carry = parameters["jaxpr"], list(operands[constants : constants + carried])
    steps = range(parameters["length"])
    rows = []
    for step in reversed(steps) if parameters["reverse"] else steps:
        row = [_Traced(one.value[step], one.origin) for one in operands[constants + carried :]]
        results = _run(body.jaxpr, _plain(body.consts), [*operands[:constants], *carry, *row])
        carry = results[:carried]
        rows.append(results[carried:])
    if parameters["reverse"]:
        rows.reverse()
    stacked = [
        _Traced(
            jnp.stack([one.value for one in column]),
            next((one.origin for one in column if one.origin), None),
        )
        for column in zip(*rows, strict=True)
    ]
    return [*carry, *stacked]


def _variables(operands: Sequence[Any]) -> Iterator[core.Var]:
    return (operand for operand in operands if not isinstance(operand, core.Literal))


def _plain(values: Sequence[Any]) -> list[_Traced]:
    return [_Traced(value, None) for value in values]


def _input(name: str, value: Any) -> _Traced:
    return _Traced(value, _origin(value, "given", name, ()))


def _origin(value: Any, operation: str, place: str, causes: tuple[Origin, ...]) -> Origin | None:
    if not jnp.issubdtype(jnp.result_type(value), jnp.inexact):
        return None
    # In NumPy, which has nothing to compile for every shape.
    values = np.asarray(value)
    bad = ~np.isfinite(values)
    if not bad.any():
        return None
    rows = np.flatnonzero(bad.reshape(len(values), -1).any(1)) if values.ndim else ()
    return Origin(
        operation=operation,
        place=place,
        shape=values.shape,
        nan=int(np.isnan(values).sum()),
        infinite=int(np.isinf(values).sum()),
        rows=tuple(int(row) for row in rows),
        came_from=causes,
    )


def _place(equation: core.JaxprEqn) -> str:
    """Such as 'augment.py:57 (normalise)': the innermost line that is no library's."""
    trace = equation.source_info.traceback
    back = ", gradient" if "transpose" in str(equation.source_info.name_stack) else ""
    for frame in trace.frames if trace else ():
        path = Path(frame.file_name)
        if path.is_file() and not any(path.is_relative_to(place) for place in LIBRARIES):
            return f"{path.name}:{frame.line_num} ({frame.function_name}{back})"
    return f"a library{back}"
