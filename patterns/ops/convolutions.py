"""Convolutions as matrix products: an element is a sum over the channels and the places of a window.

Those in groups, and transposed ones, stay library calls.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import indexing, symbols
from ..indexing import Index
from ..symbols import Dim
from .products import FLOATS
from .table import Call, Contraction, Kind, Operator, register


def _settings(call: Call) -> tuple[Sequence[Dim], Sequence[Dim], Sequence[Dim]]:
    """Stride, padding in front and dilation, each with a number for every dimension of the window."""
    window = call.inputs[1].shape[2:]

    def numbers(position: int, name: str, default: int) -> tuple[Dim, ...]:
        given = call.argument(position, name, default)
        whole = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        return whole * len(window) if len(whole) == 1 else whole

    dilation = numbers(5, "dilation", 1)
    match call.argument(4, "padding", 0):
        case "valid":
            padding: tuple[Dim, ...] = (0,) * len(window)
        case "same":
            padding = tuple(symbols.floor_div(d * (w - 1), 2) for w, d in zip(window, dilation, strict=True))
        case _:
            padding = numbers(4, "padding", 0)
    return numbers(3, "stride", 1), padding, dilation


def _covers(call: Call) -> str | None:
    x, weight = call.inputs[:2]
    dtypes = {spec.dtype for spec in (*call.inputs, *call.outputs)}
    if len(dtypes) > 1 or not dtypes <= set(FLOATS):
        return f"a convolution of {', '.join(sorted(map(str, dtypes)))}"
    if len(x.shape) != len(weight.shape):
        return "a convolution without a batch"
    if call.argument(6, "groups", 1) != 1:
        return "a convolution in groups"
    if not all(isinstance(n, int) and n > 0 for n in weight.shape):
        return "a window whose size varies"
    if symbols.product(weight.shape[1:]) == 1:
        return "a convolution that adds nothing up"
    return None


def _convolution(call: Call, index: Index, k: Dim) -> Contraction:
    """x[b, c, at * stride + within * dilation - padding] * weight[n, c, within], plus bias[n]; k is (c, within)."""
    shape, weight = call.inputs[0].shape, call.inputs[1].shape
    extent = symbols.product(weight[1:])
    channel, *within = indexing.delinearize(k, weight[1:], {str(k): extent})
    batch, lane, *places = index
    each = zip(places, within, *_settings(call), strict=True)
    at = [p * stride + w * dilation - padding for p, w, stride, padding, dilation in each]
    inside = tuple((i, n) for i, n, pad in zip(at, shape[2:], _settings(call)[1], strict=True) if pad != 0)
    left, right = (0, (batch, channel, *at)), (1, (lane, channel, *within))
    return Contraction(left, right, extent, (2, (lane,)) if len(call.inputs) > 2 else None, inside=inside)


for op in ("conv1d.default", "conv1d.padding", "conv2d.default", "conv2d.padding"):
    register(
        Operator(
            f"aten.{op}", Kind.PRODUCT, contraction=_convolution, covers=_covers,
            note="without groups; summed in float32, rounded once",
        )
    )  # fmt: skip
