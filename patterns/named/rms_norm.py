"""RMSNorm (Zhang and Sennrich 2019) as transformers writes it: the variance in float32, the weight in its own dtype."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from ..graph import SubGraph
from ..leaves import Ref
from ..symbols import Dim, symbol
from .pattern import GraphBuilder, Pattern


def create_rms_norm_pattern(
    eps: float = 1e-6, dtype: torch.dtype = torch.float32, device: str = "cpu", scaling: str = "weight"
) -> SubGraph:
    """weight * (x * rsqrt(mean(x^2) + eps)).

    Args:
        eps: added to the mean square.
        dtype: of the inputs and the output; the mean is taken in float32.
        device: device type of all values.
        scaling: "weight"; "offset" for (1 + weight), as in Gemma; "none" for no weight.

    Returns:
        a SubGraph with inputs "x" [s0, s1] and (unless "none") "weight" [s1], and the output "output" [s0, s1].
    """
    b = GraphBuilder(device)
    shape = (symbol("s0"), symbol("s1"))
    x = b.input("x", dtype, shape)
    weight = None if scaling == "none" else b.input("weight", dtype, shape[-1:])
    return b.graph(normalise(b, x, weight, shape, dtype, eps, scaling)).with_pattern("RMSNorm")


def normalise(
    b: GraphBuilder,
    x: Ref,
    weight: Ref | None,
    shape: Sequence[Dim],
    dtype: torch.dtype,
    eps: float,
    scaling: str = "weight",
    name: str | None = "output",
) -> Ref:
    """Writes an RMSNorm of `x` over its last dimension; `name` is the result's."""
    per_row = (*shape[:-1], 1)
    wide = b.convert(x, torch.float32)
    squares = b.call("pow.Tensor_Scalar", wide, 2, shape=shape)
    mean = b.call("mean.dim", squares, (-1,), True, shape=per_row)
    scale = b.call("rsqrt.default", b.call("add.Tensor", mean, eps, shape=per_row), shape=per_row)
    is_last = weight is None
    normed = b.call("mul.Tensor", wide, scale, shape=shape, name=name if is_last and dtype is torch.float32 else None)
    normed = b.convert(normed, dtype, name=name if is_last else None)
    if weight is None:
        return normed
    factor = weight if scaling == "weight" else b.call("add.Tensor", weight, 1)
    return b.call("mul.Tensor", factor, normed, shape=shape, name=name)


PATTERNS = tuple(
    Pattern("RMSNorm", functools.partial(create_rms_norm_pattern, scaling=scaling))
    for scaling in ("weight", "offset", "none")
)
