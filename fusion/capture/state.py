"""The Python state a recording depends on: what a plan's snapshot watches, and what rules recording out."""

from __future__ import annotations

import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from fusion.decide.refusal import Refusal, Refused
from fusion.runtime.native import ABSENT

from .provenance import modules_of

SWITCH = "enable_fusion"  # the attribute of a model's config that switches fusion off and on
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_NOT_STATE = (
    torch.nn.Module, torch.Tensor, type, types.FunctionType, types.BuiltinFunctionType, types.MethodType,
    types.ModuleType, torch.Generator,
)  # fmt: skip
_INTERNAL = frozenset(vars(torch.nn.Module())) - {"training"}
_DEEPEST = 6
_MOST_STATE = 10_000


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
) -> list[tuple[Any, ...]]:
    """Snapshot entries for everything a module tree's forward can depend on beside its arguments and global names.

    Every attribute, parameter, buffer and submodule by identity; what lists, dicts and plain objects among them hold;
    the number of inner hooks; each class's `forward`.

    Args:
        modules: the scope's modules.
        objects: further objects whose attributes count (a model's config); their `enable_fusion` is watched too.
        steps: modules that the scope calls natively: they are watched as objects, not looked into.

    Raises:
        Refused: there is more state than can be watched.
    """
    entries: list[tuple[Any, ...]] = [
        ("size", torch_module._global_forward_hooks, 0),
        ("size", torch_module._global_forward_pre_hooks, 0),
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
    entries += [("attribute", kind, "forward", kind.forward) for kind in kinds]
    for container, key, value in held_state(modules, objects, steps):
        if key is None:
            entries.append(("size", container, value))
        elif isinstance(container, list):
            entries.append(("index", container, key, value))
        elif key != SWITCH:
            entries.append(("item", container, key, value))
    entries += [("item", vars(o), SWITCH, vars(o).get(SWITCH, ABSENT)) for o in objects]
    return entries


def held_state(
    modules: Mapping[str, torch.nn.Module], objects: Sequence[Any] = (), steps: Iterable[torch.nn.Module] = ()
) -> list[tuple[Any, Any, Any]]:
    """What a module tree holds in Python, as (container, key, value), and (container, None, size) for each container.

    Containers are modules' dicts, and the lists, dicts, sets and plain objects found in them.

    Raises:
        Refused: there is more than `_MOST_STATE`, or it nests deeper than `_DEEPEST`.
    """
    found: list[tuple[Any, Any, Any]] = []
    seen: set[int] = set()

    def visit(value: Any, depth: int) -> None:
        if isinstance(value, _PLAIN) or id(value) in seen or isinstance(value, _NOT_STATE):
            return
        inner = value if isinstance(value, (list, dict, set, tuple)) else getattr(value, "__dict__", None)
        if not isinstance(inner, (list, dict, set, tuple)):
            return
        seen.add(id(value))
        if depth > _DEEPEST or len(found) > _MOST_STATE:
            raise Refused("python_state", "the modules hold more Python state than can be watched")
        if isinstance(inner, dict) and None in inner:
            raise Refused("python_state", "a dict among the modules' attributes has the key None")
        items = inner.items() if isinstance(inner, dict) else enumerate(() if isinstance(inner, set) else inner)
        if not isinstance(inner, tuple):
            switched = inner is not value and SWITCH in inner
            if not switched:
                found.append((inner, None, len(inner)))
            found.extend((inner, key, item) for key, item in items)
        for _, item in list(inner.items() if isinstance(inner, dict) else enumerate(inner)):
            visit(item, depth + 1)

    for module in modules.values():
        for _, child in modules_of(module, steps):
            own = vars(child)
            found.append((own, None, len(own)))
            for name, value in own.items():
                if name in ("_parameters", "_buffers", "_modules"):
                    found.append((value, None, len(value)))
                    found.extend((value, k, v) for k, v in value.items())
                elif name not in _INTERNAL and not (child is module and name == "forward"):
                    found.append((own, name, value))
                    visit(value, 0)
    for held in objects:
        visit(held, 0)
    return found


def unchanged(before: Sequence[tuple[Any, ...]], after: Sequence[tuple[Any, ...]]) -> bool:
    """Whether two lists of entries say the same of a scope: the switch aside, and plain values compared by value."""
    if len(before) != len(after):
        return False
    return all(
        a[0] == b[0]
        and a[1] is b[1]
        and (_is_switch(a) or (a[2] == b[2] and (a[-1] is b[-1] or (isinstance(a[-1], _PLAIN) and _equal(a, b)))))
        for a, b in zip(before, after, strict=True)
    )


def _is_switch(entry: tuple[Any, ...]) -> bool:
    return entry[0] == "item" and isinstance(entry[2], str) and entry[2] == SWITCH


def _equal(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return type(a[-1]) is type(b[-1]) and bool(a[-1] == b[-1])


def is_plain(value: Any) -> bool:
    """Whether a value is compared by what it is rather than by which object it is."""
    return isinstance(value, _PLAIN)
