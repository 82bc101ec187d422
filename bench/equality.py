"""Whether a fused model gives eager's result: logits, tokens and caches, by distance to float64 where it is known."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from fusion.patterns.verify import EAGER_FACTOR

_ULPS = 16  # of the largest value: a model's logits are sums of sums, each of which may end one place away
_RTOL = 1e-4  # where no float64 model tells eager's own error: a thousand ulp of float32, a hundredth of a wrong term


def difference(fused: Any, eager: Any, exact: Any) -> Iterator[str]:
    """What differs, as sentences; nothing where the results are equal.

    Args:
        fused, eager: results of one kind: tensors, or objects that hold them; `eager` may be the error it raised.
        exact: the same from a float64 model, or an error where there is none.
    """
    if isinstance(eager, Exception):
        yield f"eager raises {type(eager).__name__} and fused does not"
        return
    mine, theirs = dict(tensors(fused)), dict(tensors(eager))
    ideal = {} if isinstance(exact, Exception) else dict(tensors(exact))
    if mine.keys() != theirs.keys():
        yield f"other tensors in the result: {sorted(mine.keys() ^ theirs.keys())[:4]}"
        return
    same_path = all(torch.equal(t, ideal[k]) for k, t in theirs.items() if not t.is_floating_point() and k in ideal)
    for name, value in mine.items():
        why = _differs(value, theirs[name], ideal.get(name) if same_path else None)
        if why:
            yield f"{name}: {why}"


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


def _differs(fused: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor | None) -> str:
    if fused.shape != eager.shape or fused.dtype != eager.dtype:
        return f"{fused.dtype}{list(fused.shape)} for {eager.dtype}{list(eager.shape)}"
    if not eager.is_floating_point():
        wrong = int((fused != eager).sum())
        return f"{wrong} of {eager.numel()} elements differ" if wrong else ""
    finite = eager.isfinite()
    if not torch.equal(fused.isfinite(), finite) or not torch.equal(fused.isnan(), eager.isnan()):
        return "NaN or inf in other places"
    if not torch.equal(fused[~finite & ~eager.isnan()], eager[~finite & ~eager.isnan()]):
        return "inf of another sign"
    fused, eager = fused[finite].double(), eager[finite].double()
    if not eager.numel():
        return ""
    largest = float(eager.abs().max())
    if exact is None or exact.shape != finite.shape:
        apart, bound = float((fused - eager).abs().max()), _RTOL * largest
    else:
        ideal = exact[finite].double()
        if not bool(ideal.isfinite().all()):
            return _differs(fused, eager, None)
        apart = float((fused - ideal).abs().max())
        slack = _ULPS * torch.finfo(torch.float32).eps * largest
        bound = EAGER_FACTOR * float((eager - ideal).abs().max()) + slack
    return f"off by {apart:.3g} where {bound:.3g} is allowed" if apart > bound else ""
