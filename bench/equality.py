"""Whether a fused model gives eager's result: logits, tokens and caches, by distance to float64 where it is known."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch

from fusion.patterns.verify import EAGER_FACTOR

_ULPS = 4  # of the largest value: where eager is exact, as in a copy, a sum may still end in a neighbour
_RTOL = 1e-4  # where no float64 model tells eager's own error: a thousand ulp of float32, a hundredth of a wrong term


Errors = dict[str, float]  # by a tensor's path without its numbers: the greatest distance to the float64 model


def errors(pairs: Iterable[tuple[Any, Any]]) -> Errors:
    """Eager's worst errors over several calls: where in a call its rounding errors cancel is chance.

    Args:
        pairs: eager's result and the float64 model's; pairs in which one is an error say nothing.
    """
    found: Errors = {}
    for eager, exact in pairs:
        if isinstance(eager, Exception) or isinstance(exact, Exception):
            continue
        theirs, ideal = dict(tensors(eager)), dict(tensors(exact))
        if not _same_path(theirs, ideal):
            continue
        for name, value in theirs.items():
            other = ideal.get(name)
            if other is not None and other.shape == value.shape and value.is_floating_point() and value.numel():
                apart = (value.double() - other.double()).abs().nan_to_num(0.0, 0.0, 0.0)
                found[_group(name)] = max(found.get(_group(name), 0.0), float(apart.max()))
    return found


def _group(name: str) -> str:
    return re.sub(r"\d+", "#", name)


def _same_path(theirs: Mapping[str, torch.Tensor], ideal: Mapping[str, torch.Tensor]) -> bool:
    """Whether the float64 model took the same decisions: an integer that differs is another token, chosen narrowly."""
    return all(torch.equal(t, ideal[k]) for k, t in theirs.items() if not t.is_floating_point() and k in ideal)


def difference(fused: Any, eager: Any, exact: Any, worst: Mapping[str, float]) -> Iterator[str]:
    """What differs, as sentences; nothing where the results are equal.

    Args:
        fused, eager: results of one kind: tensors, or objects that hold them; or the errors that were raised.
        exact: the same from a float64 model, or an error where there is none.
        worst: what `errors` gave for calls like this one, this one among them.
    """
    if isinstance(eager, Exception) or isinstance(fused, Exception):
        if type(eager) is not type(fused):
            yield f"eager: {_outcome(eager)}; fused: {_outcome(fused)}"
        return
    mine, theirs = dict(tensors(fused)), dict(tensors(eager))
    ideal = {} if isinstance(exact, Exception) else dict(tensors(exact))
    if mine.keys() != theirs.keys():
        yield f"other tensors in the result: {sorted(mine.keys() ^ theirs.keys())[:4]}"
        return
    known = worst if _same_path(theirs, ideal) else {}
    for name, value in mine.items():
        why = _differs(value, theirs[name], known.get(_group(name)), ideal.get(name))
        if why:
            yield f"{name}: {why}"


def _outcome(result: Any) -> str:
    return f"{type(result).__name__}: {str(result)[:200]}" if isinstance(result, Exception) else "a result"


def tensors(value: Any, path: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in a result with its path: containers, objects and caches are looked into."""
    seen = set() if seen is None else seen
    if isinstance(value, torch.Tensor):
        yield path, value
        return
    if id(value) in seen or isinstance(value, (torch.nn.Module, type, str, bytes)) or callable(value):
        return
    seen.add(id(value))
    if isinstance(value, dict):
        inside: Any = value.items()
    elif isinstance(value, (list, tuple)):
        inside = enumerate(value)
    else:
        names = [*getattr(type(value), "__slots__", ()), *getattr(value, "__dict__", {})]
        inside = [(n, getattr(value, n, None)) for n in names if "config" not in n]
    for name, item in inside:
        yield from tensors(item, f"{path}.{name}" if path else str(name), seen)


def _differs(fused: torch.Tensor, eager: torch.Tensor, worst: float | None, exact: torch.Tensor | None) -> str:
    if fused.shape != eager.shape or fused.dtype != eager.dtype:
        return f"{fused.dtype}{list(fused.shape)} for {eager.dtype}{list(eager.shape)}"
    if not eager.is_floating_point():
        wrong = int((fused != eager).sum())
        return f"{wrong} of {eager.numel()} elements differ" if wrong else ""
    finite = eager.isfinite()
    if not torch.equal(fused[~finite].nan_to_num(7.0), eager[~finite].nan_to_num(7.0)):
        return "NaN or inf in other places"
    if not bool(fused[finite].isfinite().all()):
        return "NaN or inf in other places"
    if not bool(finite.any()):
        return ""
    largest = float(eager[finite].abs().max())
    if worst is None or exact is None or exact.shape != eager.shape or not bool(exact[finite].isfinite().all()):
        apart, bound = float((fused[finite] - eager[finite]).abs().max()), _RTOL * largest
    else:
        apart = float((fused[finite].double() - exact[finite].double()).abs().max())
        bound = EAGER_FACTOR * worst + _ULPS * torch.finfo(eager.dtype).eps * largest
    return f"off by {apart:.3g} where {bound:.3g} is allowed" if apart > bound else ""
