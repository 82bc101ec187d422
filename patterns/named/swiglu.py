"""SwiGLU: the gated unit of Llama and its kin (Shazeer 2020, "GLU Variants Improve Transformer")."""

from __future__ import annotations

import torch

from ..graph import SubGraph
from ..symbols import symbol
from .pattern import GraphBuilder, Pattern


def create_swiglu_pattern(dtype: torch.dtype = torch.float32, device: str = "cpu") -> SubGraph:
    """silu(gate) * up.

    Args:
        dtype: of all values.
        device: device type of all values.

    Returns:
        a SubGraph with inputs "gate" and "up", both [s0, s1], and the output "output" [s0, s1].
    """
    b = GraphBuilder(device)
    gate = b.input("gate", dtype, (symbol("s0"), symbol("s1")))
    up = b.input("up", dtype, (symbol("s0"), symbol("s1")))
    activated = b.call("silu.default", gate)
    return b.graph(b.call("mul.Tensor", activated, up, name="output")).with_pattern("SwiGLU")


PATTERNS = (Pattern("SwiGLU", create_swiglu_pattern),)
