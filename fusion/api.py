"""The public functions: enable, disable, warmup, wait, fuse, report, record."""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, overload

import torch

from fusion.capture import decompositions
from fusion.capture.python import registry
from fusion.choices.kernel_cache import Kernel
from fusion.frontend.fused_function import FusedFunction
from fusion.frontend.manual_recording import Config, Recording, record, start_recording, stop_recording
from fusion.frontend.model_session import Session
from fusion.jit.scope import Scope
from fusion.jit.stages import Stages
from fusion.patterns.errors import FusionError
from fusion.reporting.collect import kernels_of
from fusion.reporting.model import FusionReport, joined

register_island = registry.register_island
register_made = registry.register_made
register_op = decompositions.register_op

# Weak on both sides: a session lives in its model, in the entries that stand for the modules' forwards.
_SESSIONS: weakref.WeakKeyDictionary[torch.nn.Module, weakref.ref[Session]] = weakref.WeakKeyDictionary()
_MOST_WARM_UPS = 16  # calls of a model whose calls go on changing something
_MOST_TURNS = 64  # further calls, while plans are measured as a whole
_DEEPEST = 2  # objects inside an object that `report` looks into


@overload
def enable(model: torch.nn.Module, config: Config = None) -> torch.nn.Module: ...
@overload
def enable(model: Any, config: Config = None) -> Any: ...
def enable(model: Any, config: Config = None) -> Any:
    """Puts a model under fusion: its first calls are recorded, later ones run proved and measured plans.

    Calls under autograd, autocast, training mode or another torch mode run as before. Enabling again replaces the
    config.

    Args:
        model: any module; its repeated blocks are recorded one by one. Or a pipeline: an object whose `components`
            holds modules by name, each of which is enabled.
        config: a FusionConfig, a mapping of its fields, a JSON or TOML file, or None.

    Returns:
        the same model.

    Raises:
        ConfigError: the config is not valid.
        BackendUnavailable: the config names a backend that this machine cannot provide.
        FusionError: `model` is no torch module, or one that TorchScript made.
    """
    modules = _modules_of(model)
    if not modules:
        raise FusionError(f"enable() takes a torch.nn.Module, not a {type(model).__name__}.", remedy=_remedy_for(model))
    for module in modules.values():
        if isinstance(module, torch.jit.ScriptModule):
            raise FusionError(
                f"enable() takes no scripted or traced module ({type(module).__name__}): it has no forward to replace.",
                remedy="Enable the module that it was made from.",
            )
    stages = Stages(config)
    for module in modules.values():
        disable(module)
        _SESSIONS[module] = weakref.ref(Session(module, stages))
    return model


def _modules_of(model: Any) -> dict[str, torch.nn.Module]:
    """A module as "", or those among a pipeline's components by name; each once."""
    if isinstance(model, torch.nn.Module):
        return {"": model}
    components = None
    with contextlib.suppress(Exception):  # a property of an object that need be no pipeline
        components = None if isinstance(model, type) else getattr(model, "components", None)
    found = components.items() if isinstance(components, Mapping) else ()
    named = {id(held): (str(name), held) for name, held in found if isinstance(held, torch.nn.Module)}
    return dict(named.values())


@overload
def disable(model: torch.nn.Module) -> torch.nn.Module: ...
@overload
def disable(model: Any) -> Any: ...
def disable(model: Any) -> Any:
    """Takes a model, or a pipeline's modules, out of fusion; they are then exactly as before `enable`.

    Returns:
        the same model.
    """
    for module in _modules_of(model).values():
        session = _session_of(module)
        if session is not None:
            del _SESSIONS[module]
            session.remove()
    return model


def fuse(function: Any = None, config: Config = None) -> Any:
    """A function under fusion: its first calls are recorded, later ones run proved and measured plans.

        @fusion.fuse
        def gated(x, weight):
            return torch.nn.functional.silu(x) * weight

    Arguments and results may nest tuples, lists, mappings, NamedTuples and dataclasses. What the function finds in
    its closure and among its module's global names - tensors, modules, numbers - is watched: it is recorded anew when
    one of them is bound to something else. As with `enable`, calls under autograd run eagerly: call it under
    torch.no_grad() or torch.inference_mode(). In-place writes and random draws happen as they would without fusion.

    Args:
        function: any function of tensors; a torch module is enabled in place, as `enable` does. Left out, the result
            is a decorator.
        config: as for `enable`.

    Returns:
        a `FusedFunction`, called like the function; for a module the module.

    Raises:
        ConfigError, BackendUnavailable: as `enable`.
        FusionError: `function` cannot be called, or its signature cannot be read.
    """
    if function is None:
        return lambda wrapped: fuse(wrapped, config)
    if isinstance(function, torch.nn.Module):
        return enable(function, config)
    return FusedFunction(function, config)


def report(model: Any) -> FusionReport:
    """What was fused in a model, what was not, and why; `print` it or take its `to_json()`.

    Args:
        model: one that is enabled, a function under fusion, or an object that holds enabled models: a wrapper around
            one, a pipeline.

    Raises:
        FusionError: there is no enabled model.
    """
    if isinstance(model, FusedFunction):
        return model.report()
    reports = {name: session.report() for name, session in _enabled(model).items()}
    return joined(reports) if len(reports) > 1 else next(iter(reports.values()))


def kernels_in_use(model: Any) -> tuple[Kernel, ...]:
    """The kernels a model's plans use now. Each prints as its LoopNest; `.sources()` has its C++ and Triton text.

    Args:
        model: as for `report`.

    Raises:
        FusionError: there is no enabled model.
    """
    return kernels_of(_scopes_of(model))


def wait(model: Any, timeout: float | None = None) -> bool:
    """Waits for the compilers that work for a model. With `compile="background"` its calls run eagerly until then.

    Calls after it check and measure the kernels, and use those that are faster.

    Args:
        model: as for `report`.
        timeout: seconds to wait at most; None waits as long as it takes.

    Returns:
        whether every compiler is done.

    Raises:
        FusionError: there is no enabled model.
    """
    until = None if timeout is None else time.monotonic() + timeout
    several = dict.fromkeys(scope.stages for scope in _scopes_of(model))
    return all(s.backends.wait(None if until is None else max(0.0, until - time.monotonic())) for s in several)


def warmup(model: Any, /, *args: Any, **kwargs: Any) -> FusionReport:
    """Calls a model until such calls run as they will from then on: recorded, compiled, proved and measured.

        with torch.inference_mode():
            fusion.warmup(model, input_ids)

    It is called some four times with these very arguments, and some 30 times more where its calls are so short that
    plans are measured as a whole (`profile`). What a call changes in them, such as a cache that grows,
    each of the calls changes.

    Args:
        model: as for `report`; it is called in the caller's mode: under autograd it runs eagerly.
        args, kwargs: what it is called with.

    Returns:
        the report after it.

    Raises:
        FusionError: there is no enabled model.
        Exception: what the model raises.
    """
    with contextlib.ExitStack() as stack:
        for stages in dict.fromkeys(scope.stages for scope in _scopes_of(model)):
            stack.enter_context(stages.small_products.hurrying())
        for number in range(_MOST_WARM_UPS + _MOST_TURNS):
            before = [(scope.turns, scope.progress) for scope in _scopes_of(model)]
            for scope in _scopes_of(model):
                scope.cache.hurry()
            model(*args, **kwargs)
            worked = not wait(model, 0)
            wait(model)
            after = [(scope.turns, scope.progress) for scope in _scopes_of(model)]
            tried = [turns for turns, _ in before] != [turns for turns, _ in after]
            if not tried and (number >= _MOST_WARM_UPS or (not worked and before == after)):
                break
    return report(model)


def _scopes_of(model: Any) -> list[Scope]:
    """The scopes of what `report` takes."""
    if isinstance(model, FusedFunction):
        return [model.scope]
    return [scope for session in _enabled(model).values() for _, scope in session.scopes]


def _remedy_for(thing: Any) -> str:
    """What to enable instead: the modules that an object such as a pipeline holds, if it holds any."""
    names = [name for name, value in _attributes(thing).items() if isinstance(value, torch.nn.Module)]
    if names:
        return f"Enable the modules that it holds: {', '.join(names)}."
    return "For a function there is fusion.fuse(function)."


def _attributes(thing: Any) -> dict[str, Any]:
    return dict(vars(thing)) if hasattr(thing, "__dict__") and not isinstance(thing, type) else {}


def _session_of(model: torch.nn.Module) -> Session | None:
    reference = _SESSIONS.get(model)
    return reference() if reference is not None else None


def _enabled(model: Any) -> dict[str, Session]:
    """The session of an enabled model as "", or those of the models inside an object, by their paths in it.

    Raises:
        FusionError: there is none.
    """
    own = _session_of(model) if isinstance(model, torch.nn.Module) else None
    if own is not None:
        return {"": own}
    found: dict[int, tuple[str, Session]] = {}
    for name, module in _inside(model):
        session = _session_of(module)
        if session is not None:
            found.setdefault(id(session), (name, session))
    if not found:
        raise FusionError("This model is not under fusion.", remedy="Call fusion.enable(model) first.")
    return dict(found.values())


def _inside(thing: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """The modules that a module, or an object's attributes and components, lead to, by path.

    Objects are looked into two deep: a wrapper around a pipeline still leads to its modules.
    """
    waiting: list[tuple[str, Any, int]] = [("", thing, 0)]
    seen: set[int] = set()
    while waiting:
        path, held, depth = waiting.pop(0)
        if id(held) in seen or isinstance(held, (torch.Tensor, type)):
            continue
        seen.add(id(held))
        if isinstance(held, torch.nn.Module):
            yield from held.named_modules(prefix=path)
        if depth < _DEEPEST:
            dot = f"{path}." if path else ""
            below = held if isinstance(held, Mapping) else {**_attributes(held), **_modules_of(held)}
            if isinstance(held, (list, tuple)):
                below = dict(enumerate(held))
            waiting += [(f"{dot}{name}", value, depth + 1) for name, value in below.items() if name != ""]


__all__ = [
    "Recording", "disable", "enable", "fuse", "kernels_in_use", "record", "register_island", "register_made",
    "register_op", "report", "start_recording", "stop_recording", "wait", "warmup",
]  # fmt: skip
