"""LayerNorm (Ba, Kiros and Hinton 2016), as torch's operator and as models write it out, the moments in float32."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from ..graph import SubGraph
from ..leaves import Ref
from ..symbols import Dim, symbol
from .pattern import GraphBuilder, Pattern

WIDTH = 128  # of the rows: the operator takes it as a number, so a graph of it has one
_AFFINE = ("weight+bias", "weight", "none")


def create_layer_norm_pattern(
    eps: float = 1e-5,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    affine: str = "weight+bias",
    written: bool = False,
) -> SubGraph:
    """(x - mean(x)) * rsqrt(mean((x - mean(x))^2) + eps) * weight + bias.

    Args:
        eps: added to the variance.
        dtype: of the inputs and the output; the moments are taken in float32.
        device: device type of all values.
        affine: "weight+bias"; "weight" for no bias, as in Cohere; "none" for neither, as in OLMo.
        written: False for torch's operator, of rows of 128; True for pointwise operators and means.

    Returns:
        a SubGraph with inputs "x" [s0, s1] and (as `affine` says) "weight" [s1] and "bias" [s1], and the output
        "output" [s0, s1]; s1 is 128 unless `written`.
    """
    b = GraphBuilder(device)
    shape: tuple[Dim, ...] = (symbol("s0"), symbol("s1") if written else WIDTH)
    x = b.input("x", dtype, shape)
    vectors = affine_inputs(b, dtype, shape, affine)
    return b.graph(normalise_layer(b, x, vectors, dtype, eps, written)).with_pattern("LayerNorm")


def affine_inputs(b: GraphBuilder, dtype: torch.dtype, shape: Sequence[Dim], affine: str) -> tuple[Ref, ...]:
    """The inputs "weight" and "bias", as `affine` says."""
    names = {"weight+bias": ("weight", "bias"), "weight": ("weight",), "none": ()}[affine]
    return tuple(b.input(name, dtype, shape[-1:]) for name in names)


def normalise_layer(
    b: GraphBuilder, x: Ref, vectors: Sequence[Ref], dtype: torch.dtype, eps: float, written: bool
) -> Ref:
    """Writes a LayerNorm of `x` over its last dimension, with weight and bias in `vectors`; the result is "output"."""
    if not written:
        padded = (*vectors, None, None)[:2]
        return b.call("layer_norm.default", x, b.specs[x.name].shape[-1:], *padded, eps, shape=b.specs[x.name].shape,
                      name="output")  # fmt: skip
    wide = b.convert(x, torch.float32)
    centred = b.call("sub.Tensor", wide, b.per_row("mean.dim", wide))
    variance = b.per_row("mean.dim", b.call("pow.Tensor_Scalar", centred, 2))
    made = b.call("mul.Tensor", centred, b.call("rsqrt.default", b.call("add.Tensor", variance, eps)),
                  name=None if vectors or dtype is not torch.float32 else "output")  # fmt: skip
    for op, vector in zip(("mul.Tensor", "add.Tensor"), vectors, strict=False):
        is_last = vector is vectors[-1] and dtype is torch.float32
        made = b.call(op, b.convert(vector, torch.float32), made, name="output" if is_last else None)
    return b.convert(made, dtype, name="output")


PATTERNS = tuple(
    Pattern("LayerNorm", functools.partial(create_layer_norm_pattern, affine=affine, written=True))
    for affine in _AFFINE
)
