"""GEGLU: the gated unit with gelu, of T5 v1.1 and Gemma (Shazeer 2020, "GLU Variants Improve Transformer")."""

from __future__ import annotations

import functools

import torch

from ..graph import SubGraph
from ..symbols import symbol
from .pattern import GraphBuilder, Pattern


def create_geglu_pattern(
    approximate: str = "none", dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> SubGraph:
    """gelu(gate) * up.

    Args:
        approximate: "none" or "tanh", as in `torch.nn.functional.gelu`.
        dtype: of all values.
        device: device type of all values.

    Returns:
        a SubGraph with inputs "gate" and "up", both [s0, s1], and the output "output" [s0, s1].
    """
    b = GraphBuilder(device)
    gate = b.input("gate", dtype, (symbol("s0"), symbol("s1")))
    up = b.input("up", dtype, (symbol("s0"), symbol("s1")))
    activated = b.call("gelu.default", gate, kwargs=(("approximate", approximate),))
    return b.graph(b.call("mul.Tensor", activated, up, name="output")).with_pattern("GEGLU")


PATTERNS = tuple(
    Pattern("GEGLU", functools.partial(create_geglu_pattern, approximate)) for approximate in ("none", "tanh")
)
