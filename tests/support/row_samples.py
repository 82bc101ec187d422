"""Samples of calls, for every row of the operator table, and torch's results on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest
import torch

from fusion.patterns.leaves import leaves, map_leaves
from fusion.patterns.ops import TABLE, Kind, Operator, resolve


class Sample(NamedTuple):
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}  # noqa: RUF012 -- a NamedTuple's default, never written to


def sample(*args: Any, **kwargs: Any) -> Sample:
    return Sample(args, kwargs)


def real(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(*shape: int) -> torch.Tensor:
    return real(*shape).abs() + 0.1


X, Y, ROW = real(4, 6), real(4, 6, seed=1), real(6, seed=2)  # ROW broadcasts
SPECIAL = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 0.5, -1.5, 2.5, 40.0, -40.0], dtype=torch.float64)
OTHER = torch.tensor([1.0, -2.0, 3.0, 0.5, -0.5, math.inf, math.nan, 0.75, -7.0, 6.0], dtype=torch.float64)
FIRST, SECOND = torch.arange(-12, 12).view(4, 6), torch.arange(5, 29).view(4, 6)
YES, NO = FIRST % 2 == 0, FIRST % 3 == 0


def unary(*more: torch.Tensor) -> list[Sample]:
    return [sample(x) for x in (X, SPECIAL, *more)]


def binary() -> list[Sample]:
    return [sample(X, Y), sample(X, ROW), sample(SPECIAL, OTHER)]


def with_number(*numbers: float) -> list[Sample]:
    return [sample(x, n) for x in (X, SPECIAL) for n in numbers]


def integers() -> list[Sample]:
    return [sample(FIRST, SECOND), sample(YES, NO)]


MODES = (None, "trunc", "floor")
SHIFTED = [sample(FIRST, SECOND), sample(FIRST, FIRST), sample(FIRST, SECOND * 3)]

POINTWISE: dict[str, list[Sample]] = {
    "add.Tensor": [*binary(), sample(X, Y, alpha=0.5), sample(X, 2.0), sample(YES, NO), *integers()],
    "add.Scalar": [*with_number(2.0), sample(X, 2.0, 3)],
    "sub.Tensor": [*binary(), sample(X, ROW, alpha=2), sample(FIRST, SECOND)],
    "sub.Scalar": [*with_number(2.0), sample(X, 2.0, 3)],
    "rsub.Tensor": [*binary(), sample(X, Y, alpha=2)],
    "rsub.Scalar": [*with_number(1.0), sample(X, 2.0, 3)],
    "mul.Tensor": [*binary(), sample(X, 0.3), *integers()],
    "mul.Scalar": with_number(0.3),
    "div.Tensor": [*binary(), sample(X, 3.0), sample(1.0 * YES.double(), OTHER[:1])],
    "div.Scalar": with_number(3.0),
    "pow.Tensor_Scalar": [*with_number(1, 2, 3, -1, -2, 0.5, 2.0, 0), sample(positive(4, 6), -0.5)]
    + [sample(positive(4, 6), e) for e in (0.5, 1.7, -2.3)],
    "pow.Tensor_Tensor": [sample(positive(4, 6), Y), sample(positive(4, 6), ROW)],
    "remainder.Scalar": [sample(X, 0.7), sample(X, -0.7), sample(SPECIAL, 2.0)],
    "remainder.Tensor": [sample(X, Y), sample(FIRST, SECOND), sample(FIRST, -SECOND)],
    "where.self": [sample(YES, X, Y), sample(YES, X, ROW), sample(YES, X, torch.tensor(2.0, dtype=torch.float64))],
    "where.ScalarOther": [sample(YES, X, -1.5), sample(YES, X, -math.inf)],
    "where.ScalarSelf": [sample(YES, -1.5, X)],
    "where.Scalar": [sample(YES, 2.0, -1.0)],
    "masked_fill.Scalar": [sample(X, YES, -1.5), sample(X, YES[0], -math.inf)],
    "masked_fill.Tensor": [sample(X, YES, torch.tensor(-1.5, dtype=torch.float64))],
    "clamp.default": [sample(X, -0.5, 0.5), sample(X, -0.5), sample(X, None, 0.5), sample(SPECIAL, max=1.0)],
    "clamp.Tensor": [sample(X, Y, Y + 1), sample(X, None, ROW), sample(SPECIAL, OTHER)],
    "clamp_min.default": with_number(-0.5),
    "clamp_max.default": with_number(0.5),
    "clamp_min.Tensor": binary(),
    "clamp_max.Tensor": binary(),
    "addcmul.default": [sample(X, Y, ROW), sample(X, Y, X, value=0.5), sample(FIRST, SECOND, SECOND, value=3)],
    "addcdiv.default": [sample(X, Y, positive(6)), sample(X, Y, positive(4, 6), value=0.5)],
    "lerp.Scalar": [sample(X, Y, 0.3), sample(X, ROW, 0.8)],
    "lerp.Tensor": [sample(X, Y, ROW), sample(X, Y, X)],
    "pow.Scalar": [sample(2.0, X), sample(10000, X), sample(1.0, SPECIAL)],
    "div.Tensor_mode": [sample(x, y, rounding_mode=m) for x, y in ((X, Y), (SPECIAL, OTHER)) for m in MODES],
    "div.Scalar_mode": [sample(X, -0.7, rounding_mode=m) for m in MODES]
    + [sample(FIRST, -3, rounding_mode=m) for m in ("trunc", "floor")],
    "floor_divide.default": [*binary(), sample(FIRST, 5), sample(FIRST, -5)],
    "floor_divide.Scalar": [*with_number(0.7), sample(FIRST, 4)],
    "remainder.Scalar_Tensor": [sample(7.5, X), sample(-2.0, SPECIAL)],
    "fmod.Scalar": [*with_number(0.7), sample(FIRST, -4)],
    "fmod.Tensor": [*binary(), sample(FIRST, SECOND)],
    "round.decimals": [sample(X, decimals=d) for d in (0, 2, -1)],
    "heaviside.default": [sample(SPECIAL, OTHER)],
    "atan2.default": binary(),
    "hypot.default": binary(),
    "logaddexp.default": binary(),
    "logit.default": [sample(X.sigmoid()), sample(X, 0.1), sample(X.sigmoid(), 0.2), sample(X, 0.7), sample(X, 1e-6)],
    "xlogy.Tensor": [sample(X, positive(4, 6)), sample(SPECIAL, OTHER)],
    "xlogy.Scalar_Other": [sample(SPECIAL, 0.5)],
    "xlogy.Scalar_Self": [sample(0.0, SPECIAL), sample(2.0, positive(4, 6))],
    "elu.default": [*unary(), sample(X, 0.7, 1.3, 0.6)],
    "celu.default": [*unary(), sample(X, 0.7)],
    "hardtanh.default": [*unary(), sample(X, -0.2, 0.4)],
    "threshold.default": [sample(X, 0.1, 20.0), sample(SPECIAL, 0.5, -1.0)],
    "hardshrink.default": [*unary(), sample(X, 0.2)],
    "softshrink.default": [*unary(), sample(X, 0.2)],
    "erfinv.default": [sample(X.tanh()), sample(torch.tensor([0.0, -0.0, 1.0, -1.0, 1.5, math.nan], dtype=X.dtype))],
    "acosh.default": [sample(X.abs() + 1), sample(SPECIAL)],
    "nan_to_num.default": [*unary(), sample(SPECIAL, 1.0, 2.0, -3.0)],
    "copy.default": [sample(X, Y.float()), sample(X, ROW), sample(FIRST, X)],
    "fill.Tensor": [sample(X, torch.tensor(2.5, dtype=torch.float64))],
    "bitwise_left_shift.Tensor": SHIFTED,
    "bitwise_right_shift.Tensor": SHIFTED,
    "bitwise_left_shift.Tensor_Scalar": [sample(FIRST, 3), sample(FIRST, 70)],
    "bitwise_right_shift.Tensor_Scalar": [sample(FIRST, 3), sample(FIRST, 70)],
    "bitwise_left_shift.Scalar_Tensor": [sample(-5, SECOND)],
    "bitwise_right_shift.Scalar_Tensor": [sample(-5, SECOND)],
    "to.other": [sample(X, FIRST), sample(FIRST, X)],
    "leaky_relu.default": [*unary(), sample(X, 0.2)],
    "softplus.default": [*unary(X * 30), sample(X, 2.0, 1.0)],
    "gelu.default": [*unary(), sample(X, approximate="tanh"), sample(SPECIAL, approximate="tanh")],
    "bitwise_not.default": [sample(FIRST), sample(YES)],
    "logical_not.default": [*unary(), sample(FIRST), sample(YES)],
    "to.dtype": [sample(X, torch.float32), sample(X * 3, torch.int64), sample(FIRST, torch.bool)],
    "to.dtype_layout": [sample(X, dtype=torch.float32), sample(X, dtype=torch.float16)],
    "to.device": [sample(X, torch.device("cpu"), torch.bfloat16)],
    "_to_copy.default": [sample(X, dtype=torch.float16)],
    "type_as.default": [sample(X, FIRST), sample(X, Y.float())],
}
for _name in ("log", "log1p", "sqrt", "rsqrt", "log2", "log10"):
    POINTWISE[f"{_name}.default"] = unary(positive(4, 6))
for _name in (
    "neg", "abs", "floor", "ceil", "trunc", "round", "exp", "expm1", "sin", "cos", "tanh", "erf", "sign", "sigmoid",
    "silu", "relu", "log_sigmoid", "square", "reciprocal", "frac", "sgn", "deg2rad", "rad2deg", "sinh", "cosh", "asinh",
    "atanh", "sinc", "tan", "atan", "asin", "acos", "exp2", "mish", "selu", "relu6", "hardsigmoid", "hardswish",
    "isnan", "isinf", "isposinf", "isneginf", "isfinite",
):  # fmt: skip
    POINTWISE[f"{_name}.default"] = unary()
for _name in ("maximum.default", "max.other", "minimum.default", "min.other"):
    POINTWISE[_name] = [*binary(), sample(YES, NO)]
for _name in ("fmax", "fmin"):
    POINTWISE[f"{_name}.default"] = binary()
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    POINTWISE[f"{_name}.Tensor"] = [*binary(), sample(X, X), sample(FIRST, SECOND)]
    POINTWISE[f"{_name}.Scalar"] = [*with_number(0.5), sample(FIRST, 3)]
for _name in ("and", "or", "xor"):
    POINTWISE[f"bitwise_{_name}.Tensor"] = integers()
    POINTWISE[f"bitwise_{_name}.Scalar"] = [sample(FIRST, 6), sample(YES, True)]
    POINTWISE[f"bitwise_{_name}.Scalar_Tensor"] = [sample(6, FIRST), sample(True, YES)]
    POINTWISE[f"logical_{_name}.default"] = [
        sample(X, Y),
        sample(YES, NO),
        sample(FIRST, SECOND),
        sample(SPECIAL, OTHER),
    ]

MASKED = X.masked_fill(YES, -math.inf)  # rows with some -inf
OVER_ROWS = [X, X[:, :1], MASKED, torch.full((2, 3), -math.inf, dtype=torch.float64), real(2, 3, 5), X * 300]


def over_rows(dim: Any, *rest: Any, **kwargs: Any) -> list[Sample]:
    return [sample(x, dim, *rest, **kwargs) for x in OVER_ROWS]


def by_dimension(*rest: Any, one: bool = False, **kwargs: Any) -> list[Sample]:
    """Over the last dimension of rows with special values, and over others of a box."""
    dims: tuple[Any, ...] = (0, 1, -1) if one else ((0,), (-2,), (0, 2), (0, 1, 2), (-1,))
    last: Any = -1 if one else (-1,)
    return [*over_rows(last, *rest, **kwargs), *(sample(SOLID, d, *rest, **kwargs) for d in dims)]


def without_dimension(*rest: Any, **kwargs: Any) -> list[Sample]:
    return [sample(x, *rest, **kwargs) for x in (X, ROW, SOLID, SPECIAL)]


SOLID = real(3, 4, 5, seed=4)
TIES = (real(3, 4, 5, seed=5) * 2).round()
MASK = TIES > 0
WEIGHT, BIAS = real(5, seed=6), real(5, seed=7)
PLANE = real(4, 5, seed=8)
_EXTREMES = [*over_rows(-1), *(sample(TIES, d) for d in (0, 1, -1)), sample(TIES.long(), 1), sample(MASK, 0)]
_TRUTHS = [sample(TIES, 1), sample(MASK, 0), sample(MASK, -1, True), sample(SPECIAL.view(2, 5), 1)]
_NORMS = [sample(SOLID, p, d) for p in (2, 1, 0, math.inf, -math.inf, 3, 0.5) for d in (1, (0, 2), -1)]
_OF_LAYER = [
    sample(SOLID, (5,)), sample(SOLID, (5,), WEIGHT), sample(SOLID, (5,), WEIGHT, BIAS),
    sample(SOLID, (5,), None, BIAS), sample(SOLID, (4, 5), PLANE, None, 0.1),
    sample(SOLID, (5,), weight=WEIGHT, bias=BIAS, eps=0.5),
]  # fmt: skip

REDUCTIONS: dict[str, list[Sample]] = {
    "sum.default": [*without_dimension(), sample(MASK), sample(TIES.int())],
    "sum.dim_IntList": [
        *by_dimension(), *by_dimension(True), sample(ROW, None), sample(SOLID, ()), sample(MASK, (1,)),
        sample(TIES.long(), (0,)), sample(MASK, (1,), dtype=torch.float64),
    ],
    "mean.default": without_dimension(),
    "mean.dim": [*by_dimension(), *by_dimension(True), sample(X, (1,)), sample(MASK, (0,), dtype=torch.float64)],
    "nansum.default": [*by_dimension(), sample(SPECIAL)],
    "prod.default": [*without_dimension(), sample(TIES[0].long())],
    "prod.dim_int": [*by_dimension(one=True), sample(MASK, 1)],
    "count_nonzero.default": [sample(TIES), sample(MASK), sample(TIES, 1), sample(SPECIAL)],
    "count_nonzero.dim_IntList": [sample(TIES, (0, 2)), sample(MASK, (1,))],
    "max.default": [*without_dimension(), sample(TIES.int()), sample(MASK)],
    "min.default": [*without_dimension(), sample(TIES.int()), sample(MASK)],
    "max.dim": _EXTREMES,
    "min.dim": [*_EXTREMES, sample(TIES, 1, True)],
    "amax.default": [*by_dimension(True), sample(ROW), sample(SOLID, ()), sample(MASK, (0, 2))],
    "amin.default": [*by_dimension(True), sample(X, (1,)), sample(TIES.int(), (1,))],
    "argmax.default": [*_EXTREMES[:-1], sample(TIES), sample(SPECIAL)],
    "argmin.default": [*_EXTREMES[:-1], sample(TIES, 1, True), sample(TIES)],
    "aminmax.default": [sample(SOLID), sample(SOLID, dim=1), sample(SPECIAL, dim=0, keepdim=True), sample(MASK, dim=2)],
    "any.default": [sample(TIES), sample(MASK), sample(SPECIAL[:2])],
    "any.dim": _TRUTHS,
    "any.dims": [sample(MASK, (0, 2)), sample(TIES, None)],
    "all.default": [sample(TIES), sample(MASK), sample(SPECIAL[2:])],
    "all.dim": _TRUTHS,
    "all.dims": [sample(MASK, (0, 2)), sample(TIES, None)],
    "linalg_vector_norm.default": [*_NORMS, sample(SOLID), sample(SPECIAL, math.inf)],
    "linalg_norm.default": [sample(SOLID), sample(SOLID, None, (1,)), sample(SOLID, 1, 1), sample(SOLID, 3, (-1,))],
    "norm.Scalar": [sample(SOLID), sample(SOLID, 1)],
    "norm.ScalarOpt_dtype": [sample(SOLID, None, dtype=torch.float64), sample(SOLID, 3, dtype=torch.float64)],
    "norm.ScalarOpt_dim": [*_NORMS, sample(SOLID, None, (1,), True)],
    "norm.ScalarOpt_dim_dtype": [sample(SOLID, 2, (1,), True, dtype=torch.float64)],
    "logsumexp.default": [*by_dimension(), *by_dimension(True)],
    "softmax.int": [*by_dimension(one=True), sample(X, 1, torch.float64), sample(TIES.long(), 1, torch.float64)],
    "_softmax.default": by_dimension(False, one=True),
    "special_softmax.default": by_dimension(one=True),
    "_safe_softmax.default": [*by_dimension(one=True), sample(torch.full((2, 3), -math.inf, dtype=torch.float64), 1)],
    "log_softmax.int": by_dimension(one=True),
    "_log_softmax.default": by_dimension(False, one=True),
    "special_log_softmax.default": by_dimension(one=True),
    "layer_norm.default": _OF_LAYER,
    "native_layer_norm.default": [
        sample(SOLID, (5,), WEIGHT, BIAS, 1e-5), sample(SOLID, (4, 5), None, None, 0.1),
        sample(SOLID, (5,), None, BIAS, 0.1),
    ],
    "rms_norm.default": [
        sample(SOLID, (5,)), sample(SOLID, (5,), WEIGHT, 0.1), sample(SOLID, (4, 5), PLANE),
        sample(SOLID, (5,), eps=0.1, weight=WEIGHT),
    ],
    "_fused_rms_norm.default": [sample(SOLID, (5,), WEIGHT, 0.1), sample(SOLID, (4, 5), None, None)],
    "cumsum.default": [*over_rows(-1), *(sample(SOLID, d) for d in (0, 1)), sample(MASK, 1), sample(TIES.int(), 2)],
    "cumprod.default": [*over_rows(-1), *(sample(SOLID, d) for d in (0, 1)), sample(TIES.int(), 2)],
}  # fmt: skip
for _name in ("var", "std", "var_mean", "std_mean"):
    REDUCTIONS[f"{_name}.default"] = [*without_dimension()[:3], sample(SOLID, False)]
    REDUCTIONS[f"{_name}.dim"] = [*by_dimension(), sample(SOLID, (1,), False), sample(SOLID, (0, 2), True, True)]
    REDUCTIONS[f"{_name}.correction"] = [
        *by_dimension(correction=0), *by_dimension(correction=2.5), sample(SOLID), sample(X, (1,), correction=None),
        sample(SOLID, (1,), keepdim=True),
    ]  # fmt: skip


def counted(*shape: int) -> torch.Tensor:
    return torch.arange(math.prod(shape)).view(shape)


BOX = counted(2, 3, 4)
ONES = counted(1, 3, 1, 4)

VIEWS: dict[str, list[Sample]] = {
    "contiguous.default": [sample(BOX.transpose(0, 1))],
    "view.default": [sample(BOX, s) for s in ((6, 4), (2, 12), (24,), (2, 2, 6), (2, 3, 1, 4), (2, 3, 2, 2), (4, 6))],
    "reshape.default": [sample(BOX, (3, 8)), sample(BOX.transpose(0, 2), (4, 6)), sample(counted(1), ())],
    "_unsafe_view.default": [sample(BOX, (6, 4))],
    "flatten.using_ints": [sample(BOX), sample(BOX, 1), sample(BOX, 0, 1)],
    "unflatten.int": [sample(BOX, 2, (2, 2)), sample(BOX, -1, (4, 1))],
    "squeeze.default": [sample(ONES)],
    "squeeze.dim": [sample(ONES, 0), sample(ONES, 1), sample(ONES, -2)],
    "squeeze.dims": [sample(ONES, (0, 2)), sample(ONES, (1, 2))],
    "view_as.default": [sample(BOX, counted(6, 4))],
    "reshape_as.default": [sample(BOX, counted(3, 8))],
    "transpose.int": [sample(BOX, 0, 1), sample(BOX, -1, 0), sample(BOX, 1, 1)],
    "t.default": [sample(counted(3, 4)), sample(counted(5))],
    "numpy_T.default": [sample(counted(3, 4)), sample(BOX)],
    "mT.default": [sample(BOX)],
    "permute.default": [sample(BOX, (2, 0, 1)), sample(BOX, (-1, 1, 0))],
    "unsqueeze.default": [sample(BOX, d) for d in (0, 2, 3, -1, -4)],
    "expand.default": [sample(ONES, (5, 3, 2, 4)), sample(ONES, (-1, 3, 6, -1)), sample(counted(4), (2, 3, 4))],
    "expand_as.default": [sample(counted(4), BOX)],
    "broadcast_to.default": [sample(counted(3, 1), (2, 3, 4))],
    "slice.Tensor": [
        sample(BOX), sample(BOX, 2, 1, 3), sample(BOX, 2, 2, 2**63 - 1), sample(BOX, -1, None, 2),
        sample(BOX, 2, -2, 4), sample(BOX, 1, 0, 3, 2), sample(BOX, 2, 1, 4, 2), sample(BOX, 1, 3, 5),
    ],
    "select.int": [sample(BOX, 0, 1), sample(BOX, -1, 2), sample(BOX, 1, -1)],
    "narrow.default": [sample(BOX, 1, 1, 2), sample(BOX, -1, 0, 3), sample(BOX, 2, -2, 2)],
    "chunk.default": [sample(BOX, 2, 2), sample(BOX, 2, -2), sample(BOX, 2)],
    "unsafe_chunk.default": [sample(BOX, 2, 2)],
    "split.Tensor": [sample(BOX, 2, 1), sample(BOX, 1)],
    "split.sizes": [sample(BOX, (1, 3), -1)],
    "split.default": [sample(BOX, (1, 3), -1)],
    "split_with_sizes.default": [sample(BOX, (1, 3), 2), sample(BOX, (1, 1))],
    "unbind.int": [sample(BOX), sample(BOX, 1), sample(BOX, -1)],
}  # fmt: skip
VIEWS |= {
    "ravel.default": [sample(BOX)],
    "atleast_1d.default": [sample(counted(1).view(()))],
    "atleast_2d.default": [sample(counted(5))],
    "atleast_3d.default": [sample(counted(5)), sample(counted(5, 2))],
    "mH.default": [sample(BOX)],
    "adjoint.default": [sample(BOX)],
    "unsafe_split.Tensor": [sample(BOX, 2, 1)],
    "unsafe_split_with_sizes.default": [sample(BOX, (1, 3), 2)],
    "tensor_split.sections": [sample(BOX, 2, 1), sample(BOX, 3, -1)],
    "tensor_split.indices": [sample(BOX, (1, 3), 2), sample(BOX, (1, 9), 2), sample(BOX, (), 0)],
    "vsplit.int": [sample(BOX, 2)],
    "hsplit.int": [sample(BOX, 3), sample(counted(6), 2)],
    "dsplit.int": [sample(BOX, 2)],
    "vsplit.array": [sample(BOX, (1,))],
    "hsplit.array": [sample(BOX, (1, 2))],
    "dsplit.array": [sample(BOX, (1, 3))],
    "movedim.int": [sample(BOX, 0, 2), sample(BOX, -1, 0), sample(BOX, 1, 1)],
    "movedim.intlist": [sample(BOX, (0, 1), (1, 2)), sample(BOX, (2, 0), (0, -1))],
    "flip.default": [sample(BOX, (0,)), sample(BOX, (-1, 1)), sample(BOX, ())],
    "flipud.default": [sample(BOX)],
    "fliplr.default": [sample(BOX)],
    "repeat.default": [sample(BOX, (2, 1, 3)), sample(BOX, (2, 1, 1, 2)), sample(counted(3), (2, 2))],
    "tile.default": [sample(BOX, (2,)), sample(BOX, (2, 1, 1, 2)), sample(counted(3), (2, 2))],
    "repeat_interleave.self_int": [sample(BOX, 3, 1), sample(BOX, 2, -1), sample(BOX, 2)],
    "diagonal.default": [sample(BOX), sample(BOX, 1, 1, 2), sample(BOX, -1, 2, 0)],
    "unfold.default": [sample(BOX, 2, 2, 1), sample(BOX, 1, 3, 2), sample(counted(9), 0, 4, 2)],
}
for _name in ("alias", "detach", "clone", "lift_fresh", "positive"):
    VIEWS[f"{_name}.default"] = [sample(BOX), sample(BOX.transpose(0, 1))]

PIECES = [
    sample((counted(2, 3), counted(2, 2) + 50), 1),
    sample((BOX, BOX[:1] + 50, BOX + 90)),
    sample((BOX, BOX), -2),
    sample((YES, FIRST, X)),
]
LIKE = [sample(X), sample(FIRST.t()), sample(X, dtype=torch.float32)]
ELEMENTS: dict[str, list[Sample]] = {
    "cat.default": PIECES,
    "stack.default": [sample((BOX, BOX + 50)), sample((X, Y, X), 1), sample((X, Y, X), -1), sample((X,))],
    "pad.default": [sample(BOX, (1, 2)), sample(X, (0, 2, 3, 0), "constant", 0.5), sample(BOX, (-1, 1, 0, -1, 1, 0))],
    "constant_pad_nd.default": [sample(BOX, (1, 2, 3, 4), 7), sample(X, (-2, -1)), sample(YES, (1, 1), True)],
    "triu.default": [sample(m, k) for m in (BOX, X, YES) for k in (-5, -1, 0, 1, 2, 9)],
    "tril.default": [sample(m, k) for m in (BOX, X, YES) for k in (-5, -1, 0, 1, 2, 9)],
    "diff.default": [
        sample(X), sample(X, 1, 0), sample(YES, 1, -1), sample(X, 1, -1, Y[:, :2]), sample(X, 1, -1, None, Y),
        sample(X, 1, 1, append=Y[:, :1], prepend=Y[:, 1:2]),
    ],
    "roll.default": [
        sample(ROW, (2,)),
        *(sample(BOX, *moves) for moves in (((1,), (0,)), ((2, -1), (1, 2)), ((-9,), (2,)), ((1, 1), (2, 2)))),
    ],
    "glu.default": [sample(X), sample(X, 0)],
    "slice_scatter.default": [sample(X, Y[:, 1:3], 1, 2, 4), sample(X, Y[:2], 0, 1, 3), sample(X, Y[1:], 0, -3)],
    "select_scatter.default": [sample(X, Y[0], 0, 2), sample(X, Y[:, 0], 1, -1)],
    "zeros.default": [sample((2, 3)), sample((), dtype=torch.int64)],
    "ones.default": [sample((2, 3), dtype=torch.bool)],
    "full.default": [sample((2, 3), 2.5), sample((4,), 7), sample((2,), True), sample((2,), -math.inf)],
    "zeros_like.default": LIKE, "ones_like.default": LIKE, "zero.default": LIKE[:2],
    "full_like.default": [sample(X, 2.5), sample(FIRST, 3), sample(FIRST, 2.5, dtype=torch.float64)],
    "fill.Scalar": [sample(X, 2.5), sample(FIRST, 3)],
    "new_zeros.default": [sample(X, (2, 2))],
    "new_ones.default": [sample(FIRST, (3,)), sample(X, (3,), dtype=torch.bool)],
    "new_full.default": [sample(X, (3,), 1.5)],
    "scalar_tensor.default": [sample(1.5), sample(3, dtype=torch.int64)],
    "arange.default": [sample(7), sample(7.5), sample(5, dtype=torch.float64), sample(5, dtype=torch.int32)],
    "arange.start": [sample(2, 9), sample(-1.5, 3.0)],
    "arange.start_step": [sample(0, 9, 2), sample(9, 0, -3), sample(0.0, 1.0, 0.1), sample(0, 8, 2, dtype=X.dtype)],
    "eye.default": [sample(4), sample(3, dtype=torch.bool)],
    "eye.m": [sample(2, 5), sample(4, 3, dtype=torch.int64)],
    "linspace.default": [sample(-1.0, 3.0, 9), sample(0, 1, 4, dtype=torch.float64), sample(2.0, 5.0, 1)],
}  # fmt: skip

SAMPLES: Mapping[Kind, Mapping[str, list[Sample]]] = {
    Kind.POINTWISE: POINTWISE, Kind.REDUCTION: REDUCTIONS, Kind.VIEW: VIEWS, Kind.ELEMENT: ELEMENTS,
}  # fmt: skip


def rows(kind: Kind) -> list[Any]:
    return [pytest.param(row, id=op) for op, row in TABLE.items() if row.kind is kind]


def samples_of(row: Operator) -> list[Sample]:
    found = SAMPLES[row.kind].get(row.op.removeprefix("aten."))
    assert found, f"{row.op} has a row in the operator table but no sample in row_samples.py: add one"
    return found


def torch_result(row: Operator, s: Sample) -> tuple[torch.Tensor, ...]:
    made = resolve(row.op)(*s.args, **s.kwargs)
    return (made,) if isinstance(made, torch.Tensor) else tuple(made)


def tensors_of(s: Sample) -> list[torch.Tensor]:
    """The sample's tensors, in the order `called` takes them."""
    return [x for x in leaves((s.args, tuple(s.kwargs.values()))) if isinstance(x, torch.Tensor)]


def called(row: Operator, s: Sample, *tensors: torch.Tensor) -> Any:
    """The sample's call on other tensors."""
    left = iter(tensors)

    def fill(tree: Any) -> Any:
        return map_leaves(lambda leaf: next(left) if isinstance(leaf, torch.Tensor) else leaf, tree)

    return resolve(row.op)(*fill(s.args), **{name: fill(value) for name, value in s.kwargs.items()})
