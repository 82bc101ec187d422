"""What is registered as made natively: methods, functions and classes with Python effects.

Methods of classes are registered by an integration, once per class; so are classes whose instances a forward may make.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class OpaqueMethod:
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


@dataclass(frozen=True, slots=True)
class NativeFunction:
    """A registered Python function.

    Attributes:
        function: the function.
        meaning: what is recorded in its place; None for one that is called as it is.
        effect, grows: as for an `OpaqueMethod`.
        asks: what a call that comes here asks for, in words, where no such call is recorded; else "".
    """

    function: Callable[..., Any]
    meaning: Any
    effect: bool
    grows: tuple[int, ...] = ()
    asks: str = ""


REGISTRY: dict[tuple[type, str], OpaqueMethod] = {}
FUNCTIONS: dict[int, NativeFunction] = {}


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
    REGISTRY[(owner, method)] = OpaqueMethod(owner, method, effect, grows)


def register_made(owner: type) -> None:
    """Declares that a forward may make instances of `owner`: a plan makes its own, by calling the class natively.

    Args:
        owner: a class with an `__init__` of its own, whose instances keep their state in their `__dict__`.

    Raises:
        TypeError: it has no such `__init__`.
    """
    register_island(owner, "__init__")


def register_function(registered: NativeFunction) -> None:
    """Puts a function in the place of its earlier registration, if any."""
    FUNCTIONS[id(registered.function)] = registered


def opaque_method_of(kind: type, name: str) -> OpaqueMethod | None:
    """What is registered as `name` of an instance of `kind`, or None."""
    for base in kind.__mro__:
        if name in vars(base):
            return REGISTRY.get((base, name))
    return None


def has_opaque_methods(kind: type) -> bool:
    """Whether instances of `kind` may be arguments of a scope. That a forward may make a class says so of it alone."""
    bases = kind.__mro__
    inherited = any(owner in bases and n in vars(owner) for owner, n in REGISTRY if n != "__init__")
    return inherited or (kind, "__init__") in REGISTRY


def opaque_kinds(arguments: Iterable[Any]) -> tuple[type, ...]:
    """The classes with registered methods among the leaves of a call's arguments, and those that a forward may make."""
    given = {type(a) for a in arguments if has_opaque_methods(type(a))}
    return tuple(given | {owner for owner, method in REGISTRY if method == "__init__"})
