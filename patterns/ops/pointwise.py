"""Pointwise rows: the result element from the operands' elements.

Operands arrive in the dtype torch computes the operator in (float32 for half precision); the result is rounded to
the operator's result dtype by whoever uses the row.
"""

from __future__ import annotations

import math

import torch

from ..scalar import Apply, Constant, Scalar, apply, cast, constant
from .table import pointwise

Number = float | int | bool


def _scaled(x: Scalar | Number, alpha: Number | Scalar) -> Scalar | Number:
    value = alpha.value if isinstance(alpha, Constant) else alpha
    return x if value == 1 else apply("mul", x, value) if isinstance(x, Scalar) else x * value


def _add(a: Scalar, b: Scalar, alpha: Number = 1) -> Scalar:
    return apply("add" if a.dtype is not torch.bool else "or", a, _scaled(b, alpha))


def _sub(a: Scalar, b: Scalar, alpha: Number = 1) -> Scalar:
    return apply("sub", a, _scaled(b, alpha))


def _rsub(a: Scalar, b: Scalar, alpha: Number = 1) -> Scalar:
    return apply("sub", b, _scaled(a, alpha))


def _mul(a: Scalar, b: Scalar) -> Scalar:
    return apply("mul" if a.dtype is not torch.bool else "and", a, b)


def _pow(x: Scalar, exponent: Scalar) -> Scalar:
    """torch special-cases the same exponents (aten/src/ATen/native/cpu/PowKernel.cpp)."""
    power = exponent.value if isinstance(exponent, Constant) else None
    if power == 1:
        return x
    if power == 2:
        return x * x
    if power == 3:
        return x * x * x
    if power == 0.5:
        return apply("sqrt", x)
    if power == -0.5:
        return apply("rsqrt", x)
    if power == -1:
        return 1.0 / x
    if power == -2:
        return 1.0 / (x * x)
    return apply("pow", x, exponent)


def sigmoid(x: Scalar) -> Scalar:
    """1 / (1 + exp(-x))."""
    return 1.0 / (1.0 + apply("exp", -x))


def _silu(x: Scalar) -> Scalar:
    return x / (1.0 + apply("exp", -x))


def _gelu(x: Scalar, approximate: str = "none") -> Scalar:
    if approximate == "tanh":
        inner = math.sqrt(2.0 / math.pi) * (x + 0.044715 * (x * x * x))
        return 0.5 * x * (1.0 + apply("tanh", inner))
    return 0.5 * x * (1.0 + apply("erf", x * math.sqrt(0.5)))


def _softplus(x: Scalar, beta: Number | Scalar = 1, threshold: Number | Scalar = 20) -> Scalar:
    scaled = apply("mul", x, beta)
    return apply("where", apply("gt", scaled, threshold), x, apply("log1p", apply("exp", scaled)) / beta)


def _log_sigmoid(x: Scalar) -> Scalar:
    return apply("min", x, 0.0) - apply("log1p", apply("exp", -apply("abs", x)))


def _clamp(x: Scalar, min: Scalar | None = None, max: Scalar | None = None) -> Scalar:
    x = x if min is None else apply("max", x, min)
    return x if max is None else apply("min", x, max)


def _leaky_relu(x: Scalar, slope: Scalar | Number = 0.01) -> Scalar:
    return apply("where", apply("gt", x, 0), x, apply("mul", x, slope))


def _remainder(a: Scalar, b: Scalar) -> Scalar:
    rest = apply("fmod", a, b)
    wrong = apply("and", apply("ne", rest, 0), apply("ne", apply("lt", rest, 0), apply("lt", b, 0)))
    return apply("where", wrong, rest + b, rest)


def _where(condition: Scalar, a: Scalar, b: Scalar) -> Scalar:
    return Apply(a.dtype, "where", (cast(condition, torch.bool), a, cast(b, a.dtype)))


def _masked_fill(x: Scalar, mask: Scalar, value: Scalar) -> Scalar:
    return Apply(x.dtype, "where", (mask, cast(value, x.dtype), x))


def _logical(fn: str) -> object:
    return lambda a, b: apply(fn, cast(a, torch.bool), cast(b, torch.bool))


def _not(x: Scalar) -> Scalar:
    if x.dtype is torch.bool:
        return apply("not", x)
    return apply("sub", -1, x)  # two's complement


def _relu(x: Scalar) -> Scalar:
    return apply("max", x, 0)


def _identity(x: Scalar, *_: object, **__: object) -> Scalar:
    return x


def _sign(x: Scalar) -> Scalar:
    """NaN has the sign 0, as in torch."""
    negative = apply("where", apply("lt", x, 0), constant(-1, x.dtype), constant(0, x.dtype))
    return apply("where", apply("gt", x, 0), constant(1, x.dtype), negative)


_EXACT = "exact up to the rounding of the result"
_VECTOR = "within 2 ulp of float32 before the result is rounded"

pointwise(("add.Tensor", "add.Scalar"), _add, note=_EXACT)
pointwise(("sub.Tensor", "sub.Scalar"), _sub, note=_EXACT)
pointwise(("rsub.Tensor", "rsub.Scalar"), _rsub, note=_EXACT)
pointwise(("mul.Tensor", "mul.Scalar"), _mul, note=_EXACT)
pointwise(("div.Tensor", "div.Scalar"), lambda a, b: apply("div", a, b), note=_EXACT)
pointwise(("pow.Tensor_Scalar", "pow.Tensor_Tensor"), _pow, note=_VECTOR)
pointwise("square.default", lambda x: x * x, note=_EXACT)
pointwise("reciprocal.default", lambda x: 1.0 / x, note=_EXACT)
for _name in ("neg", "abs", "sqrt", "rsqrt", "floor", "ceil", "trunc", "round"):
    pointwise(f"{_name}.default", lambda x, _fn=_name: apply(_fn, x), note=_EXACT)
for _name in ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "erf"):
    pointwise(f"{_name}.default", lambda x, _fn=_name: apply(_fn, x), note=_VECTOR)
pointwise("sign.default", _sign, note=_EXACT)
pointwise("sigmoid.default", sigmoid, note=_VECTOR)
pointwise("silu.default", _silu, note=_VECTOR)
pointwise("gelu.default", _gelu, note=_VECTOR)
pointwise("relu.default", _relu, note=_EXACT)
pointwise("leaky_relu.default", _leaky_relu, note=_EXACT)
pointwise("softplus.default", _softplus, note=_VECTOR)
pointwise("log_sigmoid.default", _log_sigmoid, note=_VECTOR)
pointwise("clamp.default", _clamp, note=_EXACT)
pointwise("clamp_min.default", lambda x, low: apply("max", x, low), note=_EXACT)
pointwise("clamp_max.default", lambda x, high: apply("min", x, high), note=_EXACT)
pointwise("maximum.default", lambda a, b: apply("max", a, b), note=_EXACT)
pointwise("minimum.default", lambda a, b: apply("min", a, b), note=_EXACT)
pointwise(("remainder.Scalar", "remainder.Tensor"), _remainder, note=_EXACT)
pointwise(("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar"), _where, unpromoted=(0,), note=_EXACT)
pointwise(("masked_fill.Scalar", "masked_fill.Tensor"), _masked_fill, unpromoted=(1,), note=_EXACT)
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    pointwise((f"{_name}.Tensor", f"{_name}.Scalar"), lambda a, b, _fn=_name: apply(_fn, a, b), note=_EXACT)
for _name in ("and", "or", "xor"):
    pointwise(
        (f"bitwise_{_name}.Tensor", f"bitwise_{_name}.Scalar", f"__{_name}__.Tensor", f"__{_name}__.Scalar"),
        lambda a, b, _fn=_name: apply(_fn, a, b),
        note=_EXACT,
    )
    pointwise(f"logical_{_name}.default", _logical(_name), note=_EXACT)  # type: ignore[arg-type]
pointwise("bitwise_not.default", _not, note=_EXACT)
pointwise("logical_not.default", lambda x: apply("not", cast(x, torch.bool)), note=_EXACT)
# Conversions: the rounding to the result dtype is the whole operator.
CONVERSIONS = ("to.dtype", "to.dtype_layout", "to.device", "_to_copy.default", "type_as.default")
pointwise(CONVERSIONS, _identity, unpromoted=(0, 1), note="one rounding")
