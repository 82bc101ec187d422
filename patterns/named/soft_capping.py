"""Soft-capping: numbers kept between -cap and cap by a tanh (Gemma 2, 2024; Bello et al. 2016 for logits)."""

from __future__ import annotations

import math

import torch

from ..graph import SubGraph
from ..leaves import Ref
from ..symbols import symbol
from .pattern import GraphBuilder, Pattern


def create_soft_capping_pattern(cap: float = 30.0, dtype: torch.dtype = torch.float32, device: str = "cpu") -> SubGraph:
    """tanh(x / cap) * cap.

    Args:
        cap: the bound.
        dtype: of all values.
        device: device type of all values.

    Returns:
        a SubGraph with the input "x" [s0, s1] and the output "output" [s0, s1].
    """
    b = GraphBuilder(device)
    x = b.input("x", dtype, (symbol("s0"), symbol("s1")))
    return b.graph(soft_cap(b, x, cap, name="output")).with_pattern("soft-capping")


def soft_cap(b: GraphBuilder, x: Ref, cap: float, name: str | None = None) -> Ref:
    """Writes the soft-capping of `x`."""
    return b.call("mul.Tensor", b.call("tanh.default", b.call("div.Tensor", x, cap)), cap, name=name)


def is_one_cap(inverse: float, cap: float) -> bool:
    """Whether the tanh is stretched by what its operand was divided by."""
    return math.isclose(inverse * cap, 1.0, rel_tol=1e-6)


PATTERNS = (Pattern("soft-capping", create_soft_capping_pattern, holds=is_one_cap),)
