"""The Python state that a recorded run can reach: whether the run changed it, and how that is taken back.

A recorded run hands symbols to the user's code in the place of sizes. Where the run leaves something behind, it is made
once, it is refused, and the symbols in what it left become numbers.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from fusion.capture.python.argument_tree import flatten
from fusion.capture.python.assignments import codes_of, line_that_sets
from fusion.capture.python.container_proxy import put_back
from fusion.capture.python.reachable_state import ENTRY_NAMES, INTERNAL, Entry, Members, ReachableState, settled
from fusion.capture.python.state_guards import alike
from fusion.capture.symbolic_shapes import hint, is_symbolic
from fusion.refusal import Refused


class PythonState:
    """What modules, and the names that a function finds outside itself, hold when this is made.

    Args:
        modules: the scope's modules, by path prefix.
        steps: modules inside that are called natively: their state is their own affair.
        outside: gives snapshot entries for closures and global names; None where a scope has none.
        arguments: of the call, whose lists and dicts may be left with symbols in them.
    """

    def __init__(
        self,
        modules: Mapping[str, torch.nn.Module],
        steps: Iterable[torch.nn.Module] = (),
        outside: Callable[[], list[Entry]] | None = None,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        self._modules = modules
        self._steps = tuple(steps)
        self._outside = outside
        self._arguments = arguments or {}
        self._before = self._entries()

    def change(self) -> str | None:
        """The first thing that is not as it was, in words, or None."""
        now = self._entries()
        if len(self._before) != len(now):
            return "adds or removes attributes, items or closures"
        for was, is_now in zip(self._before, now, strict=True):
            if not alike(was, is_now):
                return in_words(was)
        return None

    def line(self) -> str:
        """ "file:line" of the code that makes the first change, as far as code tells; or ""."""
        first = next(
            (was for was, now in zip(self._before, self._entries(), strict=False) if not alike(was, now)), None
        )
        if first is None or first[0] != "item" or not isinstance(first[2], str):
            return ""
        children = [child for module in self._modules.values() for child in module.modules()]
        kinds = {type(child) for child in children if vars(child) is first[1]} or set(map(type, children))
        codes = [code for kind in kinds for code in codes_of(kind)]
        return line_that_sets(first[2], [*codes, *(entry[2] for entry in self._before if entry[0] == "code")])

    def changing(self) -> torch.nn.Module | None:
        """The module that holds the first thing that is not as it was; None where that is not told."""
        pairs = zip(self._before, self._entries(), strict=False)
        held = next((now[1] for was, now in pairs if not alike(was, now)), None)
        for module in self._modules.values():
            for child in module.modules():
                if vars(child) is held or any(value is held for value in vars(child).values()):
                    return child
        return None

    def settle(self) -> None:
        """Replaces symbols that a recorded run left in anything that it can reach by numbers; lists by real ones."""
        for module in self._modules.values():
            for child in module.modules():
                put_back(child)
        for container in flatten(self._arguments)[1]:
            _settle_container(container.value)
        for entry in self._entries():
            _settle(entry)

    def restore(self) -> None:
        """Makes what the run can reach what it was, before the call is made once more."""
        lists: dict[int, tuple[list[Any], list[Any]]] = {}
        dicts: dict[int, tuple[dict[Any, Any], dict[Any, Any]]] = {}
        for kind, target, *rest in self._before:
            if kind == "size" and type(target) is list:
                lists.setdefault(id(target), (target, []))
            elif kind == "size" and type(target) is dict:
                dicts.setdefault(id(target), (target, {}))
            elif kind == "index":
                lists.setdefault(id(target), (target, []))[1].append(rest[1])
            elif kind == "item" and id(target) in dicts:
                dicts[id(target)][1][rest[0]] = rest[1]
            elif kind == "attribute" and rest[0] == "cell_contents":
                target.cell_contents = rest[1]
            elif isinstance(target, Members) and not target.same:
                target.put_back()
        for held, items in lists.values():
            if len(held) != len(items) or any(a is not b for a, b in zip(held, items, strict=True)):
                held.clear()
                held.extend(items)
        found = [target for kind, target, *_ in self._before if kind == "class"]
        attributes = {id(vars(target)) for target in found if isinstance(target, torch.nn.Module)}
        for mapping, known in dicts.values():
            if any(isinstance(name, str) and name in _OF_CLASSES for name in mapping):
                continue  # a class's dict
            kept = INTERNAL.union(ENTRY_NAMES) if id(mapping) in attributes else frozenset()
            for name in [name for name in list(mapping) if name not in known and name not in kept]:
                del mapping[name]
            mapping.update({name: value for name, value in known.items() if mapping.get(name) is not value})

    def _entries(self) -> list[Entry]:
        with contextlib.suppress(Refused):  # where another thread changes it all the time, a plan's guards never hold
            return settled(self._look)
        return []

    def _look(self) -> list[Entry]:
        found: list[Entry] = []
        with contextlib.suppress(Refused):  # such state is refused before it is recorded
            found += [] if self._outside is None else self._outside()
            found += ReachableState(self._modules, (), self._steps).entries
        return found


_OF_CLASSES = ("__module__", "__qualname__")


def in_words(entry: Entry) -> str:
    """What it means that an entry does not hold."""
    kind, target, *rest = entry
    if kind == "item":
        return f"changes {rest[0]!r}"
    if kind == "call":
        return "changes a context variable"
    if kind == "attribute" and isinstance(target, type):
        return f"changes {target.__name__}.{rest[0]}"
    if kind in ("class", "code"):
        return f"changes the {kind} of an object"
    if kind == "attribute" and rest[0] == "cell_contents":
        return "changes a variable of a function around it"
    return "changes a container"


def _plain(value: Any) -> Any:
    """A value with numbers for symbols, also in tuples."""
    if type(value) in (tuple, torch.Size):
        return type(value)(map(_plain, value)) if any(map(_has_symbol, value)) else value
    return hint(value)


def _has_symbol(value: Any) -> bool:
    return is_symbolic(value) or (isinstance(value, tuple) and any(map(_has_symbol, value)))


def _settle(entry: Entry) -> None:
    kind, target, *rest = entry
    if isinstance(target, Members):
        _settle_container(target.held)
    elif kind == "call" and _has_symbol(rest[0]):
        variable = getattr(getattr(target, "func", None), "__self__", None)
        if isinstance(variable, contextvars.ContextVar):
            variable.set(_plain(rest[0]))
    elif kind == "attribute" and _has_symbol(rest[1]):
        setattr(target, rest[0], _plain(rest[1]))
    elif kind == "item" and _has_symbol(rest[1]):
        target[rest[0]] = _plain(rest[1])
    elif kind in ("index", "size"):
        _settle_container(target)


def _settle_container(held: Any) -> None:
    if isinstance(held, (list, collections.deque)):
        for place, value in enumerate(held):
            if _has_symbol(value):
                held[place] = _plain(value)
    elif type(held) is dict:
        for key in [key for key in list(held) if _has_symbol(key)]:
            held[_plain(key)] = held.pop(key)
        for key, value in list(held.items()):
            if _has_symbol(value):
                held[key] = _plain(value)
    elif type(held) is set:
        for value in [value for value in list(held) if _has_symbol(value)]:
            held.remove(value)
            held.add(_plain(value))
