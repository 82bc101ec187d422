"""Routers of mixtures of experts: the arithmetic before and after the top-k, which is a library operator.

Sources: Shazeer et al. 2017 (top-k gating); Jiang et al. 2024 (Mixtral: the chosen weights add up to one); DeepSeek-AI
2024 (DeepSeek-V3: sigmoid scores, chosen by score plus bias, a small number under the fraction, a scaling factor).
"""

from __future__ import annotations

import functools
import itertools

import torch

from ..graph import SubGraph
from ..symbols import symbol
from .pattern import GraphBuilder, Pattern


def create_router_scores_pattern(
    scoring: str = "sigmoid", dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> SubGraph:
    """scores = sigmoid(logits) or softmax(logits); choice = scores + bias.

    Args:
        scoring: "sigmoid" or "softmax" (over the experts).
        dtype: of all values.
        device: device type of all values.

    Returns:
        a SubGraph with inputs "logits" [s0, s1] (tokens, experts) and "bias" [s1], and the outputs "choice", which the
        top-k ranks, and "scores", which it takes the weights from; both [s0, s1].
    """
    b = GraphBuilder(device)
    logits, bias = b.input("logits", dtype, (symbol("s0"), symbol("s1"))), b.input("bias", dtype, (symbol("s1"),))
    if scoring == "softmax":
        scores = b.call("softmax.int", logits, -1, name="scores")
    else:
        scores = b.call("sigmoid.default", logits, name="scores")
    return b.graph(b.call("add.Tensor", scores, bias, name="choice"), scores).with_pattern("router scores")


def create_router_weights_pattern(
    guard: str = "none",
    scale: float | None = None,
    scoring: str = "none",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> SubGraph:
    """scores / sum(scores) * scale, of the experts that a token goes to.

    Args:
        guard: what keeps the sum from 0: "none", "add" for a small number added, "clamp" for a least value.
        scale: factor of the weights, or None.
        scoring: "sigmoid" where the input is logits; "none" where it is scores.
        dtype: of all values.
        device: device type of all values.

    Returns:
        a SubGraph with the input "chosen" [s0, s1] (tokens, chosen experts) and the output "output" [s0, s1].
    """
    b = GraphBuilder(device)
    scores = b.input("chosen", dtype, (symbol("s0"), symbol("s1")))
    if scoring == "sigmoid":
        scores = b.call("sigmoid.default", scores)
    total = b.per_row("sum.dim_IntList", scores)
    if guard == "add":
        total = b.call("add.Tensor", total, 1e-20)
    elif guard == "clamp":
        total = b.call("clamp.default", total, 1e-12)
    made = b.call("div.Tensor", scores, total, name="output" if scale is None else None)
    if scale is not None:
        made = b.call("mul.Tensor", made, scale, name="output")
    return b.graph(made).with_pattern("router weights")


PATTERNS = (
    *(
        Pattern("router scores", functools.partial(create_router_scores_pattern, scoring), vectors=("bias",))
        for scoring in ("sigmoid", "softmax")
    ),
    *(
        Pattern("router weights", functools.partial(create_router_weights_pattern, guard, scale, scoring))
        for scoring, guard, scale in itertools.product(("none", "sigmoid"), ("none", "add", "clamp"), (None, 2.5))
    ),
)
