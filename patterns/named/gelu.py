"""GELU (Hendrycks and Gimpel 2016), where a model writes it out beside a matrix product that has the bias inside."""

from __future__ import annotations

import functools

import torch

from ..graph import SubGraph
from ..symbols import symbol
from .pattern import GraphBuilder, Pattern


def create_gelu_pattern(approximate: str = "none", dtype: torch.dtype = torch.float32, device: str = "cpu") -> SubGraph:
    """gelu(x).

    Args:
        approximate: "none" or "tanh", as in `torch.nn.functional.gelu`.
        dtype: of all values.
        device: device type of all values.

    Returns:
        a SubGraph with the input "x" [s0, s1] and the output "output" [s0, s1].
    """
    b = GraphBuilder(device)
    x = b.input("x", dtype, (symbol("s0"), symbol("s1")))
    made = b.call("gelu.default", x, kwargs=(("approximate", approximate),), name="output")
    return b.graph(made).with_pattern("GELU")


PATTERNS = tuple(
    Pattern("GELU", functools.partial(create_gelu_pattern, approximate)) for approximate in ("none", "tanh")
)
