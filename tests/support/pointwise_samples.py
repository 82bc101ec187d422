"""Samples of calls, for every pointwise row of the operator table."""

from __future__ import annotations

import math

import torch
from sample_values import FIRST, NO, OTHER, ROW, SECOND, SPECIAL, YES, Sample, X, Y, positive, sample


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
