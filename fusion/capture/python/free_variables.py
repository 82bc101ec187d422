"""What code finds outside its arguments and modules: closures, global names, and what those lead to."""

from __future__ import annotations

import contextvars
import dis
import functools
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from fusion.capture.python.argument_tree import modules_of
from fusion.capture.python.reachable_state import PLAIN, ReachableState, describes, is_library, is_of_library
from fusion.runtime.native import ABSENT

_DEEPEST = 4  # functions that call functions
_MOST_OBJECTS = 10_000


class Outside(torch.nn.Module):
    """The tensors and objects that code finds outside, as attributes; the same module each time it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False


_INTERNAL = frozenset(vars(Outside()))


class _Names:
    """Walks over the names that functions use, and over the functions that those call.

    Attributes:
        modules: those that were found, by name, with `outside` as "outside".
        entries: as `capture.state.watched` gives; they notice when a name is bound to something else.
    """

    def __init__(self, outside: Outside) -> None:
        for name in set(vars(outside)) - _INTERNAL:
            del outside.__dict__[name]
        self.outside = outside
        self.modules: dict[str, torch.nn.Module] = {"outside": outside}
        self.entries: list[tuple[Any, ...]] = []
        self._seen: set[int] = set()

    def found(self, name: str, value: Any, depth: int) -> None:
        """Notes what a name stands for."""
        if isinstance(value, types.FunctionType):
            self.visit(value, depth + 1)
        elif isinstance(value, torch.nn.Module):
            self.modules[name] = value
        elif isinstance(value, type):
            self._data_of(value)
        elif isinstance(value, contextvars.ContextVar):
            self.entries.append(("call", _asking(value), value.get(ABSENT)))
        elif not isinstance(value, (types.ModuleType, types.BuiltinFunctionType, *PLAIN)):
            self.outside.__dict__[name] = value
            for method in _methods(value):
                self.visit(method, depth + 1)

    def _data_of(self, kind: type) -> None:
        """Notes the data that a class of the user's holds."""
        for base in () if id(kind) in self._seen else kind.__mro__:
            if not is_of_library(base):
                for name, held in list(vars(base).items()):
                    if not name.startswith("__") and not describes(held):
                        self.entries.append(("attribute", base, name, held))
                        self.outside.__dict__[f"{base.__qualname__}.{name}"] = held
        self._seen.add(id(kind))

    def visit(self, called: types.FunctionType, depth: int) -> None:
        """Notes the code of a function, and every name that it uses."""
        if id(called) in self._seen or depth > _DEEPEST or _package(called) in ("torch", "fusion"):
            return
        self._seen.add(id(called))
        self.entries.append(("code", called, called.__code__))
        self._attributes(called)
        for name in _names(called.__code__):
            if name in called.__globals__:
                value = called.__globals__[name]
                self.entries.append(("item", called.__globals__, name, value))
                self.found(name, value, depth)
        for module in _modules(called):
            self._attributes_of(module, called, depth)
        for name, cell in zip(called.__code__.co_freevars, called.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            self.entries.append(("attribute", cell, "cell_contents", value))
            self.found(name, value, depth)
        for name in ("__defaults__", "__kwdefaults__"):
            value = getattr(called, name)
            self.entries.append(("attribute", called, name, value))
            if value:
                self.outside.__dict__[f"{len(self._seen)}{name}"] = value

    def _attributes_of(self, module: types.ModuleType, called: types.FunctionType, depth: int) -> None:
        """Notes what code may read off a module of the user's: what has one of the names that the code uses."""
        held = vars(module)
        for name in dict.fromkeys(_all_names(called.__code__)):
            if name in held:
                value = held[name]
                self.entries.append(("item", held, name, value))
                if isinstance(value, types.ModuleType) and not is_library(value.__name__):
                    self._attributes_of(value, called, depth)
                else:
                    self.found(f"{module.__name__}.{name}", value, depth)

    def _attributes(self, called: types.FunctionType) -> None:
        own = called.__dict__
        self.entries.append(("size", own, len(own)))
        for name, value in own.items():
            self.entries.append(("item", own, name, value))
            if not isinstance(value, (types.FunctionType, types.MethodType)):  # what it wraps is visited if it is used
                self.found(f"{len(self._seen)}.{name}", value, _DEEPEST)


def of_function(
    function: Callable[..., Any], outside: Outside
) -> tuple[dict[str, torch.nn.Module], list[tuple[Any, ...]]]:
    """What a function finds in its closure and among global names, also through the functions it calls.

    Args:
        function: the function.
        outside: is made to hold the tensors and other objects found.

    Returns:
        the modules among them by name, with `outside` as "outside"; and snapshot entries for the names.
    """
    names = _Names(outside)
    called = function
    if isinstance(called, types.MethodType):
        names.found("self", called.__self__, 0)
        called = called.__func__
    if isinstance(called, types.FunctionType):
        names.visit(called, 0)
    elif not isinstance(called, (type, types.BuiltinFunctionType)):
        names.found("self", called, 0)
        for kind in type(called).__mro__:
            if isinstance(vars(kind).get("__call__"), types.FunctionType):
                names.visit(vars(kind)["__call__"], 0)
                break
    return names.modules, names.entries


def of_module(
    module: torch.nn.Module, steps: Iterable[torch.nn.Module], outside: Outside
) -> tuple[dict[str, torch.nn.Module], list[tuple[Any, ...]]]:
    """What the methods of a module's and its children's classes find, where the classes are the user's.

    Args:
        module: the module.
        steps: modules inside that are called natively.
        outside: is made to hold the objects found.

    Returns:
        the module as "", and snapshot entries for the names, and for what the objects found hold.

    Raises:
        Refused: there is more than can be watched, or something that cannot be.
    """
    names = _Names(outside)
    kinds = dict.fromkeys(type(child) for _, child in modules_of(module, tuple(steps)))
    for base in dict.fromkeys(base for kind in kinds for base in kind.__mro__):
        if not is_of_library(base):
            for held in list(vars(base).values()):
                called = getattr(held, "fget", None) or getattr(held, "__func__", held)
                if isinstance(called, types.FunctionType):
                    names.visit(called, 0)
    found = ReachableState({"outside": outside}).entries
    return {"": module}, names.entries + found


def _package(called: types.FunctionType) -> str:
    """The package a function is from; functions made by hand may have no module."""
    return (called.__module__ or "").partition(".")[0]


def _methods(value: Any) -> Iterator[types.FunctionType]:
    """The functions that an object's class, if it is the user's, and the containers around them lead to."""
    waiting = [value]
    seen: set[int] = set()
    while waiting and len(seen) < _MOST_OBJECTS:
        held = waiting.pop()
        if id(held) in seen or isinstance(held, (torch.Tensor, torch.nn.Module, types.ModuleType, type, *PLAIN)):
            continue
        seen.add(id(held))
        if isinstance(held, types.FunctionType):
            yield held
        elif isinstance(held, types.MethodType):
            waiting += [held.__self__, held.__func__]
        elif isinstance(held, functools.partial):
            waiting += [held.func, *held.args, *held.keywords.values()]
        elif isinstance(held, dict):
            waiting += held.values()
        elif isinstance(held, (list, tuple, set, frozenset)):
            waiting += held
        else:
            waiting += vars(held).values() if hasattr(held, "__dict__") else ()
            for base in type(held).__mro__:
                if not is_of_library(base):
                    yield from (f for f in vars(base).values() if isinstance(f, types.FunctionType))


@functools.cache
def _asking(variable: contextvars.ContextVar[Any]) -> Callable[[], Any]:
    """Asks for a variable's value; the same function each time."""
    return functools.partial(variable.get, ABSENT)


def _modules(called: types.FunctionType) -> Iterator[types.ModuleType]:
    """Modules of the user's that a function names, as a global name or in an import of its own."""
    named = [called.__globals__.get(name) for name in _all_names(called.__code__)]
    imported = [sys.modules.get(i.argval) for i in dis.get_instructions(called.__code__) if i.opname == "IMPORT_NAME"]
    for module in {id(m): m for m in (*named, *imported) if isinstance(m, types.ModuleType)}.values():
        if not is_library(module.__name__):
            yield module


def _all_names(code: types.CodeType) -> Iterator[str]:
    """Names that code, and the functions defined inside it, use for anything but local variables."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_names(constant)


def _names(code: types.CodeType) -> Iterator[str]:
    """Global names that code, and the functions defined inside it, may read."""
    yield from dict.fromkeys(i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
