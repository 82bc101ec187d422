"""Whether a kernel's result on made data is one that eager could give: `accept` for values that are at the edge.

On such data eager's own result may depend on where an element lies, overflow where the exact one does not, or be right
by chance. A kernel is held to what every reference agrees on.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from .graph import SubGraph
from .verify import layout_differs, ulp

# Made tensors are small: eager's worst error on them is a small sample of what it can be, so the factor is looser than
# `verify.EAGER_FACTOR`. How exact a kernel is, the user's data tells; here a wrong one is wrong by far more.
_FACTOR = 4.0
_ULPS = 2.0
_BITS = {
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
    torch.float64: torch.int64,
}
# Double precision has no reference beyond it: eager's errors there, a few ulp of the largest value, are not known.
_DOUBLE_ULPS = 64
# Of zeros of both signs these take either, by the order they meet them in.
_CHOOSING = ("amax", "amin", "aminmax", "max", "min", "maximum", "minimum", "fmax", "fmin", "cummax", "cummin")


@dataclass(frozen=True, slots=True)
class References:
    """What one output of a graph is, by each way of computing it.

    Attributes:
        eager: by torch's operators.
        exact: in double precision.
        singly: by torch's operators, element by element (`reference.run_singly`), where that was needed.
    """

    eager: Tensor
    exact: Tensor
    singly: Tensor | None = None

    @property
    def scale(self) -> float:
        """The greatest finite magnitude of the exact result; 0 where there is none."""
        return float(self.exact.abs().nan_to_num_(0.0, posinf=0.0).max())

    @property
    def error(self) -> float:
        """The greatest distance of an eager result to the exact one, where both are finite."""
        off = [_distance(x, self.exact) for x in self.by_eager]
        return max(float(x.nan_to_num_(0.0, posinf=0.0).max()) for x in off)

    @property
    def by_eager(self) -> tuple[Tensor, ...]:
        return (self.eager,) if self.singly is None else (self.eager, self.singly)


def choosing(graph: SubGraph) -> bool:
    """Whether `graph` picks one of several elements, so that the sign of a zero is not told by its operators."""
    return not {node.op.split(".")[1] for node in graph.nodes}.isdisjoint(_CHOOSING)


def equal(fused: Tensor, eager: Tensor) -> bool:
    """Whether two results are bit for bit the same, which settles the matter: the common case, and cheap to tell."""
    if layout_differs(fused, eager):
        return False
    bits = _BITS.get(fused.dtype)
    return torch.equal(fused, eager) if bits is None else torch.equal(fused.view(bits), eager.view(bits))


def disagreement(fused: Tensor, among: References, relative: float, *, signs: bool) -> str:
    """What is wrong with a kernel's output on made data, as a sentence; "" where nothing is.

    Each element must be NaN or infinite where some reference is so, and else be as near to one of them as 4 times
    eager's worst error and 2 ulp allow. A zero must have the sign that all references give it.

    Args:
        fused: the kernel's output.
        among: the references.
        relative: eager's worst error over its scale on data of this kind at any size, as far as it is known.
        signs: whether signs of zeros count.
    """
    layout = layout_differs(fused, among.eager)
    if layout or not fused.numel():
        return layout
    references = (*among.by_eager, among.exact.to(fused.dtype))
    if not fused.is_floating_point():
        return _told(_none(fused == x for x in references), "differ from eager's")
    special = ~fused.isfinite()
    wrong = special & _none((fused == x) | (fused.isnan() & x.isnan()) for x in references)
    if bool(wrong.any()):
        return _told(wrong, "are NaN or infinite where eager's are not")
    off = torch.stack([_distance(fused, x).nan_to_num_(math.inf) for x in (*among.by_eager, among.exact)]).amin(0)
    finite = torch.where(among.exact.isfinite(), among.exact, 0.0)
    own = _DOUBLE_ULPS * torch.finfo(torch.float64).eps if fused.dtype is torch.float64 else 0.0
    error = max(among.error, max(relative, own) * among.scale)
    wrong = ~special & (off > _FACTOR * error + _ULPS * ulp(finite, fused.dtype))
    if bool(wrong.any()):
        return _told(wrong, f"are off by up to {float(off[wrong].max()):.3g}")
    return _told(_other_signs(fused, references), "are zeros of the other sign") if signs else ""


def _other_signs(fused: Tensor, references: tuple[Tensor, ...]) -> Tensor:
    """Where a result is a zero of another sign than the one that all references have."""
    negative = references[0].signbit()
    told = fused == 0
    for reference in references:
        told = told & (reference == 0) & (reference.signbit() == negative)
    return told & (fused.signbit() != negative)


def _none(matches: Iterable[Tensor]) -> Tensor:
    return ~functools.reduce(torch.logical_or, matches)


def _distance(values: Tensor, exact: Tensor) -> Tensor:
    return (values.double() - exact.double()).abs()


def _told(wrong: Tensor, how: str) -> str:
    count = int(wrong.sum())
    return f"{count} of {wrong.numel()} elements {how}." if count else ""
