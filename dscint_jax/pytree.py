"""Data classes as JAX trees whose constructor runs where the code calls it, and nowhere else.

In: a data class. Out: the same class, whose fields are the children of a tree. JAX takes trees
apart and puts them together again with whatever it needs in place of arrays (shapes, shardings,
axis numbers); `jax.tree_util.register_dataclass` gives these to the constructor, which may refuse
what is no array. And the leaves of a tree by name.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import jax

Class = TypeVar("Class", bound=type)


def named_leaves(tree: Any) -> dict[str, Any]:
    """The leaves of a tree under their paths, such as 'params/head/kernel'."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def pytree(cls: Class) -> Class:
    """Registers a data class; a decorator to stand above `dataclasses.dataclass`."""
    names = tuple(field.name for field in dataclasses.fields(cls))

    def flatten(node: Any) -> tuple[tuple[Any, ...], None]:
        return tuple(getattr(node, name) for name in names), None

    def flatten_with_keys(node: Any) -> tuple[tuple[tuple[Any, Any], ...], None]:
        return tuple((jax.tree_util.GetAttrKey(name), getattr(node, name)) for name in names), None

    def unflatten(_: None, children: Iterable[Any]) -> Any:
        node = object.__new__(cls)
        for name, child in zip(names, children, strict=True):
            object.__setattr__(node, name, child)
        return node

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
