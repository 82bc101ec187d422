"""The functions that stand in a module under fusion, and how copies of it are free of them."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable, Mapping
from typing import Any

import torch

from fusion.capture.python.reachable_state import ENTRY_MARK, ENTRY_NAMES


class ModuleEntry:
    """Puts a function in the place of a module's forward.

    Whatever copies the module asks it for its state, to replicate itself, or for what can be scripted. The answers
    leave our functions out, so that a copy, a replica, a pickle or a script runs its own forward.

    Args:
        module: the module.
        forward: takes what its forward takes; a method of the module where its forward is one.
    """

    def __init__(self, module: torch.nn.Module, forward: Callable[..., Any]) -> None:
        self.module = module
        self.own = own_forward(module)  # the forward that the user put into the module, or None
        original = types.MethodType(type(module).forward, module) if self.own is None else self.own
        if is_method(self.own, module):  # wrapped is the function, which whoever unwraps it binds again
            functools.update_wrapper(forward.__func__, original.__func__)  # type: ignore[attr-defined]  # methods
        else:
            functools.update_wrapper(forward, original)
        forward.__dict__[ENTRY_MARK] = self
        answers = [_marked(method, self) for method in (self._state, self._replica, self._scriptable)]
        self._placed = dict(zip(ENTRY_NAMES, (forward, *answers), strict=True))
        self._before = {name: _users(vars(module).get(name)) for name in ENTRY_NAMES}
        module.__dict__.update(self._placed)

    def has(self, function: Any) -> bool:
        """Whether a function is one of those that this put into the module."""
        return any(placed is function for placed in self._placed.values())

    def remove(self) -> None:
        """Makes the module's attributes what they were, but for those that somebody else has set since."""
        for name, function in self._placed.items():
            if vars(self.module).get(name) is function:
                self._put_back(self.module.__dict__, name)

    def _put_back(self, attributes: dict[str, Any], name: str) -> None:
        if self._before[name] is None:
            del attributes[name]
        else:
            attributes[name] = self._before[name]

    def _state(self) -> Any:
        answer: Callable[[Any], Any] = type(self.module).__getstate__
        state = answer(self.module)
        return self._without_entries(state) if isinstance(state, Mapping) else state

    def _replica(self) -> Any:
        make: Callable[[Any], Any] = type(self.module)._replicate_for_data_parallel
        replica = make(self.module)
        replica.__dict__ = self._without_entries(vars(replica))
        return replica

    def _scriptable(self) -> Any:
        """What torch.jit.script compiles in the module's place; it puts other modules into `_modules`."""
        free = type(self.module).__new__(type(self.module))
        free.__dict__ = self._without_entries(vars(self.module))
        free.__dict__["_modules"] = dict(self.module._modules)
        return free

    def _without_entries(self, attributes: Mapping[str, Any]) -> dict[str, Any]:
        free = dict(attributes)
        for name in ENTRY_NAMES:
            if free.get(name) is self._placed[name]:
                self._put_back(free, name)
        return free


def _marked(method: Callable[..., Any], entry: ModuleEntry) -> Callable[..., Any]:
    """A method of an entry as a function that can be told from the user's."""

    def function() -> Any:
        return method()

    function.__dict__[ENTRY_MARK] = entry
    return function


def _users(value: Any) -> Any:
    """What a user put in the place of one of our functions, which may stand in for each other; None for nothing."""
    while isinstance(entry := getattr(value, ENTRY_MARK, None), ModuleEntry):
        name = next((name for name, placed in entry._placed.items() if placed is value), None)
        if name is None:
            break  # a user's wrapper around ours, which has taken over our attributes
        value = entry._before[name]
    return value


def is_method(own: Any, module: torch.nn.Module) -> bool:
    """Whether a module's forward, its class's or its own, is a method of it."""
    return own is None or (isinstance(own, types.MethodType) and own.__self__ is module)


def own_forward(module: torch.nn.Module) -> Any:
    """The forward that the user put into a module, or None; entries of another session are looked through."""
    return _users(vars(module).get("forward"))
