"""Snapshots: whether Python objects are as they were, in C where the extension is at hand, and in Python."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import CodeType, FunctionType
from typing import Any

from fusion.runtime.native import ABSENT, load_native


def make_snapshot(entries: Iterable[tuple[Any, ...]]) -> Callable[[], bool]:
    """A function without arguments that returns whether every entry still holds.

    Args:
        entries: of the forms
            ("item", dict, key, expected): dict[key] is `expected`, or there is no such key where that is ABSENT;
            ("index", list, i, expected): list[i] is `expected`;
            ("size", container, n): the container has `n` items;
            ("attribute", object, name, expected): the attribute is `expected`, or is missing where that is ABSENT;
            ("class", object, expected): the object's class is `expected`;
            ("code", function, expected): the function's code object is `expected`;
            ("call", callable, expected): the callable, which takes no arguments, returns `expected`.
            Values are compared by identity, so an attribute must hand out the same object each time it is read.

    Raises:
        ValueError, TypeError: an entry of another form.
    """
    module = load_native()
    return (module.Snapshot if module else PythonSnapshot)(_grouped(entries))


def _grouped(entries: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """What is asked of one object stands together: the C extension looks once at a dict that has not changed."""
    groups: dict[Any, list[tuple[Any, ...]]] = {}
    for number, entry in enumerate(entries):
        of_container = isinstance(entry, tuple) and len(entry) > 1 and entry[0] in ("item", "size")
        groups.setdefault(("object", id(entry[1])) if of_container else ("entry", number), []).append(entry)
    return [entry for group in groups.values() for entry in group]


class PythonSnapshot:
    """`make_snapshot` without the C extension."""

    def __init__(self, entries: Sequence[tuple[Any, ...]]) -> None:
        for entry in entries:
            if not isinstance(entry, tuple):
                raise TypeError("a snapshot's entries are tuples")
            match entry:
                case ("item", dict(), _, _) | ("size", _, int()) | ("attribute", _, str(), _):
                    pass
                case ("index", list(), int() as at, _) if at >= 0:
                    pass
                case ("class", _, type()) | ("code", FunctionType(), CodeType()):
                    pass
                case ("call", target, _) if callable(target):
                    pass
                case _:
                    raise ValueError(f"{entry!r} is no entry of a snapshot")
        self._items = [e[1:] for e in entries if e[0] == "item"]
        self._indices = [e[1:] for e in entries if e[0] == "index"]
        self._sizes = [e[1:] for e in entries if e[0] == "size"]
        self._attributes = [e[1:] for e in entries if e[0] == "attribute"]
        self._classes = [e[1:] for e in entries if e[0] == "class"]
        self._codes = [e[1:] for e in entries if e[0] == "code"]
        self._calls = [e[1:] for e in entries if e[0] == "call"]

    def __call__(self) -> bool:
        return (
            all(dict.get(target, key, ABSENT) is expected for target, key, expected in self._items)
            and all(len(container) == n for container, n in self._sizes)
            and all(len(held) > at and held[at] is expected for held, at, expected in self._indices)
            and all(getattr(target, name, ABSENT) is expected for target, name, expected in self._attributes)
            and all(type(target) is kind for target, kind in self._classes)
            and all(function.__code__ is code for function, code in self._codes)
            and all(function() is expected for function, expected in self._calls)
        )
