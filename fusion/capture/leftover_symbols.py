"""Symbols in the result of a recorded call that has no plan: its caller gets numbers, wherever in it they are."""

from __future__ import annotations

import collections
import contextlib
import sys
import types
from collections.abc import Iterator, MutableMapping
from typing import Any

import torch

from fusion.capture.symbolic_shapes import hint, is_symbolic

_MOST = 10_000  # objects that are looked into, of a result that leads to much else
_WHOLE = (type, types.ModuleType, torch.nn.Module, torch.Tensor)  # the scope's state and constants: another's affair


def without_symbols(result: Any) -> Any:
    """A result with numbers for symbols: in the lists, dicts and objects that it holds, and in tuples and slices anew.

    Local variables of a generator or coroutine are left as they are.
    """
    with contextlib.suppress(Exception):  # an object that takes no attribute, a nest too deep
        return _Leftovers().plain(result)
    return result


class _Leftovers:
    def __init__(self) -> None:
        self._met: dict[int, Any] = {}  # objects looked into, by id

    def plain(self, value: Any) -> Any:
        """A value without symbols: itself where it can be changed, else another where it has to be."""
        if is_symbolic(value):
            return hint(value)
        if value is None or type(value) in (bool, int, float, str, bytes) or isinstance(value, _WHOLE):
            return value
        if id(value) in self._met or len(self._met) >= _MOST:
            return value
        self._met[id(value)] = value
        if isinstance(value, tuple):
            return self._tuple(value)
        if type(value) is slice:
            return slice(*map(self.plain, (value.start, value.stop, value.step)))
        numpy = sys.modules.get("numpy")  # torch imports it where it is installed
        if numpy is not None and type(value) is numpy.ndarray:
            return value if value.dtype != object else numpy.array(self.plain(value.tolist()))
        self._change(value)
        return value

    def _tuple(self, value: tuple[Any, ...]) -> Any:
        items = [self.plain(item) for item in value]
        if all(new is old for new, old in zip(items, value, strict=True)):
            return value
        return torch.Size(items) if type(value) is torch.Size else tuple.__new__(type(value), items)

    def _change(self, value: Any) -> None:
        """Replaces symbols in the items, attributes and closure of an object."""
        if isinstance(value, (list, collections.deque)):
            for place, item in enumerate(value):
                if (new := self.plain(item)) is not item:
                    value[place] = new
        elif isinstance(value, MutableMapping):
            for key, item in list(value.items()):
                if (new := self.plain(item)) is not item:
                    value[key] = new
        if isinstance(value, BaseException):
            value.args = self.plain(value.args)
        for cell in getattr(value, "__closure__", None) or () if isinstance(value, types.FunctionType) else ():
            with contextlib.suppress(ValueError):  # an empty cell
                cell.cell_contents = self.plain(cell.cell_contents)
        for name, item in _attributes(value):
            if (new := self.plain(item)) is not item:
                object.__setattr__(value, name, new)


def _attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object holds by name, its properties not asked."""
    with contextlib.suppress(TypeError):  # no __dict__
        yield from list(vars(value).items())
    for kind in type(value).__mro__:
        for slot in vars(kind).values():
            if isinstance(slot, types.MemberDescriptorType) and kind.__module__ != "builtins":
                with contextlib.suppress(AttributeError):
                    yield slot.__name__, slot.__get__(value)
