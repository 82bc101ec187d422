"""Pointwise rows of functions that no primitive computes: inverse, hyperbolic, and of logarithms.

Most are computed in float64, where their formulas lose no digit a float32 has.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..scalar import Scalar, apply, cast, constant, round_to
from .table import VECTOR, pointwise

_WIDE = "computed in float64, then rounded"


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


def _logit(x: Scalar, eps: float | None = None, *, result: torch.dtype) -> Scalar:
    """The bounds are of the result's dtype; the lower one wins where an eps above a half puts it above the other."""
    if eps is not None and eps >= 0:
        low = cast(round_to(constant(eps, x.dtype), result), x.dtype)
        high = cast(round_to(1.0 - low, result), x.dtype)
        x = apply("where", apply("lt", x, low), low, apply("where", apply("gt", x, high), high, x))
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
pointwise("logit.default", _logit, typed=True, note=VECTOR)
pointwise(("xlogy.Tensor", "xlogy.Scalar_Other", "xlogy.Scalar_Self"), _xlogy, typed=True, narrows=True, note=VECTOR)
pointwise("logaddexp.default", _logaddexp, note=VECTOR)
