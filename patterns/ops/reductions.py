"""Reduction rows: the elements along some dimensions to one element, or (softmax, cumsum) to as many.

The operand is the element at the column index, in its own compute dtype; a row converts it to the dtype it accumulates
in: float32 for half precision, else the dtype of its result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .. import symbols
from ..leaves import Ref
from ..scalar import HALF_TYPES, Reduce, Scalar, Scan, Size, apply, cast, compute_type, constant
from ..symbols import Dim
from .table import Call, Kind, Operator, Run, register

Expression = Callable[[Call, Run, int], Scalar]

_NARROW = (torch.int8, torch.int16, torch.uint8, torch.bool)
_LAST_INDEX = 2**63 - 1


def total(x: Scalar, extent: Dim) -> Scalar:
    """The sum over the column."""
    return Reduce(x.dtype, "sum", x, extent)


def count(extent: Dim, dtype: torch.dtype) -> Scalar:
    """The number of elements reduced over."""
    return constant(extent, dtype) if isinstance(extent, int) else Size(dtype, extent)


def mean(x: Scalar, extent: Dim) -> Scalar:
    """The mean over the column."""
    return total(x, extent) / count(extent, x.dtype)


def highest(x: Scalar, extent: Dim) -> Scalar:
    """The maximum over the column; NaN if one is there."""
    return Reduce(x.dtype, "max", x, extent)


def lowest(x: Scalar, extent: Dim) -> Scalar:
    """The minimum over the column; NaN if one is there."""
    return Reduce(x.dtype, "min", x, extent)


def _accumulated(call: Call, run: Run, number: int = 0) -> Scalar:
    return cast(run.x, compute_type(call.outputs[number].dtype))


def _of_element(expression: Callable[[Scalar, Dim], Scalar]) -> Expression:
    """A row that needs no more than the element in the dtype of the result."""
    return lambda call, run, number: expression(_accumulated(call, run), run.extent)


def _softmax(x: Scalar, extent: Dim) -> Scalar:
    raised = apply("exp", x - highest(x, extent))
    return raised / total(raised, extent)


def _safe_softmax(x: Scalar, extent: Dim) -> Scalar:
    """A row of nothing but -inf becomes 0."""
    masked = apply("eq", highest(x, extent), float("-inf"))
    return apply("where", masked, constant(0.0, x.dtype), _softmax(x, extent))


def _log_softmax(x: Scalar, extent: Dim) -> Scalar:
    shifted = x - highest(x, extent)
    return shifted - apply("log", total(apply("exp", shifted), extent))


def _logsumexp(x: Scalar, extent: Dim) -> Scalar:
    top = highest(x, extent)
    infinite = apply("eq", apply("abs", top), float("inf"))
    safe = apply("where", infinite, constant(0.0, x.dtype), top)
    return apply("log", total(apply("exp", x - safe), extent)) + safe


def _without_nan(x: Scalar, extent: Dim) -> Scalar:
    known = apply("where", apply("isnan", x), constant(0, x.dtype), x) if x.dtype.is_floating_point else x
    return total(known, extent)


def _nonzero(call: Call, run: Run, number: int) -> Scalar:
    return total(cast(apply("ne", run.x, 0), torch.int64), run.extent)


def _extreme(fn: str) -> Expression:
    """The maximum or minimum, and its first position: the least one whose element equals it or is NaN."""

    def expression(call: Call, run: Run, number: int) -> Scalar:
        x = cast(run.x, torch.int32) if run.x.dtype is torch.bool else run.x
        found = Reduce(x.dtype, fn, x, run.extent)
        return _first(x, found, run) if number == 1 else cast(found, run.x.dtype)

    return expression


def _arg(fn: str) -> Expression:
    def expression(call: Call, run: Run, number: int) -> Scalar:
        x = cast(run.x, torch.int32) if run.x.dtype is torch.bool else run.x
        return _first(x, Reduce(x.dtype, fn, x, run.extent), run)

    return expression


def _first(x: Scalar, found: Scalar, run: Run) -> Scalar:
    """The first position of the element `found`; of NaN, where `found` is."""
    here = apply("eq", x, found)
    here = apply("or", here, apply("isnan", x)) if x.dtype.is_floating_point else here
    return lowest(apply("where", here, run.position, constant(_LAST_INDEX, torch.int64)), run.extent)


def _aminmax(call: Call, run: Run, number: int) -> Scalar:
    x = cast(run.x, torch.int32) if run.x.dtype is torch.bool else run.x
    return cast(Reduce(x.dtype, "max" if number else "min", x, run.extent), run.x.dtype)


def _truth(fn: str) -> Expression:
    """any and all: the maximum or minimum of 0s and 1s, whose empty values compare as False and True."""

    def expression(call: Call, run: Run, number: int) -> Scalar:
        flag = cast(cast(run.x, torch.bool), torch.int32)
        return cast(apply("gt", Reduce(torch.int32, fn, flag, run.extent), 0), compute_type(call.outputs[0].dtype))

    return expression


def _moments(first: Callable[[Call, Scalar], Scalar]) -> Expression:
    """Variance in two passes, by `first` of (call, variance); the second result is the mean."""

    def expression(call: Call, run: Run, number: int) -> Scalar:
        x = _accumulated(call, run)
        centre = mean(x, run.extent)
        if number == 1:
            return centre + (centre - centre)  # NaN of an infinite one, as torch's running mean makes it
        off = x - centre
        correction = _correction(call)
        left = apply("max", count(run.extent, x.dtype) - correction, 0.0)
        variance = total(off * off, run.extent) / left
        if correction < 0:
            variance = variance + (centre - centre)  # of no elements NaN, as the mean is
        return first(call, variance)

    return expression


def _correction(call: Call) -> float:
    if "correction" in call.kwargs:
        given = call.kwargs["correction"]
        return 1.0 if given is None else float(given)
    flags = [a for a in call.args[1:] if isinstance(a, bool)]
    unbiased = call.kwargs.get("unbiased", flags[0] if flags else True)
    return 1.0 if unbiased else 0.0


def _norm(call: Call, run: Run, number: int) -> Scalar:
    """The p-norm. LinearAlgebra.cpp of aten/src/ATen/native names special orders, and takes no power of one element."""
    order = float(_order(call))
    size = apply("abs", _accumulated(call, run))
    if run.extent == 1 and order != 0:
        return size
    if order == float("inf"):
        return highest(size, run.extent)
    if order == float("-inf"):
        return lowest(size, run.extent)
    if order == 0:
        return total(cast(apply("ne", size, 0.0), size.dtype), run.extent)
    if order == 1:
        return total(size, run.extent)
    if order == 2:
        return apply("sqrt", total(size * size, run.extent))
    return apply("pow", total(apply("pow", size, order), run.extent), 1.0 / order)


def _order(call: Call) -> Any:
    given = call.argument(1, "ord" if "ord" in call.kwargs else "p", None)
    return 2 if given is None else given


def _layer_norm(call: Call, run: Run, number: int) -> Scalar:
    """(x - mean) / sqrt(var + eps) * weight + bias; then the mean and the reciprocal root."""
    x = cast(run.x, compute_type(call.outputs[0].dtype))
    centre = mean(x, run.extent)
    if number == 1:
        return centre
    off = x - centre
    scale = apply("rsqrt", mean(off * off, run.extent) + call.argument(4, "eps", 1e-5))
    return scale if number == 2 else _scaled(call, run, off * scale)


def _rms_norm(call: Call, run: Run, number: int) -> Scalar:
    x = cast(run.x, compute_type(call.outputs[0].dtype))
    eps = call.argument(3, "eps", None)
    eps = rms_epsilon(call.inputs[0].dtype) if eps is None else eps
    scale = apply("rsqrt", mean(x * x, run.extent) + eps)
    return scale if number == 1 else _scaled(call, run, x * scale)


def rms_epsilon(dtype: torch.dtype) -> float:
    """What rms_norm adds where no eps is given: the machine epsilon of the dtype it computes in."""
    return torch.finfo(compute_type(dtype)).eps


def _scaled(call: Call, run: Run, x: Scalar) -> Scalar:
    """`x` times the weight plus the bias, those of them that are given."""
    weight, bias = _operand(call, 2, "weight"), _operand(call, 3, "bias")
    if weight is not None:
        x = x * cast(run.others[weight - 1], x.dtype)
    return x if bias is None else x + cast(run.others[bias - 1], x.dtype)


def _operand(call: Call, position: int, name: str) -> int | None:
    """Which of the call's inputs an argument is; None where it is not given. Keywords come sorted by name."""
    if position < len(call.args):
        given, before = call.args[position], call.args[:position]
    else:
        given = call.kwargs.get(name)
        before = (*call.args, *(value for key, value in sorted(call.kwargs.items()) if key < name))
    return sum(isinstance(x, Ref) for x in before) if isinstance(given, Ref) else None


def _scan(fn: str) -> Expression:
    def expression(call: Call, run: Run, number: int) -> Scalar:
        x = _accumulated(call, run)
        return Scan(x.dtype, fn, x, run.extent, call.outputs[number].dtype in HALF_TYPES)

    return expression


# Which dimensions a call reduces over.


def _dims(position: int) -> Callable[[Call], tuple[int, ...]]:
    def dims(call: Call) -> tuple[int, ...]:
        rank = len(call.inputs[0].shape)
        given = call.argument(position, "dim", None)
        listed = given if isinstance(given, tuple) else () if given is None else (given,)
        return tuple(sorted(d % rank for d in listed)) if listed and rank else tuple(range(rank))

    return dims


def _every(call: Call) -> tuple[int, ...]:
    return tuple(range(len(call.inputs[0].shape)))


def _trailing(call: Call) -> tuple[int, ...]:
    rank = len(call.inputs[0].shape)
    return tuple(range(rank - len(call.argument(1, "normalized_shape", ())), rank))


# Which uses the rows cover.


def _covers(dims: Callable[[Call], tuple[int, ...]], *, empty: bool, narrow: bool) -> Callable[[Call], str | None]:
    def covers(call: Call) -> str | None:
        shape = call.inputs[0].shape
        reduced = dims(call)
        if len(set(reduced)) != len(reduced):
            return "a dimension that is reduced over twice"
        if not empty and any(isinstance(shape[d], int) and shape[d] == 0 for d in reduced):
            return "a reduction of no elements"
        if not narrow and any(spec.dtype in _NARROW for spec in call.outputs):
            return "a sum in 8 or 16 bit integers, which wraps, or in bools"
        return None

    return covers


def _also(covers: Callable[[Call], str | None], more: Callable[[Call], str | None]) -> Callable[[Call], str | None]:
    return lambda call: covers(call) or more(call)


def _of_floats(call: Call) -> str | None:
    """torch takes an integer dtype of the result where there are no elements, and raises elsewhere."""
    return None if call.outputs[0].dtype.is_floating_point else "its result is of integers"


def _no_empty_list(call: Call) -> str | None:
    return "an empty list of dimensions" if call.argument(1, "dim", None) == () else None


def _has_dimensions(call: Call) -> str | None:
    return None if call.inputs[0].shape else "a tensor without dimensions"


def _number_order(call: Call) -> str | None:
    order = _order(call)
    return None if isinstance(order, (int, float)) else f"the order {order!r}"


def _vector_order(call: Call) -> str | None:
    """linalg.norm takes the norm of a matrix where it is given an order and two dimensions."""
    if call.argument(1, "ord", None) is None:
        return None
    return _number_order(call) if len(_THIRD(call)) == 1 else "the norm of a matrix"


def _trailing_fits(call: Call) -> str | None:
    dims = _trailing(call)
    normalized = call.inputs[0].shape[len(call.inputs[0].shape) - len(dims) :]
    for spec in call.inputs[1:]:
        if len(spec.shape) == len(dims) and all(map(symbols.same, spec.shape, normalized)):
            continue
        return "a weight of another shape than the normalised dimensions"
    wide = {compute_type(spec.dtype) for spec in call.outputs}
    return None if len(wide) == 1 and not wide & {torch.int64, torch.int32, torch.bool} else "results of several dtypes"


_SUMMED = "accumulated in float32, float64 or the integer result; the order differs"
_EXACT = "exact"


def _reduction(
    ops: str,
    expression: Expression,
    dims: Callable[[Call], tuple[int, ...]] = _every,
    *,
    keeps: bool = False,
    empty: bool = True,
    narrow: bool = False,
    covers: Callable[[Call], str | None] = lambda call: None,
    note: str = _SUMMED,
) -> None:
    """Registers overloads; `ops` are names without "aten.", apart by spaces."""
    covered = _also(_covers(dims, empty=empty, narrow=narrow), covers)
    for op in ops.split():
        register(Operator(f"aten.{op}", Kind.REDUCTION, expression, dims=dims, keeps=keeps, covers=covered, note=note))


_SECOND, _THIRD = _dims(1), _dims(2)
for _name, _expression in (("sum", total), ("mean", mean)):
    _reduction(f"{_name}.default", _of_element(_expression))
_reduction("sum.dim_IntList", _of_element(total), _SECOND)
_reduction("mean.dim", _of_element(mean), _SECOND)
_reduction("nansum.default", _of_element(_without_nan), _SECOND)
_reduction("prod.default", _of_element(lambda x, extent: Reduce(x.dtype, "prod", x, extent)))
_reduction("prod.dim_int", _of_element(lambda x, extent: Reduce(x.dtype, "prod", x, extent)), _SECOND)
_reduction("count_nonzero.default count_nonzero.dim_IntList", _nonzero, _SECOND, covers=_no_empty_list, note=_EXACT)
for _name in ("max", "min"):
    _reduction(f"{_name}.default", _extreme(_name), empty=False, narrow=True, note=_EXACT)
    _reduction(f"{_name}.dim a{_name}.default", _extreme(_name), _SECOND, empty=False, narrow=True, note=_EXACT)
    _reduction(f"arg{_name}.default", _arg(_name), _SECOND, empty=False, narrow=True, note=_EXACT)
_reduction("aminmax.default", _aminmax, _SECOND, empty=False, narrow=True, note=_EXACT)
for _name, _fn in (("any", "max"), ("all", "min")):
    _reduction(f"{_name}.default", _truth(_fn), narrow=True, note=_EXACT)
    _reduction(f"{_name}.dim {_name}.dims", _truth(_fn), _SECOND, narrow=True, covers=_no_empty_list, note=_EXACT)
for _name, _first_result in (
    ("var", lambda call, variance: variance),
    ("std", lambda call, variance: apply("sqrt", variance)),
):
    for _op in (_name, f"{_name}_mean"):
        _reduction(f"{_op}.default", _moments(_first_result))
        _reduction(f"{_op}.dim {_op}.correction", _moments(_first_result), _SECOND)
_reduction("linalg_vector_norm.default", _norm, _THIRD, empty=False, covers=_number_order)
_reduction("linalg_norm.default", _norm, _THIRD, empty=False, covers=_vector_order)
_reduction("norm.Scalar norm.ScalarOpt_dtype", _norm, empty=False, covers=_number_order)
_reduction("norm.ScalarOpt_dim norm.ScalarOpt_dim_dtype", _norm, _THIRD, empty=False, covers=_number_order)
_reduction(
    "softmax.int _softmax.default special_softmax.default",
    _of_element(_softmax),
    _SECOND,
    keeps=True,
    covers=_of_floats,
)
_reduction("_safe_softmax.default", _of_element(_safe_softmax), _SECOND, keeps=True, covers=_of_floats)
_reduction(
    "log_softmax.int _log_softmax.default special_log_softmax.default",
    _of_element(_log_softmax),
    _SECOND,
    keeps=True,
    covers=_of_floats,
)
_reduction("logsumexp.default", _of_element(_logsumexp), _SECOND)
_reduction("layer_norm.default native_layer_norm.default", _layer_norm, _trailing, keeps=True, covers=_trailing_fits)
_reduction("rms_norm.default _fused_rms_norm.default", _rms_norm, _trailing, keeps=True, covers=_trailing_fits)
for _name, _fn in (("cumsum", "sum"), ("cumprod", "prod")):
    _reduction(f"{_name}.default", _scan(_fn), _SECOND, keeps=True, covers=_has_dimensions)
