"""Operators as the arithmetic they stand for, and arithmetic as the operator it spells out; for normal forms.

A norm called as one operator and a norm written by hand are the same computation and get the same name.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from .normal_form import FormBuilder, Use
from .ops import Call
from .ops.reductions import rms_epsilon
from .symbols import Dim

Expansion = Callable[[FormBuilder, Call, tuple[Use | None, ...]], tuple[Use, ...]]

# sqrt(2 / pi) and 0.044715, from the approximation by tanh (Hendrycks and Gimpel 2016); the coefficients of x and x^3.
_TANH_GELU = {1: math.sqrt(2.0 / math.pi), 3: math.sqrt(2.0 / math.pi) * 0.044715}
_ERF_GELU = {1: math.sqrt(0.5)}


def expand(of: FormBuilder, name: str, call: Call, operands: tuple[Use | None, ...]) -> tuple[Use, ...] | None:
    """The results of `aten.NAME`, written out; None where it is not written out.

    Args:
        of: what makes forms.
        name: the operator's short name.
        call: the call.
        operands: the tensor arguments, by position in the call; None for the others.
    """
    found = _EXPANSIONS.get(name)
    return found(of, call, operands) if found else None


def _trailing(call: Call) -> tuple[int, ...]:
    return tuple(range(-len(call.args[1]), 0))


def _layer_norm(of: FormBuilder, call: Call, operands: tuple[Use | None, ...]) -> tuple[Use, ...]:
    x, weight, bias = (operand_at(operands, k) for k in (0, 2, 3))
    assert x is not None
    dims, eps = _trailing(call), call.argument(4, "eps", 1e-5)
    mean, variance = moments(of, x, dims)
    scale = of.make("rsqrt", (of.make("add", (variance, of.constant(eps))),))
    made = of.make("mul", (of.make("sub", (x, mean)), scale))
    made = made if weight is None else of.make("mul", (made, weight))
    return (made if bias is None else of.make("add", (made, bias))), mean, scale


def _rms_norm(of: FormBuilder, call: Call, operands: tuple[Use | None, ...]) -> tuple[Use, ...]:
    x, weight = operand_at(operands, 0), operand_at(operands, 2)
    assert x is not None
    eps = call.argument(3, "eps", None)
    eps = rms_epsilon(call.inputs[0].dtype) if eps is None else eps
    mean = of.reduced("mean", of.make("square", (x,)), _trailing(call))
    scale = of.make("rsqrt", (of.make("add", (mean, of.constant(eps))),))
    made = of.make("mul", (x, scale))
    return (made if weight is None else of.make("mul", (made, weight))), scale


def moments(of: FormBuilder, x: Use, dims: tuple[int, ...]) -> tuple[Use, Use]:
    """The mean of `x` over `dims`, counted from the end, and the mean square of what is left without it."""
    mean = of.reduced("mean", x, dims)
    return mean, of.reduced("mean", of.make("square", (of.make("sub", (x, mean)),)), dims)


def _addcmul(of: FormBuilder, call: Call, operands: tuple[Use | None, ...]) -> tuple[Use, ...]:
    x, a, b = (operand_at(operands, k) for k in range(3))
    assert x is not None and a is not None and b is not None
    return (of.make("add", (x, of.scaled(of.make("mul", (a, b)), call.argument(3, "value", 1)))),)


def _addcdiv(of: FormBuilder, call: Call, operands: tuple[Use | None, ...]) -> tuple[Use, ...]:
    x, a, b = (operand_at(operands, k) for k in range(3))
    assert x is not None and a is not None and b is not None
    return (of.make("add", (x, of.scaled(of.make("div", (a, b)), call.argument(3, "value", 1)))),)


_EXPANSIONS: dict[str, Expansion] = {
    "layer_norm": _layer_norm, "native_layer_norm": _layer_norm, "rms_norm": _rms_norm, "fused_rms_norm": _rms_norm,
    "addcmul": _addcmul, "addcdiv": _addcdiv,
}  # fmt: skip


def operand_at(operands: tuple[Use | None, ...], position: int) -> Use | None:
    """The tensor argument at a position; None where there is none."""
    return operands[position] if position < len(operands) else None


# gelu written out


def gelu(of: FormBuilder, a: Use, b: Use) -> Use | None:
    """The gelu that the product a * b spells out: x/2 * (1 + erf(x / sqrt(2))), or its approximation by tanh."""
    coefficient, factors = _factors(of, a)
    more, others = _factors(of, b)
    factors = (*factors, *others)
    if len(factors) != 2 or not _near(coefficient * more, 0.5):
        return None
    for x, gate in (factors, factors[::-1]):
        inner = _gate(of, gate)
        if inner is not None:
            fn, argument = inner
            wanted = _TANH_GELU if fn == "tanh" else _ERF_GELU
            found = _polynomial(of, argument, x)
            if found and found.keys() == wanted.keys() and all(_near(found[k], wanted[k]) for k in wanted):
                return of.make("gelu", (x,), ("tanh",) if fn == "tanh" else ())
    return None


def _gate(of: FormBuilder, use: Use) -> tuple[str, Use] | None:
    """`fn` and y, where `use` is 1 + fn(y) for a sigmoidal fn."""
    form = of.form(use)
    if form.fn != "add" or use.layout:
        return None
    for one, rest in (form.operands, form.operands[::-1]):
        inner = of.form(rest)
        if of.number(one) == 1 and inner.fn in ("tanh", "erf") and not rest.layout:
            return inner.fn, inner.operands[0]
    return None


def _factors(of: FormBuilder, use: Use) -> tuple[float, tuple[Use, ...]]:
    """A product as its number and its other factors."""
    number = of.number(use)
    if isinstance(number, (int, float)):
        return float(number), ()
    form = of.form(use)
    if form.fn != "mul" or use.layout:
        return 1.0, (use,)
    (left, some), (right, others) = (_factors(of, operand) for operand in form.operands)
    return left * right, (*some, *others)


def _polynomial(of: FormBuilder, use: Use, x: Use) -> dict[int, float] | None:
    """The coefficients of `use` as a polynomial of `x`, by exponent; None where it is none."""
    if use == x:
        return {1: 1.0}
    form = of.form(use)
    number = of.number(use)
    if isinstance(number, (int, float)):
        return {0: float(number)}
    if use.layout or form.fn not in ("add", "mul", "square", "pow"):
        return None
    parts = [_polynomial(of, operand, x) for operand in form.operands]
    if form.fn == "square":
        parts *= 2
    elif form.fn == "pow":
        exponent = of.number(form.operands[1])
        if exponent not in (2, 3):
            return None
        parts = parts[:1] * int(exponent)
    made: dict[int, float] = {0: 0.0} if form.fn == "add" else {0: 1.0}
    for part in parts:
        if part is None:
            return None
        made = _sum(made, part) if form.fn == "add" else _product(made, part)
    return {k: v for k, v in made.items() if v}


def _sum(a: dict[int, float], b: dict[int, float]) -> dict[int, float]:
    return {k: a.get(k, 0.0) + b.get(k, 0.0) for k in a.keys() | b.keys()}


def _product(a: dict[int, float], b: dict[int, float]) -> dict[int, float]:
    made: dict[int, float] = {}
    for i, x in a.items():
        for j, y in b.items():
            made[i + j] = made.get(i + j, 0.0) + x * y
    return made


def _near(a: Dim | float, b: float) -> bool:
    """Equal to the digits that models write such constants with."""
    return isinstance(a, (int, float)) and math.isclose(a, b, rel_tol=1e-4)
