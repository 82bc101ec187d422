"""Opaque calls: those with Python side effects, which are made natively and never recorded inside.

What is registered as such is in `registry`. Modules may be opaque to one scope: its steps, which are scopes of their
own or run eagerly. While a scope is recorded or re-run, methods are replaced by wrappers that ask the thread's active
session; other threads go straight through.
"""

from __future__ import annotations

import builtins
import contextlib
import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, FrameType
from typing import Any, Protocol

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fusion.capture.python.container_proxy import asks_for_classes, is_container, is_object, looked_into, real
from fusion.capture.python.registry import FUNCTIONS, REGISTRY, NativeFunction, OpaqueMethod, opaque_method_of
from fusion.capture.python.symbolic_min_max import EXTREMES
from fusion.capture.user_frame import is_ours, user_frame
from fusion.patterns.forks import Lock, changes

_MODULE_INTERNAL = frozenset(vars(torch.nn.Module())) - {"training"}
# Attributes through which all of an object's state is read at once: copies, `vars`.
_WHOLE = frozenset({"__dict__", "__reduce_ex__", "__reduce__", "__getstate__", "__copy__", "__deepcopy__"})
_SUSPENDABLE = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_SESSION = threading.local()
_LOCK = Lock()
# By registered function: how many modules were loaded and which was the last, and names of those that hold it.
_HOLDERS: dict[Callable[..., Any], tuple[tuple[int, str], list[str]]] = {}


class CallHandler(Protocol):
    """What an active recording or re-run does with calls that are not torch's."""

    def on_method(
        self, registered: OpaqueMethod, original: Callable[..., Any], receiver: Any, args: Any, kwargs: Any
    ) -> Any:
        """Answers the call."""

    def on_function(self, registered: NativeFunction, args: Any, kwargs: Any) -> Any:
        """Answers the call of a registered function."""

    def on_module(self, original: Callable[..., Any], module: torch.nn.Module, args: Any, kwargs: Any) -> Any:
        """Answers the call of a module inside the scope."""

    def on_made(self, module: torch.nn.Module) -> None:
        """Told of a module that is being made."""

    def on_mode(self, mode: object) -> None:
        """Told of a function or dispatch mode that is entered."""


class ReadHandler(Protocol):
    """What an active recording or re-run does with reads and writes inside objects."""

    def on_attribute(self, receiver: Any, name: str, value: Any) -> Any:
        """Told of an attribute read on an argument object, unless it is a registered method."""

    def on_item(self, held: Any, method: str, args: tuple[Any, ...], value: Any) -> Any:
        """Told of an item that is taken from a list or dict inside such an object."""

    def on_use(self, held: Any, method: str, changes: bool) -> None:
        """Told of anything else that is done with one, or with an object as a whole."""

    def on_failed_read(self, held: Any, name: str, error: Exception) -> Any:
        """Answers a read of an attribute or item that raised, or raises."""

    def on_write(self, receiver: Any, name: str) -> None:
        """Told that an attribute of an object is set or deleted."""


@contextlib.contextmanager
def session(
    calls: CallHandler, reads: ReadHandler, kinds: tuple[type, ...] = (), modules: Iterable[torch.nn.Module] = ()
) -> Iterator[None]:
    """Routes this thread's opaque calls, and reads inside objects, to handlers.

    Args:
        calls: answers calls.
        reads: is told what is read and written inside objects.
        kinds: classes whose instances' attributes it is told of.
        modules: modules, calls of which (and of others of their classes) are answered.
    """
    caller, wrappers, ended = _caller(), _Wrappers(), False
    previous = _SESSION.__dict__.copy()

    def end() -> None:
        """May be called twice: by `in_session`, and when what is left of this block is collected, in any thread."""
        nonlocal ended
        wrappers.put_back()
        if _SESSION.__dict__.get("end") is end:
            _SESSION.__dict__.clear()
            _SESSION.__dict__.update(previous)
        if not ended:
            ended = True
            _LOCK.release()

    _LOCK.acquire()
    try:
        _SESSION.__dict__.update(calls=calls, reads=reads, watch=wrappers.watch, shown={}, caller=caller, end=end)
        with changes(wrappers.put_back):
            for method in REGISTRY.values():
                wrappers.put(method.owner, method.method, _wrapped(method, vars(method.owner)[method.method]))
            for registered in FUNCTIONS.values():
                for module in _modules_with(registered.function):
                    wrappers.put(module, registered.function.__name__, function_call(registered))
            for kind in kinds:
                wrappers.watch(kind)
            for owner in {c: None for m in modules for c in type(m).__mro__ if "__call__" in vars(c)}:
                wrappers.put(owner, "__call__", _module_call(vars(owner)["__call__"]))
            wrappers.put(torch.nn.Module, "__init__", _module_made(torch.nn.Module.__init__))
            for kind_of_mode in (TorchFunctionMode, TorchDispatchMode):
                wrappers.put(kind_of_mode, "__enter__", _mode_entered(kind_of_mode.__enter__))
            for name, wrapper in EXTREMES.items():
                wrappers.put(builtins, name, wrapper)
            yield
    finally:
        end()


class _Wrappers:
    """What a session replaces in classes and modules for its time, and what was there before."""

    def __init__(self) -> None:
        self._saved: list[tuple[Any, str, Any]] = []
        self._watched: set[type] = set()

    def put(self, owner: Any, name: str, wrapper: Any) -> None:
        self._saved.append((owner, name, vars(owner).get(name)))
        setattr(owner, name, wrapper)

    def put_back(self) -> None:
        """May be called again after it was cut short."""
        while self._saved:
            owner, name, original = self._saved[-1]
            if original is not None:
                setattr(owner, name, original)
            elif name in vars(owner):
                delattr(owner, name)
            self._saved.pop()

    def watch(self, kind: type) -> None:
        if kind not in self._watched:
            self._watched.add(kind)
            self.put(kind, "__getattribute__", _spy(kind.__getattribute__))
            for name in ("__setattr__", "__delattr__"):
                self.put(kind, name, _watched_write(getattr(kind, name)))


def _modules_with(function: Callable[..., Any]) -> list[Any]:
    """The loaded modules that hold a function under its name.

    Some 3,000 modules are asked when one was loaded since. Otherwise those that had it are asked: a module that was
    given the function later calls it as any other function.
    """
    name = function.__name__
    loaded = (len(sys.modules), next(reversed(sys.modules)))
    known = _HOLDERS.get(function)
    if known is None or known[0] != loaded:
        holders = [key for key, module in list(sys.modules.items()) if name in getattr(module, "__dict__", ())]
        known = _HOLDERS[function] = loaded, holders
    found = [sys.modules[key] for key in known[1] if key in sys.modules]
    return [module for module in found if getattr(module, "__dict__", {}).get(name) is function]


def _wrapped(registered: OpaqueMethod, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        handler = getattr(_SESSION, "calls", None)
        if handler is None:
            return original(self, *args, **kwargs)
        return handler.on_method(registered, original, self, args, kwargs)

    return call


@functools.cache
def function_call(registered: NativeFunction) -> Callable[..., Any]:
    """A function that asks the thread's session, and without one calls the registered function."""

    @functools.wraps(registered.function)
    def call(*args: Any, **kwargs: Any) -> Any:
        handler = getattr(_SESSION, "calls", None)
        if handler is None:
            return registered.function(*args, **kwargs)
        return handler.on_function(registered, args, kwargs)

    return call


def _module_call(original: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        handler = getattr(_SESSION, "calls", None)
        if handler is None:
            return original(self, *args, **kwargs)
        return handler.on_module(original, self, args, kwargs)

    return call


def _module_made(original: Callable[..., None]) -> Callable[..., None]:
    def make(self: Any, *args: Any, **kwargs: Any) -> None:
        handler = getattr(_SESSION, "calls", None)
        if handler is not None:
            handler.on_made(self)
        original(self, *args, **kwargs)

    return make


def _mode_entered(original: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def enter(self: Any) -> Any:
        handler = getattr(_SESSION, "calls", None)
        if handler is not None:
            handler.on_mode(self)
        return original(self)

    return enter


def _spy(original: Callable[..., Any]) -> Callable[[Any, str], Any]:
    def read(self: Any, name: str) -> Any:
        handler = getattr(_SESSION, "reads", None)
        if handler is None or _SESSION.__dict__.get("reading"):
            return original(self, name)
        if _is_internal(self, name):
            if name in _WHOLE:
                handler.on_use(self, name, False)
            return original(self, name)
        failed: Exception | None = None
        _SESSION.reading = True  # what a property reads in turn is part of it
        try:
            value = original(self, name)
        except Exception as error:
            if isinstance(error, AttributeError) and hasattr(type(self), "__getattr__"):
                raise  # Python asks that then
            failed = error
        finally:
            _SESSION.reading = False
        if failed is not None:
            return handler.on_failed_read(self, name, failed)
        return value if opaque_method_of(type(self), name) is not None else handler.on_attribute(self, name, value)

    return read


def _is_internal(receiver: Any, name: str) -> bool:
    """Whether an attribute is how an object works rather than what it holds."""
    dunder = name.startswith("__") and name.endswith("__")
    return dunder or (name in _MODULE_INTERNAL and isinstance(receiver, torch.nn.Module))


def _watched_write(original: Callable[..., None]) -> Callable[..., None]:
    def write(self: Any, name: str, *value: Any) -> None:
        handler = getattr(_SESSION, "reads", None)
        if handler is not None:
            handler.on_write(self, name)
        original(self, name, *map(real, value))

    return write


def current() -> Any:
    """What is told of this thread's reads inside objects, while a call is recorded or run again; None without."""
    return getattr(_SESSION, "reads", None)


def in_session() -> bool:
    """Whether this thread is recording a call, or running one again.

    An interrupt such as Ctrl-C may arrive where a session begins or ends, and keep its end from being run. Such a
    session is ended here: the function that it was for is no longer on the stack.
    """
    while current() is not None and not _may_go_on(_SESSION.caller):
        _SESSION.end()
    return current() is not None


def _caller() -> FrameType | None:
    """The function whose `with` statement opens a session, and which stays on the stack until it ends.

    None where that is not known: a user's generator or coroutine is off the stack while it is suspended, and whoever
    calls `__enter__` may return before `__exit__` is called.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _opens(frame.f_code):
        frame = frame.f_back
    if frame is None or frame.f_code.co_flags & _SUSPENDABLE or frame.f_code.co_name == "__enter__":
        return None
    return frame


def _opens(code: CodeType) -> bool:
    """Whether code is a context manager of ours, or Python's that enters one."""
    return code.co_filename == contextlib.__file__ or bool(code.co_flags & _SUSPENDABLE and is_ours(code.co_filename))


def _may_go_on(caller: FrameType | None) -> bool:
    """Whether a session's function is on the stack, as far as is known."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not caller:
        frame = frame.f_back
    return frame is caller


def watch_kind(kind: type) -> None:
    """From here on, tells this thread's session of attributes of `kind`'s instances that are read and written."""
    _SESSION.watch(kind)


def wrap_proxy(value: Any) -> Any:
    """What was found inside an object, as a forward gets it: lists and dicts tell the session what is taken from them,
    but for code that may ask of what exact class they are.

    Of an object, the session is told from here on what is read.
    """
    if is_object(value):
        watch_kind(type(value))
    if not is_container(value):
        return value
    reader = user_frame()
    if reader is not None and asks_for_classes(reader):
        return value
    known = _SESSION.shown.get(id(value))
    if known is None:
        known = _SESSION.shown[id(value)] = looked_into(value, current)
    return known


def refresh() -> None:
    """A native call may have changed the lists and dicts that the forward was shown."""
    for known in _SESSION.shown.values():
        known.refresh()


def unwrap_proxies(nest: Any) -> Any:
    """Arguments with the objects' own containers for those the forward was shown; lists and dicts stay themselves."""
    if not _SESSION.__dict__.get("shown"):
        return nest
    if type(nest) is tuple:
        return tuple(map(unwrap_proxies, nest))
    if type(nest) in (list, dict):
        for key, value in list(enumerate(nest) if type(nest) is list else nest.items()):
            nest[key] = unwrap_proxies(value)
    return real(nest)
