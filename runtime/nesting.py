"""How results nest: torch's pytrees, and dataclasses that are not registered with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection
from typing import Any

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


def fields_of(value: Any) -> dict[str, Any] | None:
    """The fields of a dataclass instance that holds nothing else, by name; None for any other object."""
    if not dataclasses.is_dataclass(value) or isinstance(value, (type, dict, tuple, list)):
        return None
    names = [f.name for f in dataclasses.fields(value)]
    if not all(hasattr(value, name) for name in names) or not set(getattr(value, "__dict__", ())) <= set(names):
        return None
    return {name: getattr(value, name) for name in names}


def flatten(result: Any, whole: Collection[int] = ()) -> tuple[list[Any], Any]:
    """The leaves of a result, and the tree that `torch.utils._pytree.tree_unflatten` puts them back into.

    Args:
        result: any nest of registered containers and dataclasses.
        whole: ids of containers that count as leaves.
    """

    def is_leaf(x: Any) -> bool:
        return id(x) in whole

    def opened(x: Any) -> Any:
        fields = None if is_leaf(x) else fields_of(x)
        if fields is None:
            return x
        return _Instance(type(x), {k: pytree.tree_map(opened, v, is_leaf=is_leaf) for k, v in fields.items()})

    leaves, tree = pytree.tree_flatten(result, is_leaf=is_leaf)
    if any(fields_of(leaf) is not None for leaf in leaves):
        leaves, tree = pytree.tree_flatten(pytree.tree_map(opened, result, is_leaf=is_leaf), is_leaf=is_leaf)
    return leaves, tree
