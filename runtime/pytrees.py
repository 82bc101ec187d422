"""How results nest: torch's pytrees, and dataclasses that are not registered with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import torch
from torch.utils import _pytree as pytree


class _Instance:
    """A dataclass instance as a node of a pytree."""

    __slots__ = ("kind", "values")

    def __init__(self, kind: type, values: dict[str, Any]) -> None:
        self.kind = kind
        self.values = values


def _take_apart(instance: _Instance) -> tuple[list[Any], Any]:
    return list(instance.values.values()), (instance.kind, tuple(instance.values))


def _put_together(values: Any, context: Any) -> Any:
    """The dataclass instance, whether frozen or slotted, without running its `__init__`."""
    kind, names = context
    made = kind.__new__(kind)
    for name, value in zip(names, values, strict=True):
        object.__setattr__(made, name, value)
    return made


pytree.register_pytree_node(_Instance, _take_apart, _put_together)


_TREES: dict[str, Any] = {}  # structures that torch has no text for, by ours


def tree_text(tree: Any) -> str:
    """A text that says how leaves nest, from which `tree_of` makes the tree again in this process.

    Args:
        tree: a pytree structure; the classes of its named tuples are told by their full names.
    """
    try:
        text = pytree.treespec_dumps(tree)
        if pytree.treespec_loads(text) == tree:
            return text
    except (NotImplementedError, TypeError):  # named tuples, keys that are no text
        pass
    text = f"{tree} of {', '.join(_named_tuples(tree))}"
    while _TREES.setdefault(text, tree) != tree:  # another class of that name
        text += "'"
    return text


def tree_of(text: str) -> Any:
    """The tree that `tree_text` told in this process."""
    known = _TREES.get(text)
    return pytree.treespec_loads(text) if known is None else known


def _named_tuples(tree: Any) -> Iterator[str]:
    if isinstance(tree.context, type):
        yield f"{tree.context.__module__}.{tree.context.__qualname__}"
    for child in tree.children():
        yield from _named_tuples(child)


def fields_of(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass instance that holds nothing else, by name; None for any other object."""
    if not dataclasses.is_dataclass(value) or isinstance(value, (type, dict, tuple, list)):
        return None
    names = [f.name for f in dataclasses.fields(value)]
    if not all(hasattr(value, name) for name in names) or not set(getattr(value, "__dict__", ())) <= set(names):
        return None
    return {name: getattr(value, name) for name in names}


def unflatten(leaves: Iterable[Any], tree: Any) -> Any:
    """The nest of some leaves. Unlike torch's, it makes shapes of what were shapes.

    Args:
        leaves: in order.
        tree: a pytree structure.
    """
    return _unflatten(iter(leaves), tree)


def _unflatten(leaves: Iterator[Any], tree: Any) -> Any:
    if tree.is_leaf():
        return next(leaves)
    inner = [_unflatten(leaves, child) for child in tree.children()]
    return (
        torch.Size(inner)
        if tree.type is torch.Size
        else pytree.SUPPORTED_NODES[tree.type].unflatten_fn(inner, tree.context)
    )


def mapped(function: Callable[[Any], Any], nest: Any) -> Any:
    """A nest with a function's values for its leaves."""
    leaves, tree = pytree.tree_flatten(nest)
    return unflatten(map(function, leaves), tree)


def flatten(result: Any, whole: Collection[int] = ()) -> tuple[list[Any], Any]:
    """The leaves of a result, and the tree that `unflatten` puts them back into.

    Args:
        result: any nest of registered containers and dataclasses.
        whole: ids of containers that count as leaves.
    """

    def is_leaf(x: Any) -> bool:
        return id(x) in whole

    leaves, tree = pytree.tree_flatten(result, is_leaf=is_leaf)
    if any(fields_of(leaf) is not None for leaf in leaves):
        leaves, tree = pytree.tree_flatten(_opened(result, whole), is_leaf=is_leaf)
    return leaves, tree


def _opened(result: Any, whole: Collection[int]) -> Any:
    """A result with registered instances for its dataclasses."""

    def is_whole(x: Any) -> bool:
        return id(x) in whole or type(x) is torch.Size

    def opened(x: Any) -> Any:
        fields = None if id(x) in whole else fields_of(x)
        return x if fields is None else _Instance(type(x), {k: _opened(v, whole) for k, v in fields.items()})

    return pytree.tree_map(opened, result, is_leaf=is_whole)
