"""What a call is given, as it was before the call: dicts among its arguments that it sets items of.

A layer may hand its keys and values to later layers through a dict that all of them are given. A plan sets the same
items as the last thing it does; a run that is made twice starts from the dicts as they were.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fusion.capture.python.argument_tree import ArgumentTree, Atom, flatten
from fusion.capture.symbolic_shapes import hint, is_symbolic
from fusion.patterns.leaves import Attribute, Path
from fusion.runtime.plan import MISS
from fusion.runtime.pytrees import mapped

Item = tuple[Path, str | int]  # a dict's path and one of its keys
_KINDS = (dict, collections.UserDict)


class ArgumentSnapshot:
    """The arguments of one call, flattened before it is made.

    Args:
        arguments: by parameter name.
        tree: what they are made of, where that is known.

    Attributes:
        leaves, containers: what they are made of.
    """

    def __init__(self, arguments: Mapping[str, Any], tree: ArgumentTree | None = None) -> None:
        self.arguments = arguments
        self.leaves, self.containers = tree or flatten(arguments)
        self._dicts = [(c, dict(c.value)) for c in self.containers if type(c.value) in _KINDS]

    # ---- what the call did

    def set_items(self) -> tuple[Item, ...] | None:
        """The items of dicts that the call has set; None where it did anything else to what it was given."""
        items = self._changed()
        if items is None or not all(self._may_be_set(path, key) for path, key in items):
            return None
        places = {(*path, *self._step(path), key) for path, key in items}
        others = [c for c in self.containers if not any(c.path[: len(place)] == place for place in places)]
        return items if all(container.is_unchanged(places) for container in others) else None

    def _changed(self) -> tuple[Item, ...] | None:
        """The items that differ from before; None where one is gone or has moved."""
        items: list[Item] = []
        for container, before in self._dicts:
            now = dict(container.value)
            if list(now)[: len(before)] != list(before):
                return None
            items += [(container.path, k) for k, v in now.items() if k not in before or v is not before[k]]
        return tuple(items)

    def changes(self) -> bool:
        """Whether any of the dicts holds something else than before the call."""
        return self._changed() != ()

    def _may_be_set(self, path: Path, key: Any) -> bool:
        """Whether a plan can set an item: the dict came in once, and the value is made of tensors and plain values."""
        container = self._at(path)
        return (
            type(key) in (str, int)
            and sum(c.value is container for c in self.containers) == 1
            and _is_made_of_values(container[key])
        )

    def _at(self, path: Path) -> Any:
        return next(c.value for c, _ in self._dicts if c.path == path)

    def _step(self, path: Path) -> tuple[Attribute, ...]:
        return (Attribute("data"),) if isinstance(self._at(path), collections.UserDict) else ()

    def values(self, items: tuple[Item, ...]) -> tuple[Any, ...]:
        """What some items of the dicts hold now."""
        return tuple(self._at(path)[key] for path, key in items)

    def apart(self, items: tuple[Item, ...]) -> tuple[tuple[Path, Path], ...]:
        """Pairs of paths that have to lead to different dicts for items that are set."""
        paths = dict.fromkeys(path for path, _ in items)
        return tuple(
            (path, c.path)
            for path in paths
            for c, _ in self._dicts
            if c.path != path and type(c.value) is type(self._at(path))
        )

    def outcome(self, result: Any, items: tuple[Item, ...]) -> Any:
        """A call's result as a plan's run with a log gives it; `MISS` where the call did not set just these items."""
        if self.set_items() != items:
            return MISS
        return (result, self.values(items)) if items else result

    # ---- taking it back

    def settle(self) -> None:
        """Replaces symbolic sizes that a recorded call left in the dicts by numbers."""
        for container, before in self._dicts:
            for key, value in list(container.value.items()):
                if before.get(key) is not value and any(map(is_symbolic, pytree.tree_leaves(value))):
                    container.value[key] = mapped(hint, value)

    def rewind(self) -> None:
        """Makes the dicts hold what they held before the call."""
        if self.changes():
            self._put([before for _, before in self._dicts])

    def _put(self, held: list[dict[Any, Any]]) -> None:
        for (container, _), items in zip(self._dicts, held, strict=True):
            container.value.clear()
            container.value.update(items)

    @contextlib.contextmanager
    def rewound(self) -> Iterator[None]:
        """Inside the block the dicts are as before the call; after it, as they are now."""
        now = [dict(container.value) for container, _ in self._dicts]
        self.rewind()
        try:
            yield
        finally:
            if self._changed_from(now):
                self._put(now)

    def _changed_from(self, held: list[dict[Any, Any]]) -> bool:
        return any(
            list(c.value) != list(items) or any(c.value[k] is not v for k, v in items.items())
            for (c, _), items in zip(self._dicts, held, strict=True)
        )


def _is_made_of_values(value: Any) -> bool:
    if type(value) is tuple:
        return all(map(_is_made_of_values, value))
    return isinstance(value, (torch.Tensor, *Atom)) or is_symbolic(value)
