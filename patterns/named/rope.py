"""RoPE: rotary position embedding (Su et al. 2021) in the half-split form of Llama and its kin."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import torch

from ..graph import SubGraph
from ..leaves import Ref
from ..symbols import Dim, symbol
from .pattern import FULL, GraphBuilder, Pattern, dense_strides


def create_rope_pattern(
    head_dim: int = 128,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    rest: int = 0,
    by_halves: bool = False,
) -> SubGraph:
    """x * cos + rotate_half(x) * sin, with rotate_half(x) = cat(-x[..., d/2:], x[..., :d/2]).

    Args:
        head_dim: d, even.
        dtype: of all values.
        device: device type of all values.
        rest: elements of a head that are not rotated, and follow those that are (partial rotary embedding).
        by_halves: whether it is written cat(a * cos - b * sin, b * cos + a * sin) for the halves a and b of x, with
            angles for one half.

    Returns:
        a SubGraph with inputs "x" [s0, s1, s2, d] (batch, heads, positions), "cos" and "sin" [s0, s2, d] (d/2 by
        halves) and, where `rest` is not 0, "rest" [s0, s1, s2, rest]; and the output "output" [s0, s1, s2, d + rest].
    """
    b = GraphBuilder(device)
    batch, heads, length = symbol("s0"), symbol("s1"), symbol("s2")
    shape = (batch, heads, length, head_dim)
    x = b.input("x", dtype, shape)
    width = head_dim // 2 if by_halves else head_dim
    cos, sin = (b.input(name, dtype, (batch, length, width)) for name in ("cos", "sin"))
    name = None if rest else "output"
    turned = rotate_halves(b, x, cos, sin, shape, name) if by_halves else rotate(b, x, cos, sin, shape, name=name)
    if rest:
        kept = b.input("rest", dtype, (*shape[:-1], rest))
        turned = b.call("cat.default", (turned, kept), -1, shape=(*shape[:-1], head_dim + rest), name="output")
    return b.graph(turned).with_pattern("RoPE")


def rotate_halves(b: GraphBuilder, x: Ref, cos: Ref, sin: Ref, shape: Sequence[Dim], name: str | None) -> Ref:
    """Writes the rotation of `x` of `shape` [b, h, s, d] half by half, by `cos` and `sin` [b, s, d/2]."""
    half = (*shape[:-1], shape[-1] // 2)
    strides = b.specs[x.name].strides
    cos, sin = (b.call("unsqueeze.default", angle, 1, shape=(shape[0], 1, shape[2], half[-1])) for angle in (cos, sin))
    lower, upper = (
        b.call("slice.Tensor", x, 3, start, end, shape=half, strides=strides)
        for start, end in ((0, half[-1]), (half[-1], FULL))
    )
    first = b.call("sub.Tensor", b.call("mul.Tensor", lower, cos), b.call("mul.Tensor", upper, sin))
    second = b.call("add.Tensor", b.call("mul.Tensor", upper, cos), b.call("mul.Tensor", lower, sin))
    return b.call("cat.default", (first, second), -1, shape=shape, name=name)


def rotate(
    b: GraphBuilder,
    x: Ref,
    cos: Ref,
    sin: Ref,
    shape: Sequence[Dim],
    order: Sequence[int] = (0, 1, 2, 3),
    name: str | None = "output",
) -> Ref:
    """Writes the rotation of `x` of `shape` [b, h, s, d] by `cos` and `sin` [b, s, d]; `name` is the result's.

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
    return b.call("add.Tensor", straight, rotated, shape=shape, strides=dense, name=name)


PATTERNS = tuple(
    Pattern("RoPE", functools.partial(create_rope_pattern, rest=rest, by_halves=by_halves))
    for rest, by_halves in itertools.product((0, 32), (False, True))
)
