"""What code finds outside its arguments and modules: closures, global names, and what those lead to."""

from __future__ import annotations

import contextlib
import contextvars
import dis
import functools
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fusion.capture.python.argument_tree import modules_of
from fusion.capture.python.reachable_state import PLAIN, ReachableState, describes, is_library, is_of_library
from fusion.capture.python.registry import FUNCTIONS
from fusion.capture.user_frame import is_ours
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
            if not _is_called_natively(value):  # what such a function finds is its own affair
                self.visit(value, depth + 1)
        elif isinstance(value, torch.nn.Module):
            self.modules[name] = value
        elif not isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType, *PLAIN)):
            self.outside.__dict__[name] = value
            for method in _methods(value):
                self.visit(method, depth + 1)

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
                self.found(self._free(name, value), value, depth)
                if isinstance(value, contextvars.ContextVar) and not is_library(called.__module__ or ""):
                    self._value_of(name, value, depth)
        for root, attributes in _chains(called.__code__):
            self._follow(root.found_by(called), attributes, depth)
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

    def _value_of(self, name: str, variable: contextvars.ContextVar[Any], depth: int) -> None:
        held = variable.get(ABSENT)
        self.entries.append(("call", _asking(variable), held))
        if held is not ABSENT:
            self.found(self._free(f"{name}()", held), held, depth)

    def _follow(self, value: Any, attributes: Sequence[str], depth: int) -> None:
        """Notes what code reads off a module or a class of the user's, attribute by attribute."""
        for name in attributes:
            if isinstance(value, types.ModuleType) and not is_library(value.__name__) and name in vars(value):
                held = vars(value)[name]
                if _is_called_natively(held):
                    return
                self.entries.append(("item", vars(value), name, held))
            elif isinstance(value, type) and not is_of_library(value):
                held = inspect.getattr_static(value, name, ABSENT)
                if held is ABSENT or describes(held):
                    return
                self.entries.append(("attribute", value, name, held))
            else:
                return
            self.found(self._free(f"{value.__name__}.{name}", held), held, depth)
            value = held

    def _free(self, name: str, value: Any) -> str:
        """A name that nothing else has in `outside`: two classes may have one name."""
        while self.outside.__dict__.get(name, value) is not value or self.modules.get(name, value) is not value:
            name += "'"
        return name

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


def _is_called_natively(value: Any) -> bool:
    """Whether a value is a registered function, or what stands in for it while a call is recorded."""
    if not isinstance(value, types.FunctionType):
        return False
    stands_in = is_ours(value.__code__.co_filename)
    return id(getattr(value, "__wrapped__", value) if stands_in else value) in FUNCTIONS


@functools.lru_cache(maxsize=1024)
def _asking(variable: contextvars.ContextVar[Any]) -> Callable[[], Any]:
    """Asks for a variable's value; the same function each time."""
    return functools.partial(variable.get, ABSENT)


@dataclass(frozen=True, slots=True)
class _Root:
    """Where code begins to read: a global name, a variable of a function around it, or a module that it imports.

    Attributes:
        kind: "global", "free" or "import".
        name: the name.
        level: of an import, how many packages up it begins; 0 for an absolute one.
        whole: whether an import binds the first package of a dotted name.
    """

    kind: str
    name: str
    level: int = 0
    whole: bool = False

    def found_by(self, called: types.FunctionType) -> Any:
        """What it stands for, or None."""
        if self.kind == "global":
            return called.__globals__.get(self.name)
        if self.kind == "free":
            cells = dict(zip(called.__code__.co_freevars, called.__closure__ or (), strict=True))
            with contextlib.suppress(KeyError, ValueError):  # another function's variable; not assigned yet
                return cells[self.name].cell_contents
            return None
        name = self.name
        if self.level:
            try:
                name = importlib.util.resolve_name("." * self.level + name, called.__globals__.get("__package__"))
            except ImportError:
                return None
        return sys.modules.get(name.partition(".")[0] if self.whole else name)


_STAYS = ("COPY", "SWAP", "PUSH_NULL", "PRECALL", "CACHE", "EXTENDED_ARG", "DUP_TOP")  # that leave the object on top
_ATTRIBUTE = ("LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR")


@functools.lru_cache(maxsize=4096)
def _chains(code: types.CodeType) -> tuple[tuple[_Root, tuple[str, ...]], ...]:
    """What code, and the functions defined inside it, reads or sets attribute by attribute, and where that begins."""
    found: dict[tuple[_Root, tuple[str, ...]], None] = {}
    imported: dict[str, _Root] = {}  # by local variable
    root: _Root | None = None
    attributes: tuple[str, ...] = ()
    constants: list[Any] = [0, None]
    for step in dis.get_instructions(code):
        operation, name = step.opname, step.argval
        if operation in ("LOAD_CONST", "LOAD_SMALL_INT"):
            constants = [constants[-1], name]
        if operation in ("LOAD_GLOBAL", "LOAD_NAME"):
            root, attributes = _Root("global", name), ()
        elif operation in ("LOAD_DEREF", "LOAD_FAST", "LOAD_FAST_CHECK"):
            outer = _Root("free", name) if operation == "LOAD_DEREF" else None
            root, attributes = imported.get(name, outer), ()
        elif operation == "IMPORT_NAME":
            root, attributes = _Root("import", name, constants[0] or 0, not constants[1]), ()
        elif operation in ("STORE_FAST", "STORE_DEREF") and root is not None and root.kind == "import":
            if root.whole:
                imported[name] = root
        elif operation == "IMPORT_FROM" and root is not None:
            found[root, (name,)] = None
        elif operation in _ATTRIBUTE and root is not None:
            attributes = (*attributes, name)
            found[root, attributes] = None
        elif operation not in _STAYS:
            root = None
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            found |= dict.fromkeys(_chains(constant))
    return tuple(found)


def _names(code: types.CodeType) -> Iterator[str]:
    """Global names that code, and the functions defined inside it, may read."""
    yield from dict.fromkeys(i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
