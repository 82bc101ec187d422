"""The public functions: enable, disable, fuse, report, record."""

from __future__ import annotations

import weakref
from typing import Any

import torch

from fusion.capture import islands, meanings
from fusion.decide.backend import Kernel
from fusion.functions import FusedFunction
from fusion.patterns.errors import FusionError
from fusion.recording import Config, Recording, record, start_recording, stop_recording
from fusion.reporting.model import FusionReport
from fusion.scheduler import FusionScheduler
from fusion.session import Session, kernels_of

register_island = islands.register_island
register_made = islands.register_made
register_op = meanings.register_op

# Weak on both sides: a session lives in its model, in the entries that stand for the modules' forwards.
_SESSIONS: weakref.WeakKeyDictionary[torch.nn.Module, weakref.ref[Session]] = weakref.WeakKeyDictionary()


def enable(model: torch.nn.Module, config: Config = None) -> torch.nn.Module:
    """Puts a model under fusion: its first calls are recorded, later ones run proved and measured plans.

    Calls under autograd, autocast, training mode or another torch mode run as before. Enabling again replaces the
    config.

    Args:
        model: any module; its repeated blocks are recorded one by one.
        config: a FusionConfig, a mapping of its fields, a JSON or TOML file, or None.

    Returns:
        the same model.

    Raises:
        ConfigError: the config is not valid.
        BackendUnavailable: the config names a backend that this machine cannot provide.
        FusionError: `model` is no torch module, or one that TorchScript made.
    """
    if not isinstance(model, torch.nn.Module):
        raise FusionError(f"enable() takes a torch.nn.Module, not a {type(model).__name__}.", remedy=_remedy_for(model))
    if isinstance(model, torch.jit.ScriptModule):
        raise FusionError(
            f"enable() takes no scripted or traced module ({type(model).__name__}): its forward cannot be replaced.",
            remedy="Enable the module that it was made from.",
        )
    scheduler = FusionScheduler(config)
    disable(model)
    _SESSIONS[model] = weakref.ref(Session(model, scheduler))
    return model


def disable(model: torch.nn.Module) -> torch.nn.Module:
    """Takes a model out of fusion; it is then exactly as it was before `enable`. Returns the same model."""
    session = _session_of(model)
    if session is not None:
        del _SESSIONS[model]
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


def report(model: torch.nn.Module | FusedFunction) -> FusionReport:
    """What was fused in a model, what was not, and why; `print` it or take its `to_json()`.

    Raises:
        FusionError: the model is not enabled.
    """
    return model.report() if isinstance(model, FusedFunction) else _enabled(model).report()


def kernels_in_use(model: torch.nn.Module | FusedFunction) -> tuple[Kernel, ...]:
    """The kernels a model's plans use now. Each prints as its LoopNest; `.sources()` has its C++ and Triton text.

    Raises:
        FusionError: the model is not enabled.
    """
    if isinstance(model, FusedFunction):
        return kernels_of([model.scope])
    return kernels_of([scope for _, scope in _enabled(model).scopes])


def _remedy_for(thing: Any) -> str:
    """What to enable instead: the modules that an object such as a pipeline holds, if it holds any."""
    held = vars(thing) if hasattr(thing, "__dict__") and not isinstance(thing, type) else {}
    names = [name for name, value in held.items() if isinstance(value, torch.nn.Module)]
    if names:
        return f"Enable the modules that it holds: {', '.join(names)}."
    return "For a function there is fusion.fuse(function)."


def _session_of(model: torch.nn.Module) -> Session | None:
    reference = _SESSIONS.get(model)
    return reference() if reference is not None else None


def _enabled(model: torch.nn.Module) -> Session:
    session = _session_of(model)
    if session is None and isinstance(model, torch.nn.Module):  # which may wrap one that is enabled
        inside = [s for s in map(_session_of, model.modules()) if s is not None]
        session = inside[0] if len(inside) == 1 else None
    if session is None:
        raise FusionError("This model is not under fusion.", remedy="Call fusion.enable(model) first.")
    return session


__all__ = [
    "Recording", "disable", "enable", "fuse", "kernels_in_use", "record", "register_island", "register_made",
    "register_op", "report", "start_recording", "stop_recording",
]  # fmt: skip
