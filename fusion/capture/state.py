"""The Python state a recording depends on: what a plan's snapshot watches, and what rules recording out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from fusion.decide.refusal import Refusal
from fusion.runtime.native import ABSENT

from .held import PLAIN, SWITCH, Entry, Held, Members
from .provenance import modules_of

_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


def problems(modules: Mapping[str, torch.nn.Module], steps: Iterable[torch.nn.Module] = ()) -> Refusal | None:
    """Why a call cannot be recorded or dispatched now, or None.

    What happens in `steps` is their own affair, but for hooks: a re-run of the scope around them would not run those.
    """
    if torch.is_grad_enabled():
        return Refusal("grad_enabled", "call the model under torch.inference_mode() or torch.no_grad()")
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return Refusal("active_mode", "another dispatch or function mode is active")
    if torch._C._is_any_autocast_enabled():
        return Refusal("autocast", "autocast is enabled; cast the model instead")
    if torch._C._get_tracing_state():
        return Refusal("active_mode", "torch.jit is tracing")
    if forward_ad._current_level >= 0:
        return Refusal("grad_enabled", "forward-mode differentiation is active")
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return Refusal("hook", "global module hooks are registered")
    for module in modules.values():
        for path, child in modules_of(module, steps):
            if child.training:
                return Refusal("training", f"{path or type(child).__name__} is in training mode; call model.eval()")
            if child is not module and any(getattr(child, hooks) for hooks in _HOOKS):
                return Refusal("hook", f"{path} has forward hooks")
    for step in steps:
        for path, child in step.named_modules():
            if any(getattr(child, hooks) for hooks in _HOOKS):
                return Refusal("hook", f"{path or type(child).__name__}, inside a step, has forward hooks")
    return None


def watched(
    modules: Mapping[str, torch.nn.Module], objects: Sequence[Any] = (), steps: Iterable[torch.nn.Module] = ()
) -> list[Entry]:
    """Snapshot entries for everything a module tree's forward can depend on beside its arguments and global names.

    Every attribute, parameter, buffer and submodule by identity; what containers, objects, closures and further modules
    among them hold (`Held`); the number of inner hooks; each class's `forward`.

    Args:
        modules: the scope's modules.
        objects: further objects whose attributes count (a model's config); their `enable_fusion` is watched too.
        steps: modules that the scope calls natively: they are watched as objects, not looked into.

    Raises:
        Refused: as `Held`.
    """
    entries: list[Entry] = [
        ("size", torch_module._global_forward_hooks, 0),
        ("size", torch_module._global_forward_pre_hooks, 0),
        ("call", torch.get_default_dtype, torch.get_default_dtype()),
        ("attribute", forward_ad, "_current_level", -1),  # a kernel hands on no tangents
    ]
    kinds: dict[Any, None] = {}
    steps = tuple(steps)
    for module in modules.values():
        for _, child in modules_of(module, steps):
            kinds[type(child)] = None
            if child is not module:  # the root's own hooks run around the scope
                entries += [("size", vars(child)[hooks], 0) for hooks in _HOOKS]
    entries += [("size", vars(step)[hooks], 0) for step in steps for hooks in _HOOKS]
    held = Held(modules, objects, steps)
    kinds.update(dict.fromkeys(map(type, held.modules)))
    entries += [("attribute", kind, "forward", kind.forward) for kind in kinds]
    entries += held.entries
    entries += [("item", vars(o), SWITCH, vars(o).get(SWITCH, ABSENT)) for o in objects]
    return entries


def unchanged(before: Sequence[Entry], after: Sequence[Entry]) -> bool:
    """Whether two lists of entries say the same of a scope: the switch aside, and plain values compared by value."""
    if len(before) != len(after):
        return False
    return all((_is_switch(a) and _is_switch(b)) or alike(a, b) for a, b in zip(before, after, strict=True))


def alike(a: Entry, b: Entry) -> bool:
    """Whether two entries say the same; plain values are compared by value."""
    if a[0] != b[0] or not (a[1] is b[1] or (isinstance(a[1], Members) and a[1] == b[1])) or a[2] != b[2]:
        return False
    return a[-1] is b[-1] or (isinstance(a[-1], PLAIN) and _equal(a, b))


def _is_switch(entry: Entry) -> bool:
    return entry[0] == "item" and isinstance(entry[2], str) and entry[2] == SWITCH


def _equal(a: Entry, b: Entry) -> bool:
    return type(a[-1]) is type(b[-1]) and bool(a[-1] == b[-1])
