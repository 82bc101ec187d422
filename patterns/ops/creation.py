"""Element rows without operands' elements: a value from the index alone, or the same value everywhere."""

from __future__ import annotations

from typing import Any

import sympy
import torch

from ..indexing import Extents, Index
from ..scalar import Scalar, Size, apply, cast
from .joins import number
from .table import Call, Kind, Operator, Read, covered, register


def _filled(value: int) -> Any:
    return lambda call, index, extents, read: number(value, call.outputs[0].dtype)


def _full(position: int, name: str) -> Any:
    return lambda call, index, extents, read: number(call.argument(position, name, 0), call.outputs[0].dtype)


def _arange(call: Call, index: Index, extents: Extents, read: Read) -> Scalar:
    """start + step * i: in int64 where both are whole numbers, else in float64, as torch does on CPUs."""
    start, step = progression(call)
    dtype = torch.int64 if _whole(start, step) else torch.float64
    place = Size(dtype, index[0])
    scaled = place if step == 1 else place * number(step, dtype)
    return scaled if start == 0 else number(start, dtype) + scaled


def progression(call: Call) -> tuple[Any, Any]:
    """The first number of an arange, and its step."""
    given = [a for a in call.args if isinstance(a, (int, float, sympy.Expr))]
    given += [call.kwargs[name] for name in ("start", "end", "step") if name in call.kwargs]
    return given[0] if len(given) > 1 else 0, given[2] if len(given) > 2 else 1


def _whole(*numbers: Any) -> bool:
    return not any(isinstance(n, float) for n in numbers)


def _arange_covers(call: Call) -> str | None:
    made = call.outputs[0].dtype
    return None if made.is_floating_point or _whole(*progression(call)) else "integers from fractions"


def _eye(call: Call, index: Index, extents: Extents, read: Read) -> Scalar:
    row, column = (Size(torch.int64, at) for at in index)
    return cast(apply("eq", row, column), torch.int64)


def _linspace(call: Call, index: Index, extents: Extents, read: Read) -> Scalar:
    """From both ends to the middle, as torch does, so that the last element is `end` exactly."""
    start, end = (number(call.argument(k, name, 0), torch.float64) for k, name in enumerate(("start", "end")))
    steps = call.outputs[0].shape[0]
    if steps == 1:
        return start
    place, last = Size(torch.float64, index[0]), number(steps, torch.float64) - 1.0
    step = (end - start) / last
    return apply("where", apply("lt", place + place, last), start + step * place, end - step * (last - place))


def _linspace_covers(call: Call) -> str | None:
    return None if call.outputs[0].dtype.is_floating_point else "whole numbers by linspace"


def _create(ops: str, element: Any, covers: Any = covered, note: str = "exact") -> None:
    for op in ops.split():
        register(Operator(f"aten.{op}", Kind.ELEMENT, element=element, covers=covers, note=note))


_ONE_ROUNDING = "computed in int64 or float64, then rounded once"

_create("zeros.default zeros_like.default new_zeros.default zero.default", _filled(0))
_create("ones.default ones_like.default new_ones.default", _filled(1))
_create("full.default full_like.default", _full(1, "fill_value"))
_create("fill.Scalar", _full(1, "value"))
_create("new_full.default", _full(2, "fill_value"))
_create("scalar_tensor.default", _full(0, "s"))
_create("arange.default arange.start arange.start_step", _arange, _arange_covers, _ONE_ROUNDING)
_create("eye.default eye.m", _eye)
_create("linspace.default", _linspace, _linspace_covers, _ONE_ROUNDING)
