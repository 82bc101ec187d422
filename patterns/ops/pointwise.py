"""Pointwise rows: the result element from the operands' elements.

Operands arrive in the dtype torch computes the operator in (float32 for half precision); the result is rounded to
the operator's result dtype by whoever uses the row.
"""

from __future__ import annotations

import math
from typing import Any

import sympy
import torch

from ..scalar import Apply, Constant, Scalar, apply, cast, constant
from .table import EXACT, VECTOR, Call, Number, pointwise

# Arithmetic


def _plus(a: Scalar, b: Scalar, factor: Number | Scalar) -> Scalar:
    """a + b * factor; of floats rounded once, as eager's kernels do wherever b is not the same for a whole row."""
    if a.dtype.is_floating_point:
        return apply("fma", b, factor, a)
    return apply("add" if a.dtype is not torch.bool else "or", a, _mul(b, factor))


def _add(a: Scalar, b: Scalar, alpha: Number | Scalar = 1) -> Scalar:
    if _is_one(alpha):
        return apply("add" if a.dtype is not torch.bool else "or", a, b)
    return _plus(a, b, alpha)


def _sub(a: Scalar, b: Scalar, alpha: Number | Scalar = 1) -> Scalar:
    if _is_one(alpha):
        return apply("sub", a, b)
    if not a.dtype.is_floating_point:
        return apply("sub", a, _mul(b, alpha))
    return _plus(a, b, constant(-alpha.value, alpha.dtype) if isinstance(alpha, Constant) else -alpha)


def _rsub(a: Scalar, b: Scalar, alpha: Number | Scalar = 1) -> Scalar:
    return _sub(b, a, alpha)


def _mul(a: Scalar, b: Scalar | Number) -> Scalar:
    return apply("mul" if a.dtype is not torch.bool else "and", a, b)


def _pow(x: Scalar, exponent: Scalar) -> Scalar:
    """torch special-cases the same exponents (aten/src/ATen/native/cpu/PowKernel.cpp)."""
    power = exponent.value if isinstance(exponent, Constant) else None
    if power == 0:
        return constant(1, x.dtype)
    if power is not None and not x.dtype.is_floating_point:
        return _whole_power(x, int(power))
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


def _whole_power(x: Scalar, power: int) -> Scalar:
    """By squaring; products of integers wrap alike in any order."""
    if power < 0:
        return apply("pow", x, constant(power, x.dtype))
    half = _whole_power(x, power // 2) if power > 1 else None
    square = None if half is None else _mul(half, half)
    return x if square is None else _mul(square, x) if power % 2 else square


def _lerp(start: Scalar, end: Scalar, weight: Scalar) -> Scalar:
    """From the nearer end, so that a weight of 1 gives `end` exactly (aten/src/ATen/native/Lerp.h)."""
    near = _plus(start, weight, end - start)
    far = _plus(end, start - end, 1.0 - weight)
    return apply("where", apply("lt", apply("abs", weight), 0.5), near, far)


def _addcmul(x: Scalar, a: Scalar, b: Scalar, value: Number | Scalar = 1) -> Scalar:
    return _plus(x, b, a if _is_one(value) else _mul(a, value))


def _addcdiv(x: Scalar, a: Scalar, b: Scalar, value: Number | Scalar = 1) -> Scalar:
    return x + (apply("mul", a, value) if not _is_one(value) else a) / b


def _is_one(value: Number | Scalar) -> bool:
    return (value.value if isinstance(value, Constant) else value) == 1


def _square(x: Scalar) -> Scalar:
    return _mul(x, x)


# Division


def _divided(a: Scalar, b: Scalar, rounding_mode: str | None = None) -> Scalar:
    if rounding_mode is None:
        return apply("div", a, b)
    if rounding_mode == "trunc":
        return apply("trunc", apply("div", a, b))
    return _floor_divided(a, b)


def _floor_divided(a: Scalar, b: Scalar) -> Scalar:
    """Of floats from the exact remainder, as Python does (c10/util/generic_math.h, div_floor_floating)."""
    rest = apply("fmod", a, b)
    wrong = apply("and", apply("ne", rest, 0), apply("ne", apply("lt", rest, 0), apply("lt", b, 0)))
    if not a.dtype.is_floating_point:
        quotient = apply("div", a, b)
        return apply("where", wrong, quotient - 1, quotient)
    quotient = (a - rest) / b
    quotient = apply("where", wrong, quotient - 1.0, quotient)
    floor = apply("floor", quotient)
    floor = apply("where", apply("gt", quotient - floor, 0.5), floor + 1.0, floor)
    floor = apply("where", apply("eq", quotient, 0.0), (a / b) * 0.0, floor)  # a zero with the sign of a / b
    return apply("where", apply("eq", b, 0.0), a / b, floor)


def _remainder(a: Scalar, b: Scalar) -> Scalar:
    rest = apply("fmod", a, b)
    wrong = apply("and", apply("ne", rest, 0), apply("ne", apply("lt", rest, 0), apply("lt", b, 0)))
    return apply("where", wrong, rest + b, rest)


def _no_zero_divisor(call: Call) -> str | None:
    """torch raises where an integer is divided by 0; a kernel cannot."""
    if call.outputs[0].dtype.is_floating_point:
        return None
    divisor = call.argument(1, "other", None)
    known = isinstance(divisor, (int, sympy.Expr)) and divisor != 0
    return None if known else "an integer division whose divisor may be 0"


def _floor_covers(call: Call) -> str | None:
    """Whether torch rounds a quotient in half precision before it cuts it off differs between its loops."""
    if call.outputs[0].dtype in (torch.bfloat16, torch.float16):
        return "a quotient in half precision that is cut off"
    return _no_zero_divisor(call)


def _division_covers(call: Call) -> str | None:
    mode = call.argument(2, "rounding_mode", None)
    return _no_zero_divisor(call) if mode is None else _floor_covers(call)


# Selection


def _max(a: Scalar, b: Scalar) -> Scalar:
    return apply("max" if a.dtype is not torch.bool else "or", a, b)


def _min(a: Scalar, b: Scalar) -> Scalar:
    return apply("min" if a.dtype is not torch.bool else "and", a, b)


def _clamp(x: Scalar, min: Scalar | None = None, max: Scalar | None = None) -> Scalar:
    x = x if min is None else apply("max", x, min)
    return x if max is None else apply("min", x, max)


def _ignoring_nan(fn: str) -> Any:
    def expression(a: Scalar, b: Scalar) -> Scalar:
        other = apply("where", apply("isnan", b), a, apply(fn, a, b))
        return apply("where", apply("isnan", a), b, other)

    return expression


def _where(condition: Scalar, a: Scalar, b: Scalar) -> Scalar:
    return Apply(a.dtype, "where", (cast(condition, torch.bool), a, cast(b, a.dtype)))


def _masked_fill(x: Scalar, mask: Scalar, value: Scalar) -> Scalar:
    return Apply(x.dtype, "where", (mask, cast(value, x.dtype), x))


def _nan_to_num(
    x: Scalar,
    nan: float | None = None,
    posinf: float | None = None,
    neginf: float | None = None,
    *,
    result: torch.dtype,
) -> Scalar:
    if not result.is_floating_point:
        return x
    infinities = ((math.inf, posinf, torch.finfo(result).max), (-math.inf, neginf, torch.finfo(result).min))
    made = apply("where", apply("isnan", x), constant(nan or 0.0, x.dtype), x)
    for infinity, given, default in infinities:
        value = constant(default if given is None else given, x.dtype)
        made = apply("where", apply("eq", x, infinity), value, made)
    return made


# Logic and bits


def _logical(fn: str) -> Any:
    return lambda a, b: apply(fn, cast(a, torch.bool), cast(b, torch.bool))


def _not(x: Scalar) -> Scalar:
    if x.dtype is torch.bool:
        return apply("not", x)
    return apply("sub", -1, x)  # two's complement


def _integers(call: Call) -> str | None:
    return "a shift of floats" if call.outputs[0].dtype.is_floating_point else None


def _is_infinite(x: Scalar, sign: int = 0) -> Scalar:
    if not x.dtype.is_floating_point:
        return constant(False, torch.bool)
    return apply("eq", apply("abs", x), math.inf) if not sign else apply("eq", x, sign * math.inf)


def _is_finite(x: Scalar) -> Scalar:
    return apply("lt", apply("abs", x), math.inf) if x.dtype.is_floating_point else constant(True, torch.bool)


def _is_nan(x: Scalar) -> Scalar:
    return apply("isnan", x) if x.dtype.is_floating_point else constant(False, torch.bool)


def _sign(x: Scalar) -> Scalar:
    """NaN has the sign 0, as in torch."""
    negative = apply("where", apply("lt", x, 0), constant(-1, x.dtype), constant(0, x.dtype))
    return apply("where", apply("gt", x, 0), constant(1, x.dtype), negative)


def _heaviside(x: Scalar, at_zero: Scalar) -> Scalar:
    step = apply("where", apply("gt", x, 0), constant(1, x.dtype), constant(0, x.dtype))
    return apply("where", apply("eq", x, 0), at_zero, step)


def _round_decimals(x: Scalar, decimals: int = 0) -> Scalar:
    power = 10.0 ** abs(decimals)
    scaled = apply("round", x * power if decimals >= 0 else x / power)
    return scaled / power if decimals >= 0 else scaled * power


def _single_or_double(call: Call) -> str | None:
    """torch rounds after every step of half precision here."""
    made = call.outputs[0].dtype
    return None if made in (torch.float32, torch.float64) else f"rounding of {made} to decimals"


def _identity(x: Scalar, *_: object, **__: object) -> Scalar:
    return x


def _second(_: Scalar, x: Scalar, *__: object) -> Scalar:
    return x


# Which numbers and 0-d tensors eager rounds first was measured; the kernels that round none are those with "opmath" in
# their name in aten/src/ATen/native/cpu/BinaryOpsKernel.cpp.
pointwise(("add.Tensor", "add.Scalar"), _add, narrows=True, note=EXACT)
pointwise(("sub.Tensor", "sub.Scalar"), _sub, narrows=True, note=EXACT)
pointwise(("rsub.Tensor", "rsub.Scalar"), _rsub, narrows=True, note=EXACT)
pointwise(("mul.Tensor", "mul.Scalar"), _mul, wide=1, note=EXACT)
pointwise(("addcmul.default",), _addcmul, note=EXACT)
pointwise(("addcdiv.default",), _addcdiv, note=EXACT)
pointwise(("lerp.Scalar", "lerp.Tensor"), _lerp, note=EXACT)
pointwise(("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar"), _pow, narrows=True, note=VECTOR)
pointwise("square.default", _square, note=EXACT)
pointwise("reciprocal.default", lambda x: 1.0 / x, note=EXACT)

_DIVISIONS = ("div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode")
pointwise(_DIVISIONS, _divided, wide=1, covers=_division_covers, note=EXACT)
_FLOORS = ("floor_divide.default", "floor_divide.Scalar")
pointwise(_FLOORS, _floor_divided, wide=1, covers=_floor_covers, note=EXACT)
_REMAINDERS = ("remainder.Scalar", "remainder.Tensor", "remainder.Scalar_Tensor")
pointwise(_REMAINDERS, _remainder, narrows=True, covers=_no_zero_divisor, note=EXACT)
_FMODS = ("fmod.Tensor", "fmod.Scalar")
pointwise(_FMODS, lambda a, b: apply("fmod", a, b), narrows=True, covers=_no_zero_divisor, note=EXACT)

for _name in ("neg", "abs", "sqrt", "rsqrt", "floor", "ceil", "trunc", "round"):
    pointwise(f"{_name}.default", lambda x, _fn=_name: apply(_fn, x), note=EXACT)
for _name in ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "erf"):
    pointwise(f"{_name}.default", lambda x, _fn=_name: apply(_fn, x), note=VECTOR)
pointwise("round.decimals", _round_decimals, covers=_single_or_double, note=EXACT)
pointwise("frac.default", lambda x: x - apply("trunc", x), note=EXACT)
pointwise(("sign.default", "sgn.default"), _sign, note=EXACT)
pointwise("heaviside.default", _heaviside, note=EXACT)
pointwise("deg2rad.default", lambda x: x * (math.pi / 180.0), note=EXACT)
pointwise("rad2deg.default", lambda x: x * (180.0 / math.pi), note=EXACT)

pointwise(("clamp.default", "clamp.Tensor"), _clamp, note=EXACT)
pointwise(("clamp_min.default", "clamp_min.Tensor"), lambda x, low: apply("max", x, low), note=EXACT)
pointwise(("clamp_max.default", "clamp_max.Tensor"), lambda x, high: apply("min", x, high), note=EXACT)
pointwise(("maximum.default", "max.other"), _max, note=EXACT)
pointwise(("minimum.default", "min.other"), _min, note=EXACT)
pointwise("fmax.default", _ignoring_nan("max"), note=EXACT)
pointwise("fmin.default", _ignoring_nan("min"), note=EXACT)
pointwise(("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar"), _where, unpromoted=(0,), note=EXACT)
pointwise(("masked_fill.Scalar", "masked_fill.Tensor"), _masked_fill, unpromoted=(1,), note=EXACT)
pointwise("nan_to_num.default", _nan_to_num, typed=True, note=EXACT)

for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    pointwise((f"{_name}.Tensor", f"{_name}.Scalar"), lambda a, b, _fn=_name: apply(_fn, a, b), note=EXACT)
for _name in ("and", "or", "xor"):
    _overloads = (f"bitwise_{_name}.Tensor", f"bitwise_{_name}.Scalar", f"bitwise_{_name}.Scalar_Tensor")
    pointwise(_overloads, lambda a, b, _fn=_name: apply(_fn, a, b), note=EXACT)
    pointwise(f"logical_{_name}.default", _logical(_name), note=EXACT)
pointwise("bitwise_not.default", _not, note=EXACT)
pointwise("logical_not.default", lambda x: apply("not", cast(x, torch.bool)), note=EXACT)
for _name, _fn in (("left", "shl"), ("right", "shr")):
    _shifts = [f"bitwise_{_name}_shift.{o}" for o in ("Tensor", "Tensor_Scalar", "Scalar_Tensor")]
    pointwise(_shifts, lambda a, b, _fn=_fn: apply(_fn, a, b), covers=_integers, note=EXACT)
pointwise("isnan.default", _is_nan, note=EXACT)
pointwise("isinf.default", _is_infinite, note=EXACT)
pointwise("isposinf.default", lambda x: _is_infinite(x, 1), note=EXACT)
pointwise("isneginf.default", lambda x: _is_infinite(x, -1), note=EXACT)
pointwise("isfinite.default", _is_finite, note=EXACT)
# Conversions: the rounding to the result dtype is the whole operator.
CONVERSIONS = ("to.dtype", "to.dtype_layout", "to.device", "to.other", "_to_copy.default", "type_as.default")
pointwise(CONVERSIONS, _identity, unpromoted=(0, 1), note="one rounding")
pointwise(("copy.default", "fill.Tensor"), _second, unpromoted=(0, 1), note="one rounding")
