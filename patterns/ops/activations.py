"""Pointwise rows of activations: sigmoid, silu, gelu and what else networks put between layers."""

from __future__ import annotations

import math

from ..scalar import Constant, Scalar, apply, constant
from .table import EXACT, VECTOR, Call, Number, pointwise


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
    return apply("where", apply("lt", x, 0), below, apply("mul", x, scale))


def _celu(x: Scalar, alpha: Scalar | Number = 1.0) -> Scalar:
    value = float(alpha.value if isinstance(alpha, Constant) else alpha)  # type: ignore[arg-type]  # a number, never computed
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


pointwise("sigmoid.default", sigmoid, note=VECTOR)
pointwise("silu.default", _silu, note=VECTOR)
pointwise("gelu.default", _gelu, note=VECTOR)
pointwise("mish.default", _mish, note=VECTOR)
pointwise("softplus.default", _softplus, note=VECTOR)
pointwise("log_sigmoid.default", _log_sigmoid, note=VECTOR)
pointwise("elu.default", _elu, note=VECTOR)
pointwise("celu.default", _celu, covers=_celu_covers, note=VECTOR)
pointwise("selu.default", _selu, note=VECTOR)
pointwise("relu.default", _relu, note=EXACT)
pointwise("relu6.default", lambda x: _hardtanh(x, 0, 6), note=EXACT)
pointwise("leaky_relu.default", _leaky_relu, note=EXACT)
pointwise("hardtanh.default", _hardtanh, note=EXACT)
pointwise("hardsigmoid.default", _hardsigmoid, note=EXACT)
pointwise("hardswish.default", _hardswish, note=EXACT)
pointwise("threshold.default", _threshold, note=EXACT)
pointwise("hardshrink.default", _hardshrink, note=EXACT)
pointwise("softshrink.default", _softshrink, note=EXACT)
