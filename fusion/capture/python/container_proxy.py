"""Lists and dicts inside the objects that a call is given: a cache's layers, a layer's states.

While a call is recorded or run again, such a container is handed out as a `ListProxy` or `DictProxy`. It tells the
session of every item that is taken, so that a plan takes the same item from the container it finds, and passes on what
is done to it.
"""

from __future__ import annotations

import builtins
import contextlib
import copy
import dis
import enum
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch

COPY = "give it a copy: list(...) or dict(...) of it"  # what to do about a list that an object holds
PLAIN = (type(None), bool, int, float, str)
_IMMUTABLE, _HEAP = 1 << 8, 1 << 9  # flags of classes: Python code makes the latter alone
# What no session is told of, or what is told of item by item.
_OWN = frozenset(
    {"__class__", "__new__", "__init__", "__getattribute__", "__setattr__", "__delattr__", "__init_subclass__"}
    | {"__subclasshook__", "__doc__", "__dir__", "__dict__", "__class_getitem__", "__hash__"}
    | {"__sizeof__", "__format__"}
)  # fmt: skip
_CHANGES = frozenset(
    {"__setitem__", "__delitem__", "__iadd__", "__imul__", "__ior__", "append", "extend", "insert", "pop", "remove"}
    | {"clear", "sort", "reverse", "update", "setdefault", "popitem"}
)  # fmt: skip


def asks_for_classes(frame: types.FrameType) -> bool:
    """Whether a function, or one that it calls by a global name, may ask whether a value is exactly a list or dict.

    That is the one question that a container which is looked into cannot answer: `type(x) is list`.
    """
    called = (frame.f_globals.get(name) for name in _globals_of(frame.f_code))
    functions = [held for held in called if isinstance(held, types.FunctionType)]
    return _compares(frame.f_code, frame.f_globals) or any(_compares(f.__code__, f.__globals__) for f in functions)


def _compares(code: types.CodeType, known: dict[str, Any]) -> bool:
    """Whether code calls `type`, and names list or dict, or a global tuple or the like that holds one of them."""
    names = _globals_of(code)
    if "type" not in names:
        return False
    held = [known.get(name, getattr(builtins, name, None)) for name in names]
    several = [kind for value in held if isinstance(value, (tuple, set, frozenset, dict)) for kind in value]
    return any(kind is list or kind is dict for kind in (*held, *several))


@functools.cache
def _globals_of(code: types.CodeType) -> frozenset[str]:
    """Names of the globals that code reads, functions inside it included."""
    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = [_globals_of(held) for held in code.co_consts if isinstance(held, types.CodeType)]
    return frozenset(names.union(*inner))


class AccessObserver:
    """Who is told; the session of the thread that asks, if it has one."""

    def __init__(self, session: Callable[[], Any]) -> None:
        self.session = session

    def item(self, held: Any, method: str, arguments: tuple[Any, ...]) -> Any:
        """What a read of a container gives."""
        session = self.session()
        if session is None:
            return getattr(held, method)(*arguments)
        if not all(type(argument) in PLAIN for argument in arguments):
            return self.other(held, method, *arguments)
        try:
            value = getattr(held, method)(*arguments)
        except Exception as error:
            return session.on_failed_read(held, method, error)
        return session.on_item(held, method, arguments, value)

    def use(self, held: Any, method: str) -> None:
        """A use that changes nothing."""
        session = self.session()
        if session is not None:
            session.on_use(held, method, False)

    def other(self, held: Any, method: str, *arguments: Any, **keywords: Any) -> Any:
        """What any other use of a container gives."""
        session = self.session()
        if session is not None:
            session.on_use(held, method, method in _CHANGES)
        keywords = {name: real(value) for name, value in keywords.items()}
        return getattr(held, method)(*map(real, arguments), **keywords)


class _Seen:
    """A container that stands for `_held`, and tells `_teller` of its uses."""

    _held: Any
    _teller: AccessObserver

    @property  # type: ignore[misc]  # it is one of `object`, too
    def __class__(self) -> Any:
        return type(self._held)  # for a plan that is run again, which checks it

    def __getitem__(self, key: Any) -> Any:
        return self._teller.item(self._held, "__getitem__", (key,))

    def __len__(self) -> int:
        length: int = self._teller.item(self._held, "__len__", ())
        return length

    def __bool__(self) -> bool:
        return len(self) > 0

    def __copy__(self) -> Any:
        return self._teller.other(self._held, "copy")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        self._teller.use(self._held, "__deepcopy__")
        return copy.deepcopy(self._held, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._teller.other(self._held, "__reduce_ex__", protocol)

    def refresh(self) -> None:
        """Holds what the container holds now, for code below Python, which reads memory rather than methods."""


class ListProxy(_Seen, list):  # type: ignore[type-arg]  # of anything
    """A list that is looked into."""

    def __init__(self, held: list[Any], teller: AccessObserver) -> None:
        list.__init__(self, held)
        self._held, self._teller = held, teller

    def __iter__(self) -> Iterator[Any]:
        return (self[position] for position in range(len(self)))

    def __radd__(self, other: list[Any]) -> list[Any]:
        self._teller.use(self._held, "__radd__")  # else a list would take this one's memory as it is
        return [*other, *self._held]

    def refresh(self) -> None:
        list.__setitem__(self, slice(None), self._held)


class DictProxy(_Seen, dict):  # type: ignore[type-arg]  # of anything
    """A dict that is looked into."""

    def __init__(self, held: dict[Any, Any], teller: AccessObserver) -> None:
        dict.__init__(self, held)
        self._held, self._teller = held, teller

    def __contains__(self, key: Any) -> bool:
        found: bool = self._teller.item(self._held, "__contains__", (key,))
        return found

    def get(self, key: Any, default: Any = None) -> Any:
        """As `dict.get`."""
        return self._teller.item(self._held, "get", (key,) if default is None else (key, default))

    def refresh(self) -> None:
        dict.clear(self)
        dict.update(self, self._held)


def _passed_on(method: str) -> Callable[..., Any]:
    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        return self._teller.other(self._held, method, *arguments, **keywords)

    return call


for _kind, _base in ((ListProxy, list), (DictProxy, dict)):
    for _name in vars(_base):
        if _name not in _OWN and not any(_name in vars(own) for own in (_kind, _Seen)) and callable(vars(_base)[_name]):
            setattr(_kind, _name, _passed_on(_name))


def is_plain(value: Any) -> bool:
    """Whether a value, or each item of a list or tuple, is one that is compared as it is."""
    if isinstance(value, (list, tuple)):
        return state_of(value) is None and all(map(_is_one, value))
    return _is_one(value)


def _is_one(value: Any) -> bool:
    """Whether a value is plain by itself; a number with attributes is more than that number."""
    return isinstance(value, PLAIN) and (isinstance(value, enum.Enum) or state_of(value) is None)


def is_container(value: Any) -> bool:
    """Whether a value can be looked into item by item."""
    return type(value) in (list, dict) and not is_plain(value)


def is_object(value: Any) -> bool:
    """Whether a value is an instance of a Python class whose attributes can be watched."""
    return (
        isinstance(state_of(value), dict)
        and not isinstance(value, (torch.Tensor, torch.nn.Module, types.ModuleType, types.FunctionType, *PLAIN))
        and not isinstance(value, (list, tuple, dict, set, torch.Generator))
        and type(value).__flags__ & (_IMMUTABLE | _HEAP) == _HEAP
    )


def state_of(value: Any) -> Any:
    """An object's attributes, without telling anyone; None where it has none."""
    with contextlib.suppress(AttributeError):
        return object.__getattribute__(value, "__dict__")
    return None


def looked_into(value: Any, session: Callable[[], Any]) -> Any:
    """A container as the forward gets it."""
    return (ListProxy if type(value) is list else DictProxy)(value, AccessObserver(session))


def real(value: Any) -> Any:
    """The container behind one that is looked into; anything else as it is."""
    return value._held if isinstance(value, _Seen) else value


def is_looked_into(value: Any) -> bool:
    """Whether a value stands for a container."""
    return isinstance(value, _Seen)


def put_back(value: Any) -> None:
    """Replaces containers that an object's attributes hold for others by those."""
    state = state_of(value)
    for name, held in state.copy().items() if isinstance(state, dict) else ():  # another thread may change it meanwhile
        if isinstance(held, _Seen) and state.get(name) is held:
            state[name] = held._held
