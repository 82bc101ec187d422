"""Functions under fusion, and what a function depends on beside its arguments."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from fusion.capture.held import is_library
from fusion.config import FusionConfig
from fusion.patterns.errors import FusionError
from fusion.reporting.model import FusionReport
from fusion.scheduler import FusionScheduler
from fusion.scope import Scope
from fusion.session import report_of

_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_DEEPEST = 4  # functions that call functions
_MOST_OBJECTS = 10_000


class FusedFunction:
    """A function under fusion; called like the function. The caller's grad mode stays: under autograd it runs eagerly.

    Args:
        function: what to run.
        config: a FusionConfig, a mapping of its fields, a JSON or TOML file, or None.

    Raises:
        ConfigError: the config is not valid.
        FusionError: `function` cannot be called, or its signature cannot be read.
    """

    def __init__(self, function: Callable[..., Any], config: FusionConfig | Mapping[str, Any] | str | None) -> None:
        if not callable(function):
            raise FusionError(f"fuse() takes a function, not a {type(function).__name__}.", remedy="Pass a callable.")
        functools.update_wrapper(self, function)
        self.function = function
        self.scheduler = FusionScheduler(config)
        outside = _Outside()
        name = getattr(function, "__qualname__", type(function).__name__)
        try:
            self.scope = Scope(
                name,
                function,
                self.scheduler,
                enabled=lambda: self.scheduler.config.enable_fusion,
                surroundings=lambda: surroundings(function, outside),
            )
        except (TypeError, ValueError) as error:
            raise FusionError(f"The signature of {name} cannot be read: {error}", remedy="Wrap it in a def.") from None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.scope.entry(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        """As a method it is given its instance as an argument, and runs eagerly; `fuse(instance.method)` does not."""
        return self if instance is None else types.MethodType(self, instance)

    def report(self) -> FusionReport:
        """What was fused and why."""
        return report_of([self.scope], self.scheduler)


class _Outside(torch.nn.Module):
    """The tensors and objects that a function finds outside, as attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.training = False


_INTERNAL = frozenset(vars(_Outside()))


def surroundings(
    function: Callable[..., Any], outside: torch.nn.Module
) -> tuple[dict[str, torch.nn.Module], list[tuple[Any, ...]]]:
    """What a function finds in its closure and among global names, also through the functions it calls.

    Args:
        function: the function.
        outside: is made to hold the tensors and other objects found; the same module each time.

    Returns:
        the modules among them by name, with `outside` as "outside"; and the snapshot entries (as
        `capture.state.watched` gives) that notice when a name is bound to something else.
    """
    for name in set(vars(outside)) - _INTERNAL:
        del outside.__dict__[name]
    modules: dict[str, torch.nn.Module] = {"outside": outside}
    entries: list[tuple[Any, ...]] = []
    seen: set[int] = set()

    def found(name: str, value: Any, depth: int) -> None:
        if isinstance(value, types.FunctionType):
            visit(value, depth + 1)
        elif isinstance(value, torch.nn.Module):
            modules[name] = value
        elif not isinstance(value, (type, types.ModuleType, types.BuiltinFunctionType, *_PLAIN)):
            outside.__dict__[name] = value
            for method in _methods(value):
                visit(method, depth + 1)

    def visit(called: types.FunctionType, depth: int) -> None:
        if id(called) in seen or depth > _DEEPEST or _package(called) in ("torch", "fusion"):
            return
        seen.add(id(called))
        entries.append(("code", called, called.__code__))
        for name in _names(called.__code__):
            if name in called.__globals__:
                value = called.__globals__[name]
                entries.append(("item", called.__globals__, name, value))
                found(name, value, depth)
        for name, cell in zip(called.__code__.co_freevars, called.__closure__ or (), strict=True):
            try:
                value = cell.cell_contents
            except ValueError:  # not assigned yet
                continue
            entries.append(("attribute", cell, "cell_contents", value))
            found(name, value, depth)
        for name in ("__defaults__", "__kwdefaults__"):
            value = getattr(called, name)
            entries.append(("attribute", called, name, value))
            if value:
                outside.__dict__[f"{len(seen)}{name}"] = value

    called = function
    if isinstance(called, types.MethodType):
        found("self", called.__self__, 0)
        called = called.__func__
    if isinstance(called, types.FunctionType):
        visit(called, 0)
    elif not isinstance(called, (type, types.BuiltinFunctionType)):
        found("self", called, 0)
        for kind in type(called).__mro__:
            if isinstance(vars(kind).get("__call__"), types.FunctionType):
                visit(vars(kind)["__call__"], 0)
                break
    return modules, entries


def _package(called: types.FunctionType) -> str:
    """The package a function is from; functions made by hand may have no module."""
    return (called.__module__ or "").partition(".")[0]


def _methods(value: Any) -> Iterator[types.FunctionType]:
    """The functions that an object's class, if it is the user's, and the containers around them lead to."""
    waiting = [value]
    seen: set[int] = set()
    while waiting and len(seen) < _MOST_OBJECTS:
        held = waiting.pop()
        if id(held) in seen or isinstance(held, (torch.Tensor, torch.nn.Module, types.ModuleType, type, *_PLAIN)):
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
                if not is_library(base.__module__):
                    yield from (f for f in vars(base).values() if isinstance(f, types.FunctionType))


def _names(code: types.CodeType) -> Iterator[str]:
    """Global names that code, and the functions defined inside it, may read."""
    yield from dict.fromkeys(i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME"))
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)
