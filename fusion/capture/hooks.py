"""Forward hooks: those that keep a call eager, and those that libraries leave behind and that do nothing just now.

A library may hang hooks on a model's modules for good, in order to collect their outputs in the calls that ask for it.
In all other calls they are idle: running them or not is the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from fusion.refusal import Refusal

HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@dataclass(frozen=True, slots=True)
class Collecting:
    """Hooks of a library that do something in some calls only.

    Attributes:
        module: name of the Python module that defines them.
        function: their `__qualname__`.
        active: whether this thread is in such a call.
    """

    module: str
    function: str
    active: Callable[[], bool]


_KNOWN: list[Collecting] = []


def register_collecting(kind: Collecting) -> None:
    """Declares hooks that are idle while `kind.active()` is False."""
    _KNOWN.append(kind)


def _kind_of(hook: Any) -> Collecting | None:
    where = (getattr(hook, "__module__", ""), getattr(hook, "__qualname__", ""))
    return next((kind for kind in _KNOWN if (kind.module, kind.function) == where), None)


def are_idle(hooks: Mapping[Any, Any]) -> bool:
    """Whether all of a module's hooks do nothing but in calls that ask for it."""
    return all(_kind_of(hook) is not None for hook in hooks.values())


def problem(module: torch.nn.Module, name: str) -> Refusal | None:
    """Why a module's hooks keep a call eager, or None.

    Args:
        module: the module.
        name: what the reason calls it.
    """
    for hook in (hook for hooks in HOOKS for hook in vars(module)[hooks].values()):
        kind = _kind_of(hook)
        if kind is None:
            told = getattr(hook, "__qualname__", type(hook).__name__)
            return Refusal("hook", f"{name} ({type(module).__name__}) has the forward hook {told}")
        if kind.active():
            return Refusal("collecting", f"a forward hook of {name} ({type(module).__name__}) collects what it gives")
    return None


def entries_of(modules: Iterable[torch.nn.Module]) -> Iterator[tuple[Any, ...]]:
    """Snapshot entries for modules' hooks: there are those that are idle, and just now they are.

    Where a module has others, the entry says none, and so does not hold.
    """
    kinds: dict[Collecting, None] = {}
    for module in modules:
        for hooks in HOOKS:
            held = vars(module)[hooks]
            idle = are_idle(held)
            yield ("size", held, len(held) if idle else 0)
            for key, hook in held.items() if idle else ():
                yield ("item", held, key, hook)
                kinds[_kind_of(hook)] = None  # type: ignore[index]  # idle hooks have a kind
    for kind in kinds:
        yield ("call", kind.active, False)
