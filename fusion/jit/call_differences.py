"""Reasons that tell what differed between calls of a scope: which argument varies, and by which values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fusion.capture.python.argument_tree import ArgumentTree
from fusion.jit.cache_entry import CacheEntry
from fusion.jit.same_results import same_results
from fusion.patterns.leaves import Path, path_text
from fusion.refusal import Refusal
from fusion.runtime.pytrees import flatten as flatten_result

_MOST_VALUES = 4  # of one argument that a reason names
_MOST_VARYING = 3  # arguments
_MOST_LETTERS = 40


def too_many_plans(known: Sequence[CacheEntry], arguments: ArgumentTree) -> Refusal:
    """No plan takes a call, and the scope has as many recordings as it may: what the recordings differ in.

    Args:
        known: the scope's recordings.
        arguments: the call's.
    """
    now = {leaf.path: leaf.value for leaf in arguments.leaves}
    now |= {container.path: container.kind for container in arguments.containers}
    recorded = [_fixed(one) for one in known]
    paths = dict.fromkeys(path for fixed in recorded for path in fixed)
    told = [_values(path, [fixed[path] for fixed in recorded if path in fixed], now.get(path)) for path in paths]
    varying = [(path, text) for path, text in zip(paths, told, strict=True) if text]
    full = f"no plan takes the call, and max_plans={len(known)} recordings are made"
    if not varying:
        return Refusal("too_many_plans", f"{full}; they differ in what their guards tell", remedy=_RAISE)
    what = "; ".join(f"{path_text(path)} varies: {text}" for path, text in varying[:_MOST_VARYING])
    numbers = [path_text(path) for path, _ in varying if type(now.get(path)) in (int, float, bool)]
    remedy = f"pass {' and '.join(numbers[:_MOST_VARYING])} as a tensor, or {_RAISE}" if numbers else _RAISE
    return Refusal("too_many_plans", f"{full}; {what}", remedy=remedy)


_RAISE = "raise max_plans (fusion.enable(model, {'max_plans': ...}))"


def _fixed(known: CacheEntry) -> dict[Path, Any]:
    """What a recording has fixed of its call's arguments by path: plain values, classes, sizes of tensors."""
    conditions, graph = known.template.shape.conditions, known.graph
    fixed: dict[Path, Any] = dict(conditions.atoms)
    fixed |= dict(conditions.kinds)
    fixed |= {path: kind for path, kind, _ in conditions.containers}
    for entered in graph.inputs:
        spec = graph.spec[entered.name]
        sizes = [size if type(size) is int else "*" for size in spec.shape]
        fixed[entered.path] = f"{str(spec.dtype).removeprefix('torch.')}[{', '.join(map(str, sizes))}]"
    return fixed


def _values(path: Path, values: Sequence[Any], now: Any) -> str:
    """The values of an argument in the recordings and in this call, as text; "" where it does not vary."""
    texts = list(dict.fromkeys(map(_text, values)))
    if len(texts) < 2:
        return ""
    more = f", and {len(texts) - _MOST_VALUES} more" if len(texts) > _MOST_VALUES else ""
    return f"{', '.join(texts[:_MOST_VALUES])}{more}; now {_text(now)}"


def _text(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"
    if isinstance(value, type):
        return f"a {value.__name__}"
    text = value if isinstance(value, str) and "[" in value else repr(value)
    return text if len(text) <= _MOST_LETTERS else f"{text[:_MOST_LETTERS]}..."


def differed(plain: Any, recorded: Any, where: str) -> Refusal:
    """Two runs of one call, without and with symbols for sizes, did not give the same.

    Args:
        plain: what the run without gave.
        recorded: what the run with symbols gave.
        where: the user's line.
    """
    sentence = f"the call was made twice, once with symbols for sizes, and {_difference(plain, recorded)}"
    remedy = (
        "look for what it reads or changes outside its arguments and modules (counters, files, the time), and for "
        "questions about a size's type"
    )
    return Refusal("plan_mismatch", sentence, where, remedy)


def _difference(plain: Any, recorded: Any) -> str:
    left, tree = flatten_result(plain)
    right, other = flatten_result(recorded)
    if tree != other or len(left) != len(right):
        return "the results were built otherwise"
    place = next((i for i, (a, b) in enumerate(zip(left, right, strict=True)) if not same_results(a, b)), None)
    if place is None:
        return "left something else in memory that outlives it"
    which = "the result" if len(left) == 1 else f"result {place}"
    a, b = left[place], right[place]
    tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    if tensors and (a.shape, a.dtype) == (b.shape, b.dtype):
        return f"{which} had other values or strides"
    return f"{which} was {_text(a)} and then {_text(b)}"
