"""What differs between a fused result and eager's: in words, to the bit, or by more than rounding explains."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

_LOST = 0.5  # of a value: moved so far, it is what rounding left
SLACK = 6.0  # some random moves see a part of how far results can move; a normal deviation's 6 sigma


class Mismatch(Exception):
    """Fused and eager differ, or the pass had to catch an error of its own.

    Attributes:
        kind: "values", "structure", "raised", "random", or the code of a refusal; it stays the same while a program is
            shrunk.
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


def difference(ours: Any, yours: Any) -> str | bool:
    """What no rounding explains, in words; else whether values differ."""
    (left, tree), (right, wanted) = pytree.tree_flatten(ours), pytree.tree_flatten(yours)
    if tree != wanted:
        return f"the structure is {tree}, eager's is {wanted}"
    paths = [pytree.keystr(p) for p, _ in pytree.tree_leaves_with_path(ours)]
    values = False
    for path, a, b in zip(paths, left, right, strict=True):
        if type(a) is not type(b):
            return f"{path} is a {type(a).__name__}, eager's is a {type(b).__name__}"
        if not isinstance(b, torch.Tensor):
            if a != b:
                return f"{path} is {a!r}, eager's is {b!r}"
            continue
        looks = [_looks(t) for t in (a, b)]
        if looks[0] != looks[1]:
            return f"{path} is {looks[0]}, eager's is {looks[1]}"
        if not equal(a, b):
            values = True
            if not b.is_floating_point():
                return f"{path} differs:\nfused {a}\neager {b}"
    if _sharing(left) != _sharing(right):
        return f"results share memory as {_sharing(left)}, eager's as {_sharing(right)}; of {paths}"
    return values


def _looks(t: torch.Tensor) -> str:
    flags = [name for name in ("requires_grad", "is_leaf") if getattr(t, name)]
    flags += ["inference"] if t.is_inference() else []
    strides = t.stride() if t.numel() else "any"
    return f"{t.dtype}{list(t.shape)} strides {strides} {' '.join(flags)}"


def _sharing(leaves: list[Any]) -> list[Any]:
    """For each tensor, the first that shares its memory, and where in it this one begins."""
    first: dict[int, int] = {}
    found = []
    for k, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor) and leaf.numel():
            owner = first.setdefault(leaf.untyped_storage()._cdata, k)
            found.append((owner, leaf.storage_offset() - leaves[owner].storage_offset()))
    return found


def equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """To the bit but for the bits of a NaN; 0.0 and -0.0 differ."""
    if torch.equal(a, b) and not b.is_floating_point():
        return True
    if not b.is_floating_point():
        return False
    same = ((a == b) & (a.signbit() == b.signbit())) | (a.isnan() & b.isnan())
    return bool(same.all())


def too_far(mine: torch.Tensor, eager: torch.Tensor, trials: list[torch.Tensor]) -> str:
    """Why `mine` cannot be eager's result with other last places; "" where it can."""
    a, b = mine.double(), eager.double()
    others = [t.double() for t in trials]
    steady = torch.ones_like(b, dtype=torch.bool)
    for t in others:
        steady &= (t.isfinite() == b.isfinite()) & (t.isnan() == b.isnan())
    special = steady & ~b.isfinite()
    wrong = special & ~((a == b) | (a.isnan() & b.isnan()))
    if bool(wrong.any()):
        return f"{int(wrong.sum())} values that are not finite differ"
    finite = steady & b.isfinite()
    if not bool(finite.any()):
        return ""
    most = max(float((t - b)[finite].abs().max()) for t in others)
    moved = torch.stack([(t - b).abs() for t in others]).amax(0)
    finite &= a.isfinite() | (moved < _LOST * b.abs())  # an inverse of what rounding left of a 0 may be infinite too
    if not bool(finite.any()):
        return ""
    off = float((a - b)[finite].abs().nan_to_num(float("inf")).max())
    return f"off by {off:.3g}, where rounding explains {SLACK * most:.3g}" if off > SLACK * most else ""
