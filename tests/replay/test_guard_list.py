"""The list of a recording's guards against the text that plans run: whatever one refuses, the other explains."""

from __future__ import annotations

import collections
import copy
import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from replay_cases import Case, cases
from replay_functions import FUNCTIONS
from replay_stages import _CONFIG, _uncompiled

import fusion
from fusion.capture.python.argument_tree import Container, Leaf, flatten
from fusion.jit.bound_call import BoundCall
from fusion.jit.cache_entry import CacheEntry
from fusion.jit.scope import Scope
from fusion.patterns.guards import KINDS, GuardMiss
from fusion.patterns.leaves import Attribute, Path
from fusion.runtime.guard_list import GuardList
from fusion.runtime.plan import MISS

MODELS = ("bert",)


def aliased(a: torch.Tensor, b: torch.Tensor, parts: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Writes to one tensor, is given another twice, and reads a transposed one."""
    a.mul_(0.5)
    return (a + b + parts[0]).tanh() + parts[1].t().sum(-1, keepdim=True)


def plain(x: torch.Tensor, scale: float = 0.0, flag: Any = None, *rest: int, name: str = "n", **named: Any) -> Any:
    y = x.exp() * scale + sum(rest) + len(named)
    return y[: x.shape[0] // 2] if flag is None and name == "n" and x.shape[0] > 3 else y


def _aliased(fused: Any) -> object:
    b = torch.ones(5, 6)
    return fused(torch.ones(5, 6), b, (b, torch.ones(4, 5)))


def _plain(fused: Any) -> object:
    return fused(torch.ones(6, 5))


def _with_more(fused: Any) -> object:
    return fused(torch.ones(6, 5), 0.5, True, 1, 2, k=1)


OWN = {
    "aliased": Case(lambda: aliased, (_aliased, _aliased), ()),
    "plain": Case(lambda: plain, (_plain, _with_more), ()),
}


# ---- other arguments


def other_tensors(x: torch.Tensor) -> Iterator[Any]:
    """Tensors that differ from one in dtype, rank, sizes, strides and memory; and what is no tensor."""
    yield from (None, 3.0, x.clone(), torch.nn.Parameter(x.detach().clone(), requires_grad=False))
    yield x.to(torch.float64 if x.dtype != torch.float64 else torch.float32)
    yield x.to("meta")
    yield x.unsqueeze(0)
    yield x.reshape(-1) if x.ndim != 1 else x.reshape(1, -1)
    for dim in range(x.ndim):
        yield from (x.narrow(dim, 0, min(n, x.shape[dim])) for n in (0, 1, 2))
        yield torch.cat((x, x), dim)
        yield x.narrow(dim, 0, 1).expand(x.shape)
        yield x.transpose(dim, -1).contiguous().transpose(dim, -1)
        yield torch.stack((x, x), dim).select(dim, 0)
    if x.is_floating_point():
        yield torch._neg_view(x)


def other_values(value: Any) -> list[Any]:
    """Plain values that differ from one in value, type or sign."""
    others = [
        None,
        True,
        False,
        0,
        1,
        7,
        0.0,
        -0.0,
        0.5,
        math.nan,
        "n",
        "other",
        torch.float16,
        torch.ones(3),
        object(),
    ]
    return others + ([value + 1, float(value)] if type(value) in (int, float) else [])


def other_containers(value: Any) -> Iterator[Any]:
    """Containers that differ from one in class, length, keys or their order."""
    yield from (None, [], {}, object())
    if isinstance(value, dict):
        yield from ({**value, "a further key": 1}, dict(list(value.items())[1:]), dict(reversed(list(value.items()))))
        yield collections.OrderedDict(value)
    if type(value) in (list, tuple):
        other = tuple if type(value) is list else list
        yield from (value + type(value)([1]), value[1:], other(value), value[::-1])


def replaced(value: Any, steps: Path, new: Any) -> Any:
    """A shallow copy of nested containers with something else at a path."""
    if not steps:
        return new
    key, rest = steps[0], steps[1:]
    if isinstance(key, Attribute):
        made = copy.copy(value)
        object.__setattr__(made, key, replaced(getattr(value, key), rest, new))
        return made
    if isinstance(value, tuple):
        items = [replaced(item, rest, new) if i == key else item for i, item in enumerate(value)]
        return value._make(items) if hasattr(value, "_make") else type(value)(items)
    made = copy.copy(value)
    made[key] = replaced(value[key], rest, new)
    return made


def others(part: Leaf | Container) -> Iterator[Any]:
    if isinstance(part, Container):
        return other_containers(part.value)
    if isinstance(part.value, torch.Tensor):
        return other_tensors(part.value)
    return iter(other_values(part.value))


# ---- both answers


class Checked:
    """Compares the two answers for calls like those that are noted."""

    def __init__(self) -> None:
        self.refused = 0
        self.kinds: set[str] = set()

    def compare(self, known: CacheEntry, arguments: list[Any]) -> GuardMiss | None:
        refused = known.match(*arguments) is MISS
        guards = known.template.guards.setdefault("", GuardList(known.template.shape))
        miss = guards.first_miss(arguments, known.bound.tensors)
        assert refused == (miss is not None), (known.graph, arguments, miss)
        self.refused += refused
        self.kinds |= {miss.kind} if miss else set()
        return miss

    def perturb(self, known: CacheEntry, arguments: tuple[Any, ...]) -> None:
        """Every argument, item and attribute of a call replaced by others, one at a time; then a parameter's data."""
        names = known.template.shape.parameters
        named = dict(zip(names, arguments, strict=True))
        leaves, containers = flatten(named)
        for part in (*leaves, *(c for c in containers if c.value is not None)):
            top = str(part.path[0])
            for new in others(part):
                given = {**named, top: replaced(named[top], part.path[1:], new)}
                self.compare(known, [given[name] for name in names])
        tensors = [leaf for leaf in leaves if isinstance(leaf.value, torch.Tensor)]
        for one, other in itertools.permutations(tensors, 2):
            top = str(one.path[0])
            given = {**named, top: replaced(named[top], one.path[1:], other.value)}
            self.compare(known, [given[name] for name in names])
        for name, _ in known.graph.parameters[:1]:
            held = known.bound.tensors[name]
            for data in (held.data.double(), held.data[..., None], held.data[:1]):
                before, held.data = held.data, data
                self.compare(known, list(arguments))
                held.data = before


@contextmanager
def noted_calls() -> Iterator[list[tuple[Scope, tuple[Any, ...]]]]:
    """The calls that no plan took, each with its scope."""
    found: list[tuple[Scope, tuple[Any, ...]]] = []
    advance = Scope._advance

    def noted(scope: Scope, call: BoundCall) -> Any:
        arguments = tuple(dict(a) if type(a) is dict else a for a in call.arguments)  # the call may set items
        found.append((scope, arguments))
        return advance(scope, call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scope, "_advance", noted)
        yield found


def check(case: Case) -> Checked:
    checked, seen = Checked(), set[int]()
    with _uncompiled(), noted_calls() as calls, torch.inference_mode():
        fused = fusion.fuse(case.make(), {**_CONFIG, **case.config, "debug_mode": False})
        for call in case.first if len(case.first) < 6 else (case.first[0], case.first[-1]):  # a forward and a decode
            call(fused)
        for scope, arguments in calls:
            for known in scope.known:
                if known.match(*arguments) is MISS or id(known.template) in seen:
                    continue
                seen.add(id(known.template))
                kinds = [guard.kind for guard in GuardList(known.template.shape, "self").guards]
                assert kinds and set(kinds) <= KINDS.keys()
                assert checked.compare(known, list(arguments)) is None
                checked.perturb(known, arguments)
    assert seen, "no recording was compared"
    if isinstance(fused, torch.nn.Module):
        fusion.disable(fused)
    return checked


@pytest.mark.parametrize("name", [*FUNCTIONS, *MODELS, *OWN])
def test_what_the_text_refuses_the_list_explains(name: str) -> None:
    known: Mapping[str, Case] = {**cases(), **OWN}
    if name not in known:
        pytest.skip(f"{name} needs transformers")
    checked = check(known[name])
    assert checked.refused > 10, "hardly anything was refused"
    assert {"tensor", "dtype", "rank"} <= checked.kinds


def test_every_kind_of_guard_on_arguments_is_met() -> None:
    kinds = check(OWN["aliased"]).kinds | check(OWN["plain"]).kinds | check(cases()["nested"]).kinds
    of_tensors = {"tensor", "dtype", "rank", "size", "stride", "relation", "same", "memory"}  # here is one device
    assert of_tensors | {"class", "length", "keys", "value"} <= kinds
