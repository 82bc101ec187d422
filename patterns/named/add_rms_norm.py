"""Add+RMSNorm: a residual addition and the normalisation of its sum, both handed on.

RMSNorm+Add: a layer's result normalised before it is added (Gemma 2, OLMo 2); RMSNorm+Add+RMSNorm: both.
"""

from __future__ import annotations

import functools
import itertools

import torch

from ..graph import SubGraph
from ..symbols import symbol
from .pattern import GraphBuilder, Pattern
from .rms_norm import normalise


def create_add_rms_norm_pattern(
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    scaling: str = "weight",
    scale: float | None = None,
) -> SubGraph:
    """sum = residual + x * scale; output = RMSNorm(sum).

    Args:
        eps: added to the mean square.
        dtype: of the inputs and outputs; the mean is taken in float32.
        device: device type of all values.
        scaling: "weight", or "offset" for (1 + weight), as in Gemma.
        scale: factor of x, as in Granite, or None.

    Returns:
        a SubGraph with inputs "x" and "residual" [s0, s1] and "weight" [s1], and the outputs "output" (normalised)
        and "sum", both [s0, s1].
    """
    b = GraphBuilder(device)
    shape = (symbol("s0"), symbol("s1"))
    x, residual = b.input("x", dtype, shape), b.input("residual", dtype, shape)
    weight = b.input("weight", dtype, shape[-1:])
    if scale is not None:
        x = b.call("mul.Tensor", x, scale)
    total = b.call("add.Tensor", residual, x, name="sum")
    return b.graph(normalise(b, total, weight, shape, dtype, eps, scaling), total).with_pattern("Add+RMSNorm")


def create_rms_norm_add_pattern(
    eps: float = 1e-6,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    scaling: str = "weight",
    norms: bool = True,
    next_eps: float | None = None,
) -> SubGraph:
    """sum = residual + RMSNorm(x); output = RMSNorm(sum), with other weights.

    Args:
        eps: added to the mean squares.
        dtype: of the inputs and outputs; the means are taken in float32.
        device: device type of all values.
        scaling: "weight", or "offset" for (1 + weight), as in Gemma.
        norms: whether the sum is normalised too.
        next_eps: added to the mean square of the sum; None for `eps`.

    Returns:
        a SubGraph with inputs "x" and "residual" [s0, s1], "weight" and (if the sum is normalised) "next_weight" [s1],
        and the outputs "output" (if the sum is normalised) and "sum", both [s0, s1].
    """
    b = GraphBuilder(device)
    shape = (symbol("s0"), symbol("s1"))
    x, residual = b.input("x", dtype, shape), b.input("residual", dtype, shape)
    weight = b.input("weight", dtype, shape[-1:])
    normed = normalise(b, x, weight, shape, dtype, eps, scaling, name=None)
    total = b.call("add.Tensor", residual, normed, name="sum")
    if not norms:
        return b.graph(total).with_pattern("RMSNorm+Add")
    following = b.input("next_weight", dtype, shape[-1:])
    output = normalise(b, total, following, shape, dtype, eps if next_eps is None else next_eps, scaling)
    return b.graph(output, total).with_pattern("RMSNorm+Add+RMSNorm")


PATTERNS = (
    *(
        Pattern("Add+RMSNorm", functools.partial(create_add_rms_norm_pattern, scaling=scaling, scale=scale))
        for scale, scaling in itertools.product((None, 0.22), ("weight", "offset"))
    ),
    *(
        Pattern(name, functools.partial(create_rms_norm_add_pattern, scaling=scaling, norms=norms, next_eps=1e-5))
        for norms, name in ((True, "RMSNorm+Add+RMSNorm"), (False, "RMSNorm+Add"))
        for scaling in ("weight", "offset")
    ),
)
