"""The Python state a recording depends on: what a plan's snapshot watches, and what rules recording out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.autograd import forward_ad
from torch.nn.modules import module as torch_module

from fusion.capture import hooks, torch_modes
from fusion.capture.python.argument_tree import modules_of
from fusion.capture.python.reachable_state import PLAIN, SWITCH, Entry, Members, ReachableState
from fusion.refusal import Refusal
from fusion.runtime.native import ABSENT

_MOST_NAMED = 3  # modules that a reason names


def problems(modules: Mapping[str, torch.nn.Module], steps: Iterable[torch.nn.Module] = ()) -> Refusal | None:
    """Why a call cannot be recorded or dispatched now, or None.

    What happens in `steps` is their own affair, but for hooks: a re-run of the scope around them would not run those.
    """
    mode = torch_modes.problem()
    if mode is not None:
        return mode
    for module in modules.values():
        for path, child in modules_of(module, steps):
            if child.training:
                return _in_training(module, [(p, c) for p, c in modules_of(module, steps) if c.training])
            found = None if child is module else hooks.problem(child, path)
            if found is not None:
                return found
    for step in steps:
        for path, child in step.named_modules():
            found = hooks.problem(child, f"{path or 'a module'} inside a step" if child is not step else "a step")
            if found is not None:
                return found
    return None


def _in_training(root: torch.nn.Module, found: Sequence[tuple[str, torch.nn.Module]]) -> Refusal:
    """Which modules are in training mode, and how each gets out of it."""
    named = [f"{path or 'the module'} ({type(child).__name__})" for path, child in found]
    names = ", ".join(named[:_MOST_NAMED]) + (f" and {len(named) - _MOST_NAMED} more" * (len(named) > _MOST_NAMED))
    verb = "is" if len(found) == 1 else "are"
    if root.training:
        fixed = "eval" in vars(root)  # an exported module, whose eval() raises
        remedy = "set its `training` to False: its own eval() is not torch's" if fixed else "call model.eval()"
        return Refusal("training", f"{names} {verb} in training mode", remedy=remedy)
    what = f"{names} {verb} in training mode, though the module around is not: put there, or switched, after eval()"
    return Refusal("training", what, remedy=f"call eval() on {found[0][0]}, or once more on the model")


def watched(
    modules: Mapping[str, torch.nn.Module], objects: Sequence[Any] = (), steps: Iterable[torch.nn.Module] = ()
) -> list[Entry]:
    """Snapshot entries for everything a module tree's forward can depend on beside its arguments and global names.

    Every attribute, parameter, buffer and submodule by identity; what containers, objects, closures and further modules
    among them hold (`ReachableState`); the number of inner hooks; each class's `forward`.

    Args:
        modules: the scope's modules.
        objects: further objects whose attributes count (a model's config); their `enable_fusion` is watched too.
        steps: modules that the scope calls natively: they are watched as objects, not looked into.

    Raises:
        Refused: as `ReachableState`.
    """
    entries: list[Entry] = [
        ("size", torch_module._global_forward_hooks, 0),
        ("size", torch_module._global_forward_pre_hooks, 0),
        ("call", torch.get_default_dtype, torch.get_default_dtype()),
        ("call", torch._C._get_deterministic_algorithms, torch._C._get_deterministic_algorithms()),
        ("call", torch_modes.default_device, torch_modes.default_device()),
        ("attribute", forward_ad, "_current_level", -1),  # a kernel hands on no tangents
    ]
    kinds: dict[Any, None] = {}
    steps = tuple(steps)
    hooked: list[torch.nn.Module] = []
    for module in modules.values():
        for _, child in modules_of(module, steps):
            kinds[type(child)] = None
            if child is not module:  # the root's own hooks run around the scope
                hooked.append(child)
    entries += hooks.entries_of([*hooked, *steps])
    held = ReachableState(modules, objects, steps)
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
    if a[0] != b[0] or not (a[1] is b[1] or (isinstance(a[1], Members) and a[1] == b[1])) or a[2:-1] != b[2:-1]:
        return False
    return a[-1] is b[-1] or (isinstance(a[-1], PLAIN) and _equal(a, b))


def _is_switch(entry: Entry) -> bool:
    return entry[0] == "item" and isinstance(entry[2], str) and entry[2] == SWITCH


def _equal(a: Entry, b: Entry) -> bool:
    return type(a[-1]) is type(b[-1]) and bool(a[-1] == b[-1])
