"""Pointwise rows: the result element from the operands' elements.

Operands arrive in the dtype torch computes the operator in (float32 for half precision); the result is rounded to
the operator's result dtype by whoever uses the row.
"""

from __future__ import annotations

import math
from typing import Any

import sympy
import torch

from ..scalar import Apply, Constant, Scalar, apply, cast, constant, round_to
from .table import Call, pointwise

Number = float | int | bool


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


# Activations


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


def _relu(x: Scalar) -> Scalar:
    return apply("max", x, 0)


def _leaky_relu(x: Scalar, slope: Scalar | Number = 0.01) -> Scalar:
    return apply("where", apply("gt", x, 0), x, apply("mul", x, slope))


def _elu(x: Scalar, alpha: Scalar | Number = 1, scale: Scalar | Number = 1, input_scale: Scalar | Number = 1) -> Scalar:
    """x * scale, or below 0 (exp(x * input_scale) - 1) * alpha * scale."""
    below = apply("mul", apply("mul", apply("expm1", apply("mul", x, input_scale)), alpha), scale)
    return apply("where", apply("le", x, 0), below, apply("mul", x, scale))


def _celu(x: Scalar, alpha: Scalar | Number = 1.0) -> Scalar:
    value = float(alpha.value if isinstance(alpha, Constant) else alpha)  # type: ignore[arg-type]
    return _elu(x, value, 1.0, 1.0 / value)


def _celu_covers(call: Call) -> str | None:
    return None if isinstance(call.argument(1, "alpha", 1.0), (int, float)) else "celu whose alpha is a size"


def _selu(x: Scalar) -> Scalar:
    """The constants of Klambauer et al., Self-Normalizing Neural Networks (2017)."""
    return _elu(x, 1.6732632423543772848170429916717, 1.0507009873554804934193349852946)


def _mish(x: Scalar) -> Scalar:
    return x * apply("tanh", apply("log1p", apply("exp", x)))


def _hardtanh(x: Scalar, low: Scalar | Number = -1, high: Scalar | Number = 1) -> Scalar:
    return apply("min", apply("max", x, low), high)


def _hardsigmoid(x: Scalar) -> Scalar:
    return _hardtanh(x + 3.0, 0.0, 6.0) / 6.0


def _hardswish(x: Scalar) -> Scalar:
    return x * _hardtanh(x + 3.0, 0.0, 6.0) / 6.0


def _threshold(x: Scalar, threshold: Scalar, value: Scalar) -> Scalar:
    return apply("where", apply("le", x, threshold), value, x)


def _hardshrink(x: Scalar, lambd: Scalar | Number = 0.5) -> Scalar:
    return apply("where", apply("le", apply("abs", x), lambd), constant(0, x.dtype), x)


def _softshrink(x: Scalar, lambd: Scalar | Number = 0.5) -> Scalar:
    raised = apply("where", apply("lt", x, -lambd), apply("add", x, lambd), x * 0.0)  # a NaN stays one
    return apply("where", apply("gt", x, lambd), apply("sub", x, lambd), raised)


# Functions that are computed in float64, where their formulas lose no digit a float32 has


def _wide(formula: Any) -> Any:
    def expression(*operands: Scalar) -> Scalar:
        dtype = operands[0].dtype
        return cast(formula(*(cast(x, torch.float64) for x in operands)), dtype)

    return expression


def _by_sign(x: Scalar, of_size: Any) -> Scalar:
    """An odd function, from its values at |x|; a zero keeps its sign."""
    value = of_size(apply("abs", x))
    signed = apply("where", apply("lt", x, 0), -value, value)
    return apply("where", apply("eq", x, 0), x, signed)


def _sinh(x: Scalar) -> Scalar:
    half = apply("exp", apply("abs", x) * 0.5)  # does not overflow before the result does
    far = _by_sign(x, lambda size: 0.5 * half * half)
    near = 0.5 * (apply("expm1", x) - apply("expm1", -x))
    return apply("where", apply("gt", apply("abs", x), 40.0), far, near)


def _cosh(x: Scalar) -> Scalar:
    half = apply("exp", apply("abs", x) * 0.5)
    return 0.5 * half * half + 0.5 / (half * half)


def _asinh(x: Scalar) -> Scalar:
    def of_size(size: Scalar) -> Scalar:
        near = apply("log1p", size + size * size / (1.0 + apply("sqrt", size * size + 1.0)))
        return apply("where", apply("gt", size, 1e9), apply("log", size) + math.log(2.0), near)

    return _by_sign(x, of_size)


def _acosh(x: Scalar) -> Scalar:
    above = x - 1.0
    near = apply("log1p", above + apply("sqrt", above) * apply("sqrt", x + 1.0))
    return apply("where", apply("gt", x, 1e9), apply("log", x) + math.log(2.0), near)


def _atanh(x: Scalar) -> Scalar:
    return _by_sign(x, lambda size: 0.5 * apply("log1p", 2.0 * size / (1.0 - size)))


def _hypot(x: Scalar, y: Scalar) -> Scalar:
    """Infinite where one side is, even if the other is NaN (C99 F.9.4.3)."""
    a, b = apply("abs", x), apply("abs", y)
    high, low = apply("max", a, b), apply("min", a, b)
    ratio = low / high
    length = apply("where", apply("eq", high, 0), high, high * apply("sqrt", 1.0 + ratio * ratio))
    infinite = apply("or", apply("eq", a, math.inf), apply("eq", b, math.inf))
    return apply("where", infinite, constant(math.inf, x.dtype), length)


def _sinc(x: Scalar) -> Scalar:
    angle = x * math.pi
    return apply("where", apply("eq", x, 0), constant(1, x.dtype), apply("sin", angle) / angle)


def _right_angle(x: Scalar) -> Scalar:
    """The other side of a right triangle whose hypotenuse is 1: sqrt(1 - x^2)."""
    return apply("sqrt", (1.0 - x) * (1.0 + x))


def _erfinv(x: Scalar) -> Scalar:
    """Winitzki's approximation (2008), within 2e-3 of the result, then Halley's method, which cubes the error."""
    a = 0.147
    log = apply("log", (1.0 - x) * (1.0 + x))
    half = 2.0 / (math.pi * a) + 0.5 * log
    y = _by_sign(x, lambda size: apply("sqrt", apply("sqrt", half * half - log / a) - half))
    for _ in range(2):
        step = (apply("erf", y) - x) / (2.0 / math.sqrt(math.pi) * apply("exp", -(y * y)))
        y = y - step / (1.0 + y * step)
    end = apply("where", apply("eq", apply("abs", x), 1), x * math.inf, y)
    return apply("where", apply("gt", apply("abs", x), 1), constant(math.nan, x.dtype), end)


def _exp2(x: Scalar) -> Scalar:
    """Of float32 through float64, whose last digits x * log(2) may lose."""
    if x.dtype is torch.float64:
        return apply("pow", 2.0, x)
    return _wide(lambda wide: apply("exp", wide * math.log(2.0)))(x)  # type: ignore[no-any-return]


def _logit(x: Scalar, eps: float | None = None) -> Scalar:
    if eps is not None and eps >= 0:
        x = _hardtanh(x, eps, 1.0 - eps)
    return apply("log", x / (1.0 - x))


def _xlogy(x: Scalar, y: Scalar, *, result: torch.dtype) -> Scalar:
    """torch rounds the logarithm to half precision, too."""
    log = cast(round_to(apply("log", y), result), x.dtype)
    product = apply("where", apply("eq", x, 0), constant(0, x.dtype), x * log)
    return apply("where", apply("isnan", y), y, product)


def _logaddexp(a: Scalar, b: Scalar) -> Scalar:
    both = apply("and", apply("eq", a, b), apply("eq", apply("abs", a), math.inf))
    total = apply("max", a, b) + apply("log1p", apply("exp", -apply("abs", a - b)))
    return apply("where", both, a, total)


def _identity(x: Scalar, *_: object, **__: object) -> Scalar:
    return x


def _second(_: Scalar, x: Scalar, *__: object) -> Scalar:
    return x


_EXACT = "exact up to the rounding of the result"
_VECTOR = "within 2 ulp of float32 before the result is rounded"
_WIDE = "computed in float64, then rounded"

# Which numbers and 0-d tensors eager rounds first was measured; the kernels that round none are those with "opmath" in
# their name in aten/src/ATen/native/cpu/BinaryOpsKernel.cpp.
pointwise(("add.Tensor", "add.Scalar"), _add, narrows=True, note=_EXACT)
pointwise(("sub.Tensor", "sub.Scalar"), _sub, narrows=True, note=_EXACT)
pointwise(("rsub.Tensor", "rsub.Scalar"), _rsub, narrows=True, note=_EXACT)
pointwise(("mul.Tensor", "mul.Scalar"), _mul, wide=1, note=_EXACT)
pointwise(("addcmul.default",), _addcmul, note=_EXACT)
pointwise(("addcdiv.default",), _addcdiv, note=_EXACT)
pointwise(("lerp.Scalar", "lerp.Tensor"), _lerp, note=_EXACT)
pointwise(("pow.Tensor_Scalar", "pow.Tensor_Tensor", "pow.Scalar"), _pow, narrows=True, note=_VECTOR)
pointwise("square.default", _square, note=_EXACT)
pointwise("reciprocal.default", lambda x: 1.0 / x, note=_EXACT)

_DIVISIONS = ("div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode")
pointwise(_DIVISIONS, _divided, wide=1, covers=_division_covers, note=_EXACT)
_FLOORS = ("floor_divide.default", "floor_divide.Scalar")
pointwise(_FLOORS, _floor_divided, wide=1, covers=_floor_covers, note=_EXACT)
_REMAINDERS = ("remainder.Scalar", "remainder.Tensor", "remainder.Scalar_Tensor")
pointwise(_REMAINDERS, _remainder, narrows=True, covers=_no_zero_divisor, note=_EXACT)
_FMODS = ("fmod.Tensor", "fmod.Scalar")
pointwise(_FMODS, lambda a, b: apply("fmod", a, b), narrows=True, covers=_no_zero_divisor, note=_EXACT)

for _name in ("neg", "abs", "sqrt", "rsqrt", "floor", "ceil", "trunc", "round"):
    pointwise(f"{_name}.default", lambda x, _fn=_name: apply(_fn, x), note=_EXACT)
for _name in ("exp", "expm1", "log", "log1p", "sin", "cos", "tanh", "erf"):
    pointwise(f"{_name}.default", lambda x, _fn=_name: apply(_fn, x), note=_VECTOR)
pointwise("round.decimals", _round_decimals, covers=_single_or_double, note=_EXACT)
pointwise("frac.default", lambda x: x - apply("trunc", x), note=_EXACT)
pointwise(("sign.default", "sgn.default"), _sign, note=_EXACT)
pointwise("heaviside.default", _heaviside, note=_EXACT)
pointwise("deg2rad.default", lambda x: x * (math.pi / 180.0), note=_EXACT)
pointwise("rad2deg.default", lambda x: x * (180.0 / math.pi), note=_EXACT)

for _op, _formula in {
    "sinh": _sinh, "cosh": _cosh, "asinh": _asinh, "acosh": _acosh, "atanh": _atanh, "hypot": _hypot, "sinc": _sinc,
    "erfinv": _erfinv,
    "tan": lambda x: apply("sin", x) / apply("cos", x),
    "atan": lambda x: apply("atan2", x, 1.0),
    "asin": lambda x: apply("atan2", x, _right_angle(x)),
    "acos": lambda x: apply("atan2", _right_angle(x), x),
    "atan2": lambda y, x: apply("atan2", y, x),
    "log2": lambda x: apply("log", x) * (1.0 / math.log(2.0)),
    "log10": lambda x: apply("log", x) * (1.0 / math.log(10.0)),
}.items():  # fmt: skip
    pointwise(f"{_op}.default", _wide(_formula), note=_WIDE)
pointwise("exp2.default", _exp2, note=_WIDE)
pointwise("logit.default", _logit, note=_VECTOR)
pointwise(("xlogy.Tensor", "xlogy.Scalar_Other", "xlogy.Scalar_Self"), _xlogy, typed=True, narrows=True, note=_VECTOR)
pointwise("logaddexp.default", _logaddexp, note=_VECTOR)

pointwise("sigmoid.default", sigmoid, note=_VECTOR)
pointwise("silu.default", _silu, note=_VECTOR)
pointwise("gelu.default", _gelu, note=_VECTOR)
pointwise("mish.default", _mish, note=_VECTOR)
pointwise("softplus.default", _softplus, note=_VECTOR)
pointwise("log_sigmoid.default", _log_sigmoid, note=_VECTOR)
pointwise("elu.default", _elu, note=_VECTOR)
pointwise("celu.default", _celu, covers=_celu_covers, note=_VECTOR)
pointwise("selu.default", _selu, note=_VECTOR)
pointwise("relu.default", _relu, note=_EXACT)
pointwise("relu6.default", lambda x: _hardtanh(x, 0, 6), note=_EXACT)
pointwise("leaky_relu.default", _leaky_relu, note=_EXACT)
pointwise("hardtanh.default", _hardtanh, note=_EXACT)
pointwise("hardsigmoid.default", _hardsigmoid, note=_EXACT)
pointwise("hardswish.default", _hardswish, note=_EXACT)
pointwise("threshold.default", _threshold, note=_EXACT)
pointwise("hardshrink.default", _hardshrink, note=_EXACT)
pointwise("softshrink.default", _softshrink, note=_EXACT)

pointwise(("clamp.default", "clamp.Tensor"), _clamp, note=_EXACT)
pointwise(("clamp_min.default", "clamp_min.Tensor"), lambda x, low: apply("max", x, low), note=_EXACT)
pointwise(("clamp_max.default", "clamp_max.Tensor"), lambda x, high: apply("min", x, high), note=_EXACT)
pointwise(("maximum.default", "max.other"), _max, note=_EXACT)
pointwise(("minimum.default", "min.other"), _min, note=_EXACT)
pointwise("fmax.default", _ignoring_nan("max"), note=_EXACT)
pointwise("fmin.default", _ignoring_nan("min"), note=_EXACT)
pointwise(("where.self", "where.ScalarOther", "where.ScalarSelf", "where.Scalar"), _where, unpromoted=(0,), note=_EXACT)
pointwise(("masked_fill.Scalar", "masked_fill.Tensor"), _masked_fill, unpromoted=(1,), note=_EXACT)
pointwise("nan_to_num.default", _nan_to_num, typed=True, note=_EXACT)

for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    pointwise((f"{_name}.Tensor", f"{_name}.Scalar"), lambda a, b, _fn=_name: apply(_fn, a, b), note=_EXACT)
for _name in ("and", "or", "xor"):
    _overloads = (f"bitwise_{_name}.Tensor", f"bitwise_{_name}.Scalar", f"bitwise_{_name}.Scalar_Tensor")
    pointwise(_overloads, lambda a, b, _fn=_name: apply(_fn, a, b), note=_EXACT)
    pointwise(f"logical_{_name}.default", _logical(_name), note=_EXACT)
pointwise("bitwise_not.default", _not, note=_EXACT)
pointwise("logical_not.default", lambda x: apply("not", cast(x, torch.bool)), note=_EXACT)
for _name, _fn in (("left", "shl"), ("right", "shr")):
    _shifts = [f"bitwise_{_name}_shift.{o}" for o in ("Tensor", "Tensor_Scalar", "Scalar_Tensor")]
    pointwise(_shifts, lambda a, b, _fn=_fn: apply(_fn, a, b), covers=_integers, note=_EXACT)
pointwise("isnan.default", _is_nan, note=_EXACT)
pointwise("isinf.default", _is_infinite, note=_EXACT)
pointwise("isposinf.default", lambda x: _is_infinite(x, 1), note=_EXACT)
pointwise("isneginf.default", lambda x: _is_infinite(x, -1), note=_EXACT)
pointwise("isfinite.default", _is_finite, note=_EXACT)
# Conversions: the rounding to the result dtype is the whole operator.
CONVERSIONS = ("to.dtype", "to.dtype_layout", "to.device", "to.other", "_to_copy.default", "type_as.default")
pointwise(CONVERSIONS, _identity, unpromoted=(0, 1), note="one rounding")
pointwise(("copy.default", "fill.Tensor"), _second, unpromoted=(0, 1), note="one rounding")
