"""Whether a kernel's result on made data is one that eager could give: `accept` for values that are at the edge.

On such data eager's own result may depend on where an element lies, overflow where the exact one does not, or be right
by chance. A kernel is held to what every reference agrees on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .graph import SubGraph
from .verify import layout_differs, ulp

# Made tensors are small: eager's worst error on them is a small sample of what it can be, so the factor is looser than
# `verify.EAGER_FACTOR`. How exact a kernel is, the user's data tells; here a wrong one is wrong by far more.
_FACTOR = 4.0
_ULPS = 2.0
# Of zeros of both signs these take either, by the order they meet them in.
_CHOOSING = ("amax", "amin", "aminmax", "max", "min", "maximum", "minimum", "fmax", "fmin", "cummax", "cummin")


@dataclass(frozen=True, slots=True)
class References:
    """What one output of a graph is, by each way of computing it.

    Attributes:
        eager: by torch's operators.
        singly: by them, element by element (`reference.run_singly`).
        exact: in double precision.
    """

    eager: Tensor
    singly: Tensor
    exact: Tensor

    @property
    def scale(self) -> float:
        """The greatest finite magnitude of the exact result; 0 where there is none."""
        finite = torch.where(self.exact.isfinite(), self.exact, 0.0).abs()
        return float(finite.max()) if finite.numel() else 0.0

    @property
    def error(self) -> float:
        """The greatest distance of an eager result to the exact one, where both are finite."""
        if not self.eager.is_floating_point() or not self.eager.numel():
            return 0.0
        return max(float(_distance(x, self.exact).nan_to_num(0.0, posinf=0.0).max()) for x in (self.eager, self.singly))


def choosing(graph: SubGraph) -> bool:
    """Whether `graph` picks one of several elements, so that the sign of a zero is not told by its operators."""
    return not {node.op.split(".")[1] for node in graph.nodes}.isdisjoint(_CHOOSING)


def disagreement(fused: Tensor, among: References, relative: float, *, signs: bool) -> str:
    """What is wrong with a kernel's output on made data, as a sentence; "" where nothing is.

    Each element must be NaN or infinite where some reference is so, and else be as near to one of them as 4 times
    eager's worst error and 2 ulp allow. A zero must have the sign that all references give it.

    Args:
        fused: the kernel's output.
        among: the references.
        relative: eager's worst error over its scale on data of this kind at any size.
        signs: whether signs of zeros count.
    """
    layout = layout_differs(fused, among.eager)
    if layout or not fused.numel():
        return layout
    if not fused.is_floating_point():
        wrong = (fused != among.eager) & (fused != among.singly) & (fused != among.exact)
        return _told(wrong, "differ from eager's")
    rounded = among.exact.to(fused.dtype)
    references = (among.eager, among.singly, rounded)
    special = ~fused.isfinite()
    same = [(fused == x) | (fused.isnan() & x.isnan()) for x in references]
    wrong = special & ~(same[0] | same[1] | same[2])
    if bool(wrong.any()):
        return _told(wrong, "are NaN or infinite where eager's are not")
    nearest = torch.stack([_distance(fused, x) for x in (among.eager, among.singly, among.exact)])
    off = nearest.nan_to_num(math.inf).amin(0)
    finite = torch.where(among.exact.isfinite(), among.exact, among.eager.double().nan_to_num(0.0, posinf=0.0, neginf=0.0))
    allowed = _FACTOR * max(among.error, relative * among.scale) + _ULPS * ulp(finite, fused.dtype)
    wrong = ~special & (off > allowed)
    if bool(wrong.any()):
        return _told(wrong, f"are off by up to {float(off[wrong].max()):.3g}")
    if not signs:
        return ""
    zero = (fused == 0) & (among.eager == 0) & (among.singly == 0) & (rounded == 0)
    negative = among.eager.signbit()
    told = zero & (among.singly.signbit() == negative) & (rounded.signbit() == negative)
    return _told(told & (fused.signbit() != negative), "are zeros of the other sign")


def _distance(values: Tensor, exact: Tensor) -> Tensor:
    return (values.double() - exact.double()).abs()


def _told(wrong: Tensor, how: str) -> str:
    count = int(wrong.sum())
    return f"{count} of {wrong.numel()} elements {how}." if count else ""
