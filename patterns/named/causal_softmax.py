"""Causal softmax: attention weights whose mask is computed from positions and never stored (Vaswani et al. 2017)."""

from __future__ import annotations

import functools
import itertools

import torch

from ..graph import SubGraph
from ..leaves import Ref
from ..symbols import Dim, as_dim, symbol
from .pattern import GraphBuilder, Pattern
from .softmax import attention_weights

_MASKS = ("select", "fill", "add", "triangle", "tril", "triu")
_HIDDEN = -1e9  # any number stands for it: a least value, or -inf


def create_causal_softmax_pattern(
    scale: float | None = 0.125,
    mask: str = "select",
    past: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> SubGraph:
    """softmax over the keys that are no later than the query, taken in float32.

    Args:
        scale: factor of the scores, or None.
        mask: how it is made. By comparing positions: "select" by `where`, "fill" by `masked_fill`, "add" for an
            additive mask. By a triangle: "tril" of ones, "triu" of ones, "triangle" for an additive one.
        past: whether queries come after keys that were there before, so that there are more keys than queries;
            by comparing positions only.
        dtype: of the scores and the output.
        device: device type of all values.

    Returns:
        a SubGraph with the input "scores" [s0, s1, s2, s3] (batch, heads, queries, keys; s3 = s2 without a past), and
        the output "output" of the same shape.
    """
    b = GraphBuilder(device)
    batch, heads, queries = (symbol(f"s{i}") for i in range(3))
    keys = symbol("s3") if past else queries
    x = b.input("scores", dtype, (batch, heads, queries, keys))
    if scale is not None:
        x = b.call("mul.Tensor", x, scale)
    if mask in ("tril", "triu", "triangle"):
        x = _by_triangle(b, x, mask, queries, dtype)
    else:
        x = _by_position(b, x, mask, queries, keys, dtype)
    return b.graph(attention_weights(b, x, dtype)).with_pattern("causal softmax")


def _by_position(b: GraphBuilder, x: Ref, mask: str, queries: Dim, keys: Dim, dtype: torch.dtype) -> Ref:
    query = b.call("arange.default", queries, shape=(queries,), dtype=torch.int64)
    if queries is not keys:
        query = b.call("add.Tensor", query, as_dim(keys - queries))
    query = b.call("unsqueeze.default", query, 1, shape=(queries, 1))
    key = b.call("arange.default", keys, shape=(keys,), dtype=torch.int64)
    key = b.call("unsqueeze.default", key, 0, shape=(1, keys))
    if mask == "fill":
        return b.call("masked_fill.Scalar", x, b.compare("gt.Tensor", key, query), _HIDDEN, dtype=dtype)
    seen = b.compare("le.Tensor", key, query)
    if mask == "select":
        return b.call("where.ScalarOther", seen, x, _HIDDEN, dtype=dtype)
    added = b.convert(b.call("where.Scalar", seen, 0.0, _HIDDEN, dtype=torch.float32), dtype)
    return b.call("add.Tensor", x, added)


def _by_triangle(b: GraphBuilder, x: Ref, mask: str, size: Dim, dtype: torch.dtype) -> Ref:
    square = (size, size)
    if mask == "triangle":
        full = b.call("full.default", square, _HIDDEN, shape=square, dtype=dtype, kwargs=(("dtype", dtype),))
        return b.call("add.Tensor", x, b.call("triu.default", full, 1))
    ones = b.call("ones.default", square, shape=square, dtype=torch.bool, kwargs=(("dtype", torch.bool),))
    if mask == "triu":
        return b.call("masked_fill.Scalar", x, b.call("triu.default", ones, 1), _HIDDEN, dtype=dtype)
    return b.call("where.ScalarOther", b.call("tril.default", ones), x, _HIDDEN, dtype=dtype)


PATTERNS = tuple(
    Pattern("causal softmax", functools.partial(create_causal_softmax_pattern, scale, mask, past))
    for scale, mask, past in itertools.product((0.125, None), _MASKS, (False, True))
    if not (past and mask in ("tril", "triu", "triangle"))
)
