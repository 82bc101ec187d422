"""Residual scaling: a layer's result scaled before it is added, by a number (Granite) or per channel (LayerScale).

LayerScale: Touvron et al. 2021, "Going deeper with Image Transformers".
"""

from __future__ import annotations

import functools

import torch

from ..graph import SubGraph
from ..symbols import symbol
from .pattern import GraphBuilder, Pattern


def create_residual_scaling_pattern(
    scale: float | None = 0.22, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> SubGraph:
    """residual + x * scale.

    Args:
        scale: the number, or None for a factor per channel.
        dtype: of all values.
        device: device type of all values.

    Returns:
        a SubGraph with inputs "x" and "residual" [s0, s1] and (without a number) "scale" [s1], and the output
        "output" [s0, s1].
    """
    b = GraphBuilder(device)
    shape = (symbol("s0"), symbol("s1"))
    x, residual = b.input("x", dtype, shape), b.input("residual", dtype, shape)
    factor = b.input("scale", dtype, shape[-1:]) if scale is None else scale
    scaled = b.call("mul.Tensor", x, factor)
    return b.graph(b.call("add.Tensor", residual, scaled, name="output")).with_pattern("residual scaling")


PATTERNS = tuple(
    Pattern("residual scaling", functools.partial(create_residual_scaling_pattern, scale), vectors=("scale",))
    for scale in (0.22, None)
)
