"""A row's expression, in numpy: what it means on a sample, for all elements at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from evaluate import shifted_left, shifted_right
from sample_values import Sample

from fusion.patterns.ops import Operator, resolve
from fusion.patterns.scalar import (
    Apply,
    Constant,
    Load,
    Reduce,
    Scalar,
    Scan,
    Size,
    compute_type,
    constant,
)

# A row is at most a dozen operations in float64, each within 4 ulp, at condition numbers below 100 on these samples:
# 12 * 4 * 100 * 2**-52 = 1.1e-12. A wrong formula is off in the first digits.
TOLERANCE = 2e-12


def element(tensors: dict[str, np.ndarray], tensor: torch.Tensor, dtype: torch.dtype | None) -> Load:
    """A leaf that stands for `tensor`, converted to `dtype` as torch converts operands."""
    name = f"x{len(tensors)}"
    tensors[name] = (tensor if dtype is None else tensor.to(dtype)).numpy()
    kind = compute_type(dtype or tensor.dtype)
    return Load(kind, name, 0, tensor.dtype)


def expression_of(row: Operator, s: Sample, computed_in: torch.dtype, tensors: dict[str, np.ndarray]) -> Scalar:
    """The row's expression over leaves, called as the lowering calls it: numbers are constants."""
    assert row.expression is not None
    numeric = {a.name: any(k in str(a.type) for k in ("Tensor", "number")) for a in resolve(row.op)._schema.arguments}

    def operand(value: Any, is_numeric: bool, unpromoted: bool) -> Any:
        if isinstance(value, torch.Tensor):
            return element(tensors, value, None if unpromoted else computed_in)
        return constant(value, computed_in) if is_numeric and isinstance(value, (bool, int, float)) else value

    flags = list(numeric.values())
    args = [operand(a, flags[k], k in row.unpromoted) for k, a in enumerate(s.args)]
    kwargs = {name: operand(v, numeric[name], False) for name, v in s.kwargs.items()}
    return row.expression(*args, **kwargs, **({"result": computed_in} if row.typed else {}))


UNARY: dict[str, Callable[..., np.ndarray]] = {
    "neg": np.negative, "abs": np.abs, "exp": np.exp, "expm1": np.expm1, "log": np.log, "log1p": np.log1p,
    "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "sin": np.sin, "cos": np.cos, "tanh": np.tanh,
    "erf": np.vectorize(math.erf, otypes=[np.float64]), "floor": np.floor, "ceil": np.ceil, "trunc": np.trunc,
    "round": np.round, "not": np.logical_not, "isnan": np.isnan,
}  # fmt: skip
BINARY: dict[str, Callable[..., np.ndarray]] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power, "fmod": np.fmod,
    "max": np.maximum, "min": np.minimum, "lt": np.less, "le": np.less_equal, "gt": np.greater,
    "ge": np.greater_equal, "eq": np.equal, "ne": np.not_equal, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "atan2": np.arctan2, "shl": shifted_left, "shr": shifted_right,
}  # fmt: skip
REDUCE = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum}
NUMPY = {
    torch.float64: np.float64, torch.float32: np.float32, torch.int64: np.int64, torch.int32: np.int32,
    torch.bool: np.bool_,
}  # fmt: skip


def value(node: Scalar, tensors: Mapping[str, np.ndarray]) -> Any:
    """The value of an expression for all elements at once; the column is the last dimension."""
    match node:
        case Constant(value=number):
            return NUMPY[node.dtype](number)
        case Size(dim=int(size)):
            return NUMPY[node.dtype](size)
        case Load(argument=name):
            return tensors[name]
        case Reduce(fn=fn, body=body):
            return REDUCE[fn].reduce(value(body, tensors), axis=-1, keepdims=True)
        case Scan(fn=fn, body=body):
            return REDUCE[fn].accumulate(value(body, tensors), axis=-1)
        case Apply(fn="cast", args=(x,)):
            inner = value(x, tensors)
            return inner != 0 if node.dtype is torch.bool else np.asarray(inner).astype(NUMPY[node.dtype])
        case Apply(fn="where", args=args):
            return np.where(*(value(a, tensors) for a in args))
        case Apply(fn="fma", args=args):
            a, b, c = (value(x, tensors) for x in args)
            return a * b + c
        case Apply(fn=fn, args=args):
            return {**UNARY, **BINARY}[fn](*(value(a, tensors) for a in args))
    raise AssertionError(f"an expression holds {node}, which a row has no business with")


def assert_means(node: Scalar, tensors: Mapping[str, np.ndarray], expected: torch.Tensor) -> None:
    with np.errstate(all="ignore"):
        got = torch.as_tensor(np.broadcast_to(value(node, tensors), expected.shape).copy())
    got = got.to(expected.dtype)  # the rounding to the result's dtype is not the row's affair
    if expected.dtype.is_floating_point:
        torch.testing.assert_close(got, expected, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    else:
        assert torch.equal(got, expected)


def computed_in(s: Sample, row: Operator) -> torch.dtype:
    """The dtype torch computes in: of the promoted operands."""
    tensors = [a for k, a in enumerate(s.args) if isinstance(a, torch.Tensor) and k not in row.unpromoted]
    numbers = [a for a in s.args if isinstance(a, (bool, int, float))]
    operands = tensors or numbers or [a for a in s.args if isinstance(a, torch.Tensor)]
    dtype = torch.result_type(operands[0], operands[-1])
    return torch.float64 if dtype.is_floating_point else dtype
