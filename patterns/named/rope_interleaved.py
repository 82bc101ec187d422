"""Interleaved RoPE: rotary position embedding of neighbouring pairs (Su et al. 2021; GPT-J, Cohere, GLM)."""

from __future__ import annotations

import functools

import torch

from ..graph import SubGraph
from ..symbols import symbol
from .pattern import FULL, GraphBuilder, Pattern


def create_interleaved_rope_pattern(
    head_dim: int = 128, dtype: torch.dtype = torch.float32, device: str = "cpu", angles: str = "repeated"
) -> SubGraph:
    """x * cos + rotate(x) * sin, where rotate makes (-b, a) of each pair (a, b) of neighbours.

    Args:
        head_dim: d, even.
        dtype: of all values.
        device: device type of all values.
        angles: "repeated" for a cosine and a sine per element; "pairs" for one per pair, repeated here.

    Returns:
        a SubGraph with inputs "x" [s0, s1, s2, d] (batch, heads, positions), "cos" and "sin" [s0, s2, d] (d/2 for
        pairs), and the output "output" [s0, s1, s2, d].
    """
    b = GraphBuilder(device)
    batch, heads, length = symbol("s0"), symbol("s1"), symbol("s2")
    shape, pairs = (batch, heads, length, head_dim), head_dim // 2
    x = b.input("x", dtype, shape)
    size = pairs if angles == "pairs" else head_dim
    cos, sin = (b.input(name, dtype, (batch, length, size)) for name in ("cos", "sin"))
    cos, sin = (b.call("unsqueeze.default", a, 1, shape=(batch, 1, length, size)) for a in (cos, sin))
    if angles == "pairs":
        wide = (batch, 1, length, head_dim)
        cos, sin = (b.call("repeat_interleave.self_int", a, 2, 3, shape=wide) for a in (cos, sin))
    part, (*outer, _) = (*shape[:-1], pairs), b.specs[x.name].strides
    even, odd = (b.call("slice.Tensor", x, 3, start, FULL, 2, shape=part, strides=(*outer, 2)) for start in (0, 1))
    turned = b.call("stack.default", (b.call("neg.default", odd), even), -1, shape=(*part, 2))
    turned = b.call("flatten.using_ints", turned, -2, shape=shape)
    straight = b.call("mul.Tensor", x, cos)
    return b.graph(b.call("add.Tensor", straight, b.call("mul.Tensor", turned, sin), name="output")).with_pattern(
        "interleaved RoPE"
    )


PATTERNS = tuple(
    Pattern("interleaved RoPE", functools.partial(create_interleaved_rope_pattern, angles=angles))
    for angles in ("pairs", "repeated")
)
