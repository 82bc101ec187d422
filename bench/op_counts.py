"""What a call really runs, counted from torch's own profiler: operators by kind, with and without fusion alike.

The pass's own account is not asked: what its plans and the modules it leaves alone run shows up here in the same way.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import torch

from fusion.patterns.ops import FUSABLE, Kind, lookup

_ALLOCATES = ("empty", "new_empty", "resize_", "set_")
_TAGGED = tuple(getattr(torch.Tag, name) for name in ("pointwise", "reduction") if hasattr(torch.Tag, name))

Counts = dict[str, Counter[str]]  # "fusable", "copy", "effect", "library" -> operator -> calls


def count(function: Callable[[], object]) -> Counts:
    """The operators that one call runs, by what can become of them; allocations and views that move nothing are none.

    "fusable" are those of a kind that kernels can hold, by the operator table or, for an operator without a row, by
    torch's own tags; "copy" are views that moved data (`contiguous`); "effect" are writes and random draws; the rest
    is "library".
    """
    with torch.autograd.profiler.profile() as profile:
        function()
    counts = _empty()
    _add((e for e in profile.function_events if e.cpu_parent is None), counts)
    return counts


def launches(counts: Counts) -> int:
    """Kernels launched outside libraries."""
    return sum(counts[what].total() for what in ("fusable", "copy", "effect"))


def _add(events: Iterable[Any], counts: Counts) -> None:
    for event in events:
        if not event.name.startswith("aten::"):
            _add(event.cpu_children, counts)
            continue
        name = event.name.removeprefix("aten::")
        what = _what(name, getattr(event, "overload_name", "") or "")
        if what == "view":
            if _copies(event):
                counts["copy"][name] += 1
        elif _composite(name) and (what is None or not event.cpu_children):
            _add_composite(name, event.cpu_children, counts)
        else:
            counts[what or "library"][name] += 1


def _add_composite(name: str, children: Iterable[Any], counts: Counts) -> None:
    """An operator that only calls others counts as those; attention and others around a library call are one such."""
    inside = _empty()
    _add(children, inside)
    if inside["library"]:
        counts["library"][name] += 1
        return
    for what, called in inside.items():
        counts[what].update(called)


def _empty() -> Counts:
    return {what: Counter() for what in ("fusable", "copy", "effect", "library")}


def _copies(event: Any) -> bool:
    return event.name == "aten::copy_" or any(map(_copies, event.cpu_children))


@functools.cache
def _what(name: str, overload: str) -> str | None:
    """Which of the counts an operator goes to, "view" for none; None where nothing is known of it."""
    if name.startswith(_ALLOCATES):
        return "view"
    overloads = _overloads(name, overload)
    kinds = [row.kind for row in (lookup(f"aten.{name}.{o}") for o in overloads) if row is not None]
    if any(kind in FUSABLE for kind in kinds):
        return "fusable"
    if kinds:
        return {Kind.VIEW: "view", Kind.EFFECT: "effect"}.get(kinds[0], "library")
    operators = [getattr(getattr(torch.ops.aten, name), o) for o in overloads]
    if any(tag in operator.tags for operator in operators for tag in _TAGGED):
        return "fusable"
    aliases = [r.alias_info for operator in operators for r in operator._schema.returns]
    if aliases and all(a is not None and not a.is_write for a in aliases):
        return "view"
    if operators and all(operator._schema.is_mutable for operator in operators):
        return "effect"
    return None


def _overloads(name: str, overload: str) -> list[str]:
    """The overload that ran, or all that the dispatcher knows where the profiler does not tell."""
    packet = getattr(torch.ops.aten, name, None)
    known = [o for o in packet.overloads() if torch._C._dispatch_has_kernel(_qualified(name, o))] if packet else []
    return [overload] if overload in known else known


@functools.cache
def _composite(name: str) -> bool:
    """Whether an operator only calls others."""
    key = "CompositeImplicitAutograd"
    return any(torch._C._dispatch_has_kernel_for_dispatch_key(_qualified(name, o), key) for o in _overloads(name, ""))


def _qualified(name: str, overload: str) -> str:
    return f"aten::{name}" if overload == "default" else f"aten::{name}.{overload}"
