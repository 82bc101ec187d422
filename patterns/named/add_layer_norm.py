"""Add+LayerNorm: a residual addition and the normalisation of its sum; both handed on, or only the norm."""

from __future__ import annotations

import functools

import torch

from ..graph import SubGraph
from ..symbols import Dim, symbol
from .layer_norm import WIDTH, affine_inputs, normalise_layer
from .pattern import GraphBuilder, Pattern


def create_add_layer_norm_pattern(
    eps: float = 1e-5,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    affine: str = "weight+bias",
    written: bool = False,
) -> SubGraph:
    """sum = residual + x; output = LayerNorm(sum).

    Args:
        eps: added to the variance.
        dtype: of the inputs and outputs; the moments are taken in float32.
        device: device type of all values.
        affine: "weight+bias", "weight" or "none".
        written: False for torch's operator, of rows of 128; True for pointwise operators and means.

    Returns:
        a SubGraph with inputs "x" and "residual" [s0, s1] and (as `affine` says) "weight" [s1] and "bias" [s1], and the
        outputs "output" (normalised) and "sum", both [s0, s1]; s1 is 128 unless `written`.
    """
    b = GraphBuilder(device)
    shape: tuple[Dim, ...] = (symbol("s0"), symbol("s1") if written else WIDTH)
    x, residual = b.input("x", dtype, shape), b.input("residual", dtype, shape)
    vectors = affine_inputs(b, dtype, shape, affine)
    total = b.call("add.Tensor", residual, x, name="sum")
    return b.graph(normalise_layer(b, total, vectors, dtype, eps, written), total).with_pattern("Add+LayerNorm")


PATTERNS = tuple(
    Pattern("Add+LayerNorm", functools.partial(create_add_layer_norm_pattern, affine=affine, written=True))
    for affine in ("weight+bias", "weight", "none")
)
