"""The backend table of Triton: what each primitive, reduction, type and constant is in its source."""

from __future__ import annotations

import math

import torch

from fusion.patterns import scalar
from fusion.patterns.errors import LoweringError
from fusion.patterns.scalar import Constant

TYPES = {
    torch.float32: "tl.float32", torch.float64: "tl.float64", torch.bfloat16: "tl.bfloat16",
    torch.float16: "tl.float16", torch.int64: "tl.int64", torch.int32: "tl.int32", torch.int16: "tl.int16",
    torch.int8: "tl.int8", torch.uint8: "tl.uint8", torch.bool: "tl.int1",
}  # fmt: skip

# Primitive -> expression, by the operand's dtype: its name ("float32"), its family ("float", "int", "bool"), or "any".
# Division and square root round to nearest; tl.exp and the like are approximations in float32 (see math.py).
EXPRESSIONS: dict[str, dict[str, str]] = {
    "neg": {"float": "(-1.0 * {0})", "int": "(-{0})"},  # 0 - x, which is what Triton makes of -x, loses the sign of 0
    "abs": {"any": "tl.abs({0})"},
    "exp": {"float32": "_exp({0})", "float64": "tl.exp({0})"},
    "expm1": {"float32": "_expm1({0})"},
    "log": {"float32": "_log({0})", "float64": "tl.log({0})"},
    "log1p": {"float32": "_log1p({0})"},
    "sqrt": {"float32": "tl.sqrt_rn({0})", "float64": "tl.sqrt({0})"},
    "rsqrt": {"float32": "tl.div_rn(1.0, tl.sqrt_rn({0}))", "float64": "(1.0 / tl.sqrt({0}))"},
    "sin": {"float32": "_sin({0})", "float64": "tl.sin({0})"},
    "cos": {"float32": "_cos({0})", "float64": "tl.cos({0})"},
    "tanh": {"float32": "_tanh({0})"},
    "erf": {"float": "tl.erf({0})"},
    "floor": {"float": "tl.floor({0})", "int": "{0}"},
    "ceil": {"float": "tl.ceil({0})", "int": "{0}"},
    "trunc": {"float": "tl.where({0} < 0.0, tl.ceil({0}), tl.floor({0}))", "int": "{0}"},
    "round": {"float32": "_round({0})", "int": "{0}"},
    "not": {"bool": "({0} == 0)"},
    "isnan": {"float": "({0} != {0})", "any": "({0} != {0})"},
    "add": {"any": "({0} + {1})"},
    "sub": {"any": "({0} - {1})"},
    "mul": {"any": "({0} * {1})"},
    "div": {"float32": "tl.div_rn({0}, {1})", "float64": "({0} / {1})", "int": "({0} // {1})"},  # cut off, as in C
    "pow": {"float32": "_pow({0}, {1})"},
    "fmod": {"float32": "_fmod({0}, {1})", "int": "({0} % {1})"},  # of integers, the divisor is not 0
    "atan2": {},
    "shl": {
        "int32": "tl.where(({1} >= 0) & ({1} < 32), {0} << ({1} & 31), 0)",
        "int64": "tl.where(({1} >= 0) & ({1} < 64), {0} << ({1} & 63), 0)",
    },
    "shr": {
        "int32": "({0} >> tl.where(({1} >= 0) & ({1} < 32), {1}, 31))",
        "int64": "({0} >> tl.where(({1} >= 0) & ({1} < 64), {1}, 63))",
    },
    "max": {"float": "_maximum({0}, {1})", "any": "tl.maximum({0}, {1})"},
    "min": {"float": "_minimum({0}, {1})", "any": "tl.minimum({0}, {1})"},
    "lt": {"any": "({0} < {1})"},
    "le": {"any": "({0} <= {1})"},
    "gt": {"any": "({0} > {1})"},
    "ge": {"any": "({0} >= {1})"},
    "eq": {"any": "({0} == {1})"},
    "ne": {"any": "({0} != {1})"},
    "and": {"any": "({0} & {1})"},
    "or": {"any": "({0} | {1})"},
    "xor": {"any": "({0} ^ {1})"},
    "where": {"any": "tl.where({0}, {1}, {2})"},
    "fma": {"float": "tl.fma({0}, {1}, {2})"},
    "cast": {"any": "{0}.to({type})"},
    "round_bfloat16": {"float32": "{0}.to(tl.bfloat16).to(tl.float32)"},
    "round_float16": {"float32": "{0}.to(tl.float16).to(tl.float32)"},
    "wrap_int8": {"int32": "{0}.to(tl.int8).to(tl.int32)"},
    "wrap_int16": {"int32": "{0}.to(tl.int16).to(tl.int32)"},
    "wrap_uint8": {"int32": "({0} & 255)"},
}

# Reduction -> (combination of two blocks, reduction of a block along its columns), of floats and of integers
REDUCTIONS: dict[str, dict[str, tuple[str, str]]] = {
    "sum": {"any": ("{0} + {1}", "tl.sum({0}, axis=1)")},
    "prod": {"any": ("{0} * {1}", "tl.reduce({0}, 1, _product)")},
    "max": {
        "float": ("_maximum({0}, {1})", "tl.reduce({0}, 1, _maximum)"),
        "int": ("tl.maximum({0}, {1})", "tl.max({0}, axis=1)"),
    },
    "min": {
        "float": ("_minimum({0}, {1})", "tl.reduce({0}, 1, _minimum)"),
        "int": ("tl.minimum({0}, {1})", "tl.min({0}, axis=1)"),
    },
}
# Scan -> a block whose columns are the scan along them
SCANS = {"sum": "tl.cumsum({0}, axis=1)", "prod": "tl.cumprod({0}, axis=1)"}

_SMALLEST_NORMAL = 2.0**-126


def form(fn: str, dtype: torch.dtype) -> str:
    """The format string of a primitive whose last operand has the compute dtype `dtype`.

    Raises:
        LoweringError: code "primitive", there is none for that dtype.
    """
    family = "float" if dtype.is_floating_point else "bool" if dtype is torch.bool else "int"
    forms = EXPRESSIONS[fn]
    for key in (str(dtype).removeprefix("torch."), family, "any"):
        if key in forms:
            return forms[key]
    raise LoweringError(
        "primitive",
        f"The primitive {fn} has no Triton form in {dtype}; it has one for {', '.join(forms)}.",
        remedy="The operator runs eagerly; compute in float32 to have it fused.",
    )


def reduction(fn: str, dtype: torch.dtype) -> tuple[str, str, str]:
    """(identity, combination of two blocks, reduction of a block) of a reduction in the compute dtype `dtype`."""
    forms = REDUCTIONS[fn]
    combine, reduce = forms.get("any") or forms["float" if dtype.is_floating_point else "int"]
    return literal(scalar.constant(scalar.identity(fn, dtype), dtype)), combine, reduce


def literal(node: Constant) -> str:
    """A constant as a literal, which takes its dtype from the operand beside it."""
    value = node.value
    if not isinstance(value, float):
        return repr(value)
    if node.dtype is torch.float32 and math.isfinite(value):
        value = float(torch.tensor(value, dtype=torch.float64).to(torch.float32)) if abs(value) > 3e38 else value
    return repr(value) if math.isfinite(value) else f'float("{value}")'


def typed(node: Constant, shape: str) -> str:
    """A constant as a block of `shape` that has the node's dtype."""
    return f"tl.full({shape}, {literal(node)}, {TYPES[node.dtype]})"


def needs_type(node: Constant) -> bool:
    """Whether a literal would be read as another dtype: a subnormal as float64, a large int as int64."""
    if isinstance(node.value, float):
        return 0.0 < abs(node.value) < _SMALLEST_NORMAL
    return not isinstance(node.value, bool) and not -(2**31) <= node.value < 2**31
