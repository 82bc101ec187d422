"""A call of a scope, bound to its parameters and looked at once."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fusion.capture.python.argument_snapshot import ArgumentSnapshot
from fusion.capture.python.argument_tree import ArgumentTree, Container, flatten, is_atom
from fusion.patterns.forks import cached_property


class BoundCall:
    """The arguments of one call. Each way of looking at them is taken when it is first needed, and kept.

    Args:
        names: of the parameters, in signature order.
        arguments: a value for each.

    Attributes:
        arguments: the values, as plans take them.
    """

    def __init__(self, names: Iterable[str], arguments: Sequence[Any]) -> None:
        self._names = names
        self.arguments = tuple(arguments)

    @cached_property
    def kinds(self) -> tuple[Any, ...]:
        """The arguments' types, and which of them are None, True or False: cheap, and coarser than `structure`."""
        return tuple([a if a is None or a is True or a is False else type(a) for a in self.arguments])

    @cached_property
    def named(self) -> dict[str, Any]:
        """The arguments by parameter name."""
        return dict(zip(self._names, self.arguments, strict=True))

    @cached_property
    def tree(self) -> ArgumentTree:
        """Leaves and containers, as the call finds them: it has to be asked for before the call is made."""
        return flatten(self.named)

    def snapshot(self) -> ArgumentSnapshot:
        """What the call is given as it is now, to tell later what the call did to it."""
        return ArgumentSnapshot(self.named, self.tree)

    @cached_property
    def _shape(self) -> tuple[tuple[Any, ...], tuple[Any, ...], tuple[int, ...]]:
        """The containers, what is known of each leaf outside of lists of numbers, and the numbers in such lists."""
        lists = {container.path for container in self.tree.containers if _is_numbers(container)}
        numbers = tuple(leaf.value for leaf in self.tree.leaves if leaf.path[:-1] in lists)
        kinds = tuple((leaf.path, _kind(leaf.value)) for leaf in self.tree.leaves if leaf.path[:-1] not in lists)
        return tuple((c.path, c.kind, c.keys) for c in self.tree.containers), kinds, numbers

    @property
    def structure(self) -> Any:
        """What a refusal is remembered by: the arguments' nesting, types, dtypes and plain values, without sizes."""
        return self._shape

    @cached_property
    def form(self) -> Any:
        """The structure without the numbers in lists of numbers; None where there is no such list."""
        containers, kinds, numbers = self._shape
        return (containers, kinds) if numbers else None


def _kind(leaf: Any) -> Any:
    """What is known of a leaf. Of an object that torch looks into, such as a cache, what torch finds there."""
    if type(leaf) in (int, str, float, bool, type(None)):
        return type(leaf), leaf
    if isinstance(leaf, torch.Tensor) and not leaf.is_nested:  # which has no sizes to ask for
        return (leaf.dtype, leaf.device, tuple(min(s, 2) for s in leaf.shape))
    if is_atom(leaf):
        return leaf if isinstance(leaf, (int, float, str)) else type(leaf)
    inner, nest = pytree.tree_flatten(leaf)
    return type(leaf) if nest.is_leaf() else (str(nest), tuple(map(_kind, inner)))


def _is_numbers(container: Container) -> bool:
    """Whether a container is a list of whole numbers."""
    return container.kind is list and bool(container.items) and all(type(item) is int for _, item in container.items)
