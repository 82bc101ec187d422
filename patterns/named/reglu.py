"""ReGLU: the gated unit with relu (Shazeer 2020, "GLU Variants Improve Transformer")."""

from __future__ import annotations

import torch

from ..graph import SubGraph
from ..symbols import symbol
from .pattern import GraphBuilder, Pattern


def create_reglu_pattern(dtype: torch.dtype = torch.float32, device: str = "cpu") -> SubGraph:
    """relu(gate) * up.

    Args:
        dtype: of all values.
        device: device type of all values.

    Returns:
        a SubGraph with inputs "gate" and "up", both [s0, s1], and the output "output" [s0, s1].
    """
    b = GraphBuilder(device)
    shape = (symbol("s0"), symbol("s1"))
    gate, up = b.input("gate", dtype, shape), b.input("up", dtype, shape)
    return b.graph(b.call("mul.Tensor", b.call("relu.default", gate), up, name="output")).with_pattern("ReGLU")


PATTERNS = (Pattern("ReGLU", create_reglu_pattern),)
