"""Reduction rows, over the last dimension: to one element, or (softmax) to a row of the same length.

The operand is the row's element at the column index, in float32 or float64; accumulation is in the same dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..scalar import Reduce, Scalar, Size, apply, constant
from ..symbols import Dim
from .table import Call, Kind, Operator, register


def total(x: Scalar, extent: Dim) -> Scalar:
    """The sum of a row."""
    return Reduce(x.dtype, "sum", x, extent)


def _mean(x: Scalar, extent: Dim) -> Scalar:
    return total(x, extent) / (constant(extent, x.dtype) if isinstance(extent, int) else Size(x.dtype, extent))


def _highest(x: Scalar, extent: Dim) -> Scalar:
    return Reduce(x.dtype, "max", x, extent)


def _lowest(x: Scalar, extent: Dim) -> Scalar:
    return Reduce(x.dtype, "min", x, extent)


def _softmax(x: Scalar, extent: Dim) -> Scalar:
    raised = apply("exp", x - _highest(x, extent))
    return raised / total(raised, extent)


def _log_softmax(x: Scalar, extent: Dim) -> Scalar:
    shifted = x - _highest(x, extent)
    return shifted - apply("log", total(apply("exp", shifted), extent))


def _logsumexp(x: Scalar, extent: Dim) -> Scalar:
    highest = _highest(x, extent)
    infinite = apply("eq", apply("abs", highest), float("inf"))
    safe = apply("where", infinite, constant(0.0, x.dtype), highest)
    return apply("log", total(apply("exp", x - safe), extent)) + safe


def _covers(position: int, name: str = "dim") -> Callable[[Call], str | None]:
    def covers(call: Call) -> str | None:
        rank = len(call.inputs[0].shape)
        dims = call.argument(position, name, None)
        if dims is None or dims == ():
            return None if rank == 1 else "a reduction over all dimensions"
        listed = dims if isinstance(dims, tuple) else (dims,)
        if rank == 0 or [d % rank for d in listed] != [rank - 1]:
            return f"a reduction over dimensions {listed} of {rank}, not over the last one"
        if not call.outputs[0].dtype.is_floating_point or call.inputs[0].dtype is torch.float64:
            return "a reduction that is not in float32 or half precision"
        return None

    return covers


def _reduction(op: str, expression: Any, position: int = 1) -> None:
    register(
        Operator(
            f"aten.{op}",
            Kind.REDUCTION,
            expression,
            covers=_covers(position),
            note="float32 accumulation, order differs",
        )
    )


_reduction("sum.dim_IntList", total)
_reduction("mean.dim", _mean)
_reduction("amax.default", _highest)
_reduction("amin.default", _lowest)
_reduction("softmax.int", _softmax)
_reduction("_softmax.default", _softmax)
_reduction("log_softmax.int", _log_softmax)
_reduction("_log_softmax.default", _log_softmax)
_reduction("logsumexp.default", _logsumexp)
