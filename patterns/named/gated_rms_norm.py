"""Gated RMSNorm: the norm after a state-space or linear-attention layer, gated by silu before it or after it.

Before: Dao and Gu 2024, Mamba-2. After: Yang et al. 2024, Gated DeltaNet.
"""

from __future__ import annotations

import functools

import torch

from ..graph import SubGraph
from ..symbols import symbol
from .pattern import GraphBuilder, Pattern
from .rms_norm import normalise


def create_gated_rms_norm_pattern(
    gate: str = "before", eps: float = 1e-6, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> SubGraph:
    """RMSNorm(x * silu(gate)), or RMSNorm(x) * silu(gate).

    Args:
        gate: "before" or "after" the norm.
        eps: added to the mean square.
        dtype: of the inputs and the output; the norm and the gate are computed in float32.
        device: device type of all values.

    Returns:
        a SubGraph with inputs "x" and "gate" [s0, s1] and "weight" [s1], and the output "output" [s0, s1].
    """
    b = GraphBuilder(device)
    shape = (symbol("s0"), symbol("s1"))
    x, z = b.input("x", dtype, shape), b.input("gate", dtype, shape)
    weight = b.input("weight", dtype, shape[-1:])
    opened = b.call("silu.default", b.convert(z, torch.float32))
    if gate == "before":
        gated = b.call("mul.Tensor", b.convert(x, torch.float32), opened)
        made = normalise(b, gated, weight, shape, dtype, eps)
    else:
        normed = normalise(b, x, weight, shape, dtype, eps, name=None)
        made = b.call("mul.Tensor", normed, opened, name="output" if dtype is torch.float32 else None)
        made = b.convert(made, dtype, name="output")
    return b.graph(made).with_pattern("gated RMSNorm")


PATTERNS = tuple(
    Pattern("gated RMSNorm", functools.partial(create_gated_rms_norm_pattern, gate)) for gate in ("before", "after")
)
