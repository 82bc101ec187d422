"""RoPE: rotary position embedding (Su et al. 2021) in the half-split form of Llama and its kin."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from ..graph import Ref, SubGraph
from ..symbols import Dim, symbol
from .pattern import FULL, GraphBuilder, Pattern, dense_strides


def create_rope_pattern(head_dim: int = 128, dtype: torch.dtype = torch.float32, device: str = "cpu") -> SubGraph:
    """x * cos + rotate_half(x) * sin, with rotate_half(x) = cat(-x[..., d/2:], x[..., :d/2]).

    Args:
        head_dim: d, even.
        dtype: of all values.
        device: device type of all values.

    Returns:
        a SubGraph with inputs "x" [s0, s1, s2, d] (batch, heads, positions), "cos" and "sin" [s0, s2, d], and the
        output "output" [s0, s1, s2, d].
    """
    b = GraphBuilder(device)
    batch, heads, length = symbol("s0"), symbol("s1"), symbol("s2")
    x = b.input("x", dtype, (batch, heads, length, head_dim))
    cos, sin = (b.input(name, dtype, (batch, length, head_dim)) for name in ("cos", "sin"))
    return b.graph(rotate(b, x, cos, sin, (batch, heads, length, head_dim))).with_pattern("RoPE")


def rotate(
    b: GraphBuilder, x: Ref, cos: Ref, sin: Ref, shape: Sequence[Dim], order: Sequence[int] = (0, 1, 2, 3)
) -> Ref:
    """Writes the rotation of `x` of `shape` [b, h, s, d] by `cos` and `sin` [b, s, d]; the result is "output".

    `order` is that of the dimensions of `x` in memory. torch keeps it in results of pointwise operators, cat does not.
    """
    batch, _, length, size = shape
    half = size // 2
    angle_shape = (batch, 1, length, size)
    cos, sin = (b.call("unsqueeze.default", angle, 1, shape=angle_shape) for angle in (cos, sin))
    part_shape, strides = (*shape[:-1], half), b.specs[x.name].strides
    upper = b.call("slice.Tensor", x, 3, half, FULL, shape=part_shape, strides=strides)
    lower = b.call("slice.Tensor", x, 3, 0, half, shape=part_shape, strides=strides)
    negated = b.call("neg.default", upper, shape=part_shape, strides=dense_strides(part_shape, order))
    rotated = b.call("mul.Tensor", b.call("cat.default", (negated, lower), -1, shape=shape), sin)
    dense = dense_strides(shape, order)
    straight = b.call("mul.Tensor", x, cos, shape=shape, strides=dense)
    return b.call("add.Tensor", straight, rotated, shape=shape, strides=dense, name="output")


PATTERNS = (Pattern("RoPE", create_rope_pattern),)
