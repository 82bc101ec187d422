"""Islands: methods with Python side effects that are called natively, never recorded inside.

An integration registers them once per class. While a scope is recorded or re-run, the classes' methods are replaced
by wrappers that ask the thread's active session; any other thread goes straight through.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.utils import _pytree as pytree

from fusion.runtime.plan import Raised


@dataclass(frozen=True, slots=True)
class Island:
    """A registered method.

    Attributes:
        owner: the class that defines it.
        method: its name.
        effect: True when calling it changes state; False for a read that a plan may call again freely.
        grows: dimensions of its results that may differ from its inputs' in any call (a cache's length).
    """

    owner: type
    method: str
    effect: bool
    grows: tuple[int, ...] = ()


_REGISTRY: dict[tuple[type, str], Island] = {}
_SESSION = threading.local()
_LOCK = threading.RLock()


def register_island(owner: type, method: str, *, effect: bool = True, grows: tuple[int, ...] = ()) -> None:
    """Declares that `owner.method` has Python side effects (or, with `effect=False`, reads Python state).

    Args:
        owner: the class whose own `__dict__` defines the method; subclasses that override it register themselves.
        method: the method's name.
        effect: whether a call changes state. A read's integer result becomes a size symbol of the recording.
        grows: dimensions of result tensors that never follow the inputs' sizes, such as a cache's length (-2,).

    Raises:
        TypeError: the class does not define the method itself.
    """
    if method not in vars(owner):
        raise TypeError(
            f"{owner.__name__} does not define {method!r} itself; register it on the class that does: "
            f"{[c.__name__ for c in owner.__mro__ if method in vars(c)]}."
        )
    _REGISTRY[(owner, method)] = Island(owner, method, effect, grows)


def island_of(kind: type, name: str) -> Island | None:
    """The island that `name` on an instance of `kind` is, or None."""
    for base in kind.__mro__:
        if name in vars(base):
            return _REGISTRY.get((base, name))
    return None


def has_islands(kind: type) -> bool:
    """Whether instances of `kind` may be arguments of a scope."""
    return any((base, name) in _REGISTRY for base in kind.__mro__ for name in vars(base))


class Session(Protocol):
    """What an active recording or re-run does with an island call."""

    def on_island(self, island: Island, original: Callable[..., Any], receiver: Any, args: Any, kwargs: Any) -> Any:
        """Answers the call."""

    def on_attribute(self, receiver: Any, name: str, value: Any) -> Any:
        """Told of an attribute read on an argument object that is no island."""


@contextlib.contextmanager
def session(handler: Session, kinds: tuple[type, ...] = ()) -> Iterator[None]:
    """Routes this thread's island calls to `handler`; also its attribute reads on instances of `kinds`."""
    with _LOCK:
        saved: list[tuple[type, str, Any]] = []
        previous = getattr(_SESSION, "handler", None)
        _SESSION.handler = handler
        try:
            for island in _REGISTRY.values():
                original = vars(island.owner)[island.method]
                saved.append((island.owner, island.method, original))
                setattr(island.owner, island.method, _wrapper(island, original))
            for kind in kinds:
                saved.append((kind, "__getattribute__", vars(kind).get("__getattribute__")))
                setattr(kind, "__getattribute__", _spy(kind.__getattribute__))  # noqa: B010 (mypy has it read-only)
            yield
        finally:
            _SESSION.handler = previous
            for owner, name, original in reversed(saved):
                if original is None:
                    delattr(owner, name)
                else:
                    setattr(owner, name, original)


def _wrapper(island: Island, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        handler = getattr(_SESSION, "handler", None)
        if handler is None:
            return original(self, *args, **kwargs)
        return handler.on_island(island, original, self, args, kwargs)

    return call


def _spy(original: Callable[..., Any]) -> Callable[[Any, str], Any]:
    def read(self: Any, name: str) -> Any:
        value = original(self, name)
        handler = getattr(_SESSION, "handler", None)
        if handler is None or (name.startswith("__") and name.endswith("__")):
            return value
        if island_of(type(self), name) is not None:
            return value
        return handler.on_attribute(self, name, value)

    return read


class IslandLogMismatch(Exception):
    """A re-run met an island call that the log does not hold."""


@dataclass
class Replay:
    """Answers island calls from a log, in order; past its end, natively.

    Attributes:
        log: what the plan's islands returned, reads too: a read may come before an effect that changes its answer.
        seen: the arguments the re-run passed, flattened, one list per answered call.
    """

    log: list[Any]

    def __post_init__(self) -> None:
        self.position = 0
        self.depth = 0
        self.seen: list[list[Any]] = []

    def on_island(self, island: Island, original: Callable[..., Any], receiver: Any, args: Any, kwargs: Any) -> Any:
        """The logged answer; nested calls, and calls past the log, run natively."""
        if self.depth == 0 and self.position < len(self.log):
            answer = self.log[self.position]
            self.position += 1
            given = (args, [kwargs[name] for name in sorted(kwargs)])
            self.seen.append([a for a in pytree.tree_leaves(given) if isinstance(a, torch.Tensor)])
            if isinstance(answer, Raised):
                raise answer.error
            return answer
        self.depth += 1
        try:
            return original(receiver, *args, **kwargs)
        finally:
            self.depth -= 1

    def on_attribute(self, receiver: Any, name: str, value: Any) -> Any:
        """Reads go through."""
        return value
