"""QK-norm+RoPE: Qwen3's queries and keys, normalised per head, transposed and rotated."""

from __future__ import annotations

import torch

from ..graph import SubGraph
from ..symbols import as_dim, symbol
from .pattern import GraphBuilder, Pattern, dense_strides
from .rms_norm import normalise
from .rope import rotate


def create_qk_norm_rope_pattern(
    head_dim: int = 128, eps: float = 1e-6, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> SubGraph:
    """RoPE(RMSNorm(x per head), transposed to [batch, heads, positions, d]).

    Args:
        head_dim: d, even.
        eps: added to the mean square.
        dtype: of the inputs and the output; the mean is taken in float32.
        device: device type of all values.

    Returns:
        a SubGraph with inputs "x" [s0, s1, s2*d] (batch, positions, heads times d), "weight" [d], "cos" and "sin"
        [s0, s1, d], and the output "output" [s0, s2, s1, d].
    """
    b = GraphBuilder(device)
    batch, length, heads = symbol("s0"), symbol("s1"), symbol("s2")
    x = b.input("x", dtype, (batch, length, as_dim(heads * head_dim)))
    weight = b.input("weight", dtype, (head_dim,))
    cos, sin = (b.input(name, dtype, (batch, length, head_dim)) for name in ("cos", "sin"))
    split = (batch, length, heads, head_dim)
    normed = normalise(b, b.call("view.default", x, split, shape=split), weight, split, dtype, eps, name=None)
    shape, order = (batch, heads, length, head_dim), (0, 2, 1, 3)
    turned = b.call("transpose.int", normed, 1, 2, shape=shape, strides=dense_strides(shape, order))
    return b.graph(rotate(b, turned, cos, sin, shape, order)).with_pattern("QK-norm+RoPE")


PATTERNS = (Pattern("QK-norm+RoPE", create_qk_norm_rope_pattern),)
