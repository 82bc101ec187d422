"""Attention weights: softmax of scaled and masked scores (Vaswani et al. 2017)."""

from __future__ import annotations

import functools
import itertools

import torch

from ..graph import SubGraph
from ..symbols import symbol
from .pattern import GraphBuilder, Pattern


def create_softmax_pattern(
    scale: float | None = 0.125, mask: str = "add", dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> SubGraph:
    """softmax(scores * scale + mask) over the last dimension, taken in float32.

    Args:
        scale: factor of the scores, or None.
        mask: "add" for an additive mask of `dtype`, "fill" for a bool mask, true where -inf is filled in, or "none".
        dtype: of the scores, the additive mask and the output.
        device: device type of all values.

    Returns:
        a SubGraph with inputs "scores" [s0, s1, s2, s3] and (unless "none") "mask" [s0, 1, s2, s3], and the output
        "output" [s0, s1, s2, s3].
    """
    b = GraphBuilder(device)
    batch, heads, queries, keys = (symbol(f"s{i}") for i in range(4))
    x = b.input("scores", dtype, (batch, heads, queries, keys))
    if mask != "none":
        masked = b.input("mask", dtype if mask == "add" else torch.bool, (batch, 1, queries, keys))
    if scale is not None:
        x = b.call("mul.Tensor", x, scale)
    if mask == "add":
        x = b.call("add.Tensor", x, masked)
    elif mask == "fill":
        x = b.call("masked_fill.Scalar", x, masked, float("-inf"))
    is_last = dtype is torch.float32
    weights = b.call("softmax.int", x, -1, torch.float32, dtype=torch.float32, name="output" if is_last else None)
    return b.graph(b.convert(weights, dtype, name="output")).with_pattern(
        "scaled softmax" if mask == "none" else "masked softmax"
    )


PATTERNS = (
    *(
        Pattern("masked softmax", functools.partial(create_softmax_pattern, scale, mask))
        for scale, mask in itertools.product((0.125, None), ("add", "fill"))
    ),
    Pattern("scaled softmax", functools.partial(create_softmax_pattern, 0.125, "none")),
)
