"""Attention weights: softmax of scaled and masked scores (Vaswani et al. 2017)."""

from __future__ import annotations

import functools
import itertools

import torch

from ..graph import SubGraph
from ..leaves import Ref
from ..symbols import symbol
from .pattern import GraphBuilder, Pattern
from .soft_capping import is_one_cap, soft_cap


def create_softmax_pattern(
    scale: float | None = 0.125,
    mask: str = "add",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    cap: float | None = None,
) -> SubGraph:
    """softmax(scores * scale + mask) over the last dimension, taken in float32.

    Args:
        scale: factor of the scores, or None.
        mask: "add" for an additive mask of `dtype`; "fill" for a bool mask, true where -inf is filled in, "keep" for
            one that is false there; or "none".
        dtype: of the scores, the additive mask and the output.
        device: device type of all values.
        cap: what the scaled scores are soft-capped to before they are masked, or None.

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
    if cap is not None:
        x = soft_cap(b, x, cap)
    if mask == "add":
        x = b.call("add.Tensor", x, masked)
    elif mask == "fill":
        x = b.call("masked_fill.Scalar", x, masked, float("-inf"))
    elif mask == "keep":
        x = b.call("where.ScalarOther", masked, x, float("-inf"), dtype=dtype)
    return b.graph(attention_weights(b, x, dtype)).with_pattern(_name(mask, cap))


def attention_weights(b: GraphBuilder, x: Ref, dtype: torch.dtype) -> Ref:
    """Writes the softmax of masked scores; the result is "output"."""
    name = "output" if dtype is torch.float32 else None
    return b.convert(b.call("softmax.int", x, -1, torch.float32, dtype=torch.float32, name=name), dtype, name="output")


def _name(mask: str, cap: float | None) -> str:
    what = "scaled softmax" if mask == "none" else "masked softmax"
    return what if cap is None else "soft-capped softmax"


def _is_capped(*numbers: float) -> bool:
    """The soft-capping's numbers come after the scale, if there is one; a mask's comes last."""
    return any(is_one_cap(a, b) for a, b in itertools.pairwise(numbers))


PATTERNS = (
    *(
        Pattern(
            "soft-capped softmax",
            functools.partial(create_softmax_pattern, scale, mask, cap=30.0),
            holds=_is_capped,
        )
        for scale, mask in itertools.product((0.125, None), ("add", "fill", "keep", "none"))
    ),
    *(
        Pattern("masked softmax", functools.partial(create_softmax_pattern, scale, mask))
        for scale, mask in itertools.product((0.125, None), ("add", "fill", "keep"))
    ),
    Pattern("scaled softmax", functools.partial(create_softmax_pattern, 0.125, "none")),
)
