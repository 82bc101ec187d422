"""Interleaved RoPE: rotary position embedding of neighbouring pairs (Su et al. 2021; GPT-J, Cohere, GLM)."""

from __future__ import annotations

import functools

import torch

from ..graph import SubGraph
from ..symbols import symbol
from .pattern import FULL, GraphBuilder, Pattern


def create_interleaved_rope_pattern(
    head_dim: int = 128,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    angles: str = "repeated",
    rest: int = 0,
) -> SubGraph:
    """x * cos + rotate(x) * sin, where rotate makes (-b, a) of each pair (a, b) of neighbours.

    Args:
        head_dim: d, even.
        dtype: of all values.
        device: device type of all values.
        angles: "repeated" for a cosine and a sine per element; "pairs" for one per pair, repeated here.
        rest: elements of a head that are not rotated, and follow those that are (partial rotary embedding).

    Returns:
        a SubGraph with inputs "x" [s0, s1, s2, d] (batch, heads, positions), "cos" and "sin" [s0, s2, d] (d/2 for
        pairs) and, where `rest` is not 0, "rest" [s0, s1, s2, rest]; and the output "output" [s0, s1, s2, d + rest].
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
    straight, turned = b.call("mul.Tensor", x, cos), b.call("mul.Tensor", turned, sin)
    made = b.call("add.Tensor", straight, turned, name=None if rest else "output")
    if rest:
        kept = b.input("rest", dtype, (*shape[:-1], rest))
        made = b.call("cat.default", (made, kept), -1, shape=(*shape[:-1], head_dim + rest), name="output")
    return b.graph(made).with_pattern("interleaved RoPE")


PATTERNS = tuple(
    Pattern("interleaved RoPE", functools.partial(create_interleaved_rope_pattern, angles=angles, rest=rest))
    for rest in (0, 32)
    for angles in ("pairs", "repeated")
)
