"""The Python state a recording depends on: what a plan's snapshot watches, and what rules recording out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch.nn.modules import module as torch_module

from fusion.decide.refusal import Refusal
from fusion.runtime.native import ABSENT

SWITCH = "enable_fusion"  # the attribute of a model's config that switches fusion off and on
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PLAIN = (type(None), bool, int, float, str)


def problems(modules: Mapping[str, torch.nn.Module]) -> Refusal | None:
    """Why a call cannot be recorded or dispatched now, or None."""
    if torch.is_grad_enabled():
        return Refusal("grad_enabled", "call the model under torch.inference_mode() or torch.no_grad()")
    if torch._C._len_torch_dispatch_stack() or torch._C._len_torch_function_stack():
        return Refusal("active_mode", "another dispatch or function mode is active")
    if torch._C._is_any_autocast_enabled():
        return Refusal("autocast", "autocast is enabled; cast the model instead")
    if torch._C._get_tracing_state():
        return Refusal("active_mode", "torch.jit is tracing")
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return Refusal("hook", "global module hooks are registered")
    for prefix, module in modules.items():
        for path, child in module.named_modules(prefix=prefix):
            if child.training:
                return Refusal("training", f"{path or type(child).__name__} is in training mode; call model.eval()")
            if child is not module and any(getattr(child, hooks) for hooks in _HOOKS):
                return Refusal("hook", f"{path} has forward hooks")
    return None


def watched(modules: Mapping[str, torch.nn.Module], objects: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
    """Snapshot entries for everything a module tree's forward can depend on beside its arguments.

    Every attribute, parameter, buffer and submodule by identity; the number of attributes and inner hooks; each
    class's `forward`; the plain attributes of configuration objects that modules hold.
    """
    entries: list[tuple[Any, ...]] = [
        ("size", torch_module._global_forward_hooks, 0),
        ("size", torch_module._global_forward_pre_hooks, 0),
    ]
    seen: dict[int, Any] = {id(o): o for o in objects}
    kinds: dict[Any, None] = {}
    for module in modules.values():
        for child in module.modules():
            root = child is module
            kinds[type(child)] = None
            entries += _of_module(child, root)
            for value in vars(child).values():
                if _is_settings(value):
                    seen.setdefault(id(value), value)
    entries += [("attribute", kind, "forward", kind.forward) for kind in kinds]
    for held in seen.values():
        entries += [("item", vars(held), k, v) for k, v in vars(held).items() if isinstance(v, _PLAIN) and k != SWITCH]
    entries += [("item", vars(o), SWITCH, vars(o).get(SWITCH, ABSENT)) for o in objects]
    return entries


def _is_settings(value: Any) -> bool:
    """An object that holds attributes and nothing to call: a configuration."""
    known = isinstance(value, (torch.nn.Module, torch.Tensor, type))
    return hasattr(value, "__dict__") and not known and not callable(value)


def unchanged(before: Sequence[tuple[Any, ...]], after: Sequence[tuple[Any, ...]]) -> bool:
    """Whether two lists of entries say the same of a scope: the switch aside, and plain values compared by value."""
    if len(before) != len(after):
        return False
    return all(
        a[0] == b[0]
        and a[1] is b[1]
        and (a[2] == SWITCH or (a[2] == b[2] and (a[-1] is b[-1] or (isinstance(a[-1], _PLAIN) and _equal(a, b)))))
        for a, b in zip(before, after, strict=True)
    )


def _equal(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return type(a[-1]) is type(b[-1]) and bool(a[-1] == b[-1])


def _of_module(module: torch.nn.Module, root: bool) -> list[tuple[Any, ...]]:
    own = vars(module)
    entries: list[tuple[Any, ...]] = [("size", own, len(own))]
    if not root:  # the root's own hooks run around the scope
        entries += [("size", own[hooks], 0) for hooks in _HOOKS]
    for name, value in own.items():
        if name in ("_parameters", "_buffers", "_modules"):
            entries += [("item", value, k, v) for k, v in value.items()]
            entries.append(("size", value, len(value)))
        elif not name.startswith("_") and not (root and name == "forward"):
            entries.append(("item", own, name, value))
            if isinstance(value, (list, dict, set)):
                entries.append(("size", value, len(value)))
    return entries
