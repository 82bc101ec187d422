"""Element rows with operands: cat, stack, pad, triangles, shifts, scatters; an element is chosen by its index."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import sympy
import torch

from .. import indexing, symbols
from ..indexing import Extents, Index
from ..scalar import Scalar, Select, Size, apply, compute_type, constant
from ..symbols import Dim
from .activations import sigmoid
from .table import Call, Kind, Operator, Read, covered, register

Case = Callable[[], Scalar]


def choose(at: Dim, bounds: Sequence[Dim], cases: Sequence[Case], extents: Extents) -> Scalar:
    """`cases[k]` for the first k with `at < bounds[k]`, else the last. Cases that no index reaches are not built."""
    kept: list[Dim] = []
    chosen: list[Scalar] = []
    for bound, case in zip(bounds, cases, strict=False):
        past = symbols.as_dim(at - bound)  # a bound may name loop indices too
        if indexing.reaches(past, 0, extents):
            continue
        chosen.append(case())
        if indexing.below(past, 0, extents):
            break
        kept.append(bound)
    else:
        chosen.append(cases[-1]())
    return chosen[0] if len(chosen) == 1 else Select(chosen[0].dtype, at, tuple(kept), tuple(chosen))


def number(value: Dim | float | bool, dtype: torch.dtype) -> Scalar:
    """A number or a size, in the dtype that values of `dtype` are computed in."""
    compute = compute_type(dtype)
    return Size(compute, value) if isinstance(value, sympy.Expr) else constant(value, compute)


def _element(
    ops: tuple[str, ...], element: Any, covers: Callable[[Call], str | None] = covered, note: str = "exact"
) -> None:
    for op in ops:
        register(Operator(f"aten.{op}", Kind.ELEMENT, element=element, covers=covers, note=note))


def _replaced(index: Index, dim: int, at: Dim) -> Index:
    return (*index[:dim], symbols.as_dim(at), *index[dim + 1 :])


# cat, stack


def _joined(at: Dim, sizes: Sequence[Dim], case: Callable[[int, Dim], Scalar], extents: Extents) -> Scalar | None:
    """`case(k, place in piece k)` of the piece that `at` lies in; None where all pieces are empty."""
    ends: list[Dim] = []
    cases: list[Case] = []
    end: Dim = 0
    for k, size in enumerate(sizes):
        if symbols.same(size, 0):
            continue
        place = symbols.as_dim(at - end)
        end = symbols.as_dim(end + size)
        ends.append(end)
        cases.append(lambda k=k, place=place: case(k, place))  # type: ignore[misc]  # the defaults bind this turn's values
    return choose(at, ends[:-1], cases, extents) if cases else None


def _cat(call: Call, index: Index, extents: Extents, read: Read) -> Scalar:
    dim = call.argument(1, "dim", 0) % len(index)
    sizes = [spec.shape[dim] for spec in call.inputs]
    found = _joined(index[dim], sizes, lambda k, place: read(k, _replaced(index, dim, place)), extents)
    return number(0, call.outputs[0].dtype) if found is None else found  # an empty result: nothing is ever read


def _cat_covers(call: Call) -> str | None:
    rank = len(call.outputs[0].shape)
    return None if all(len(s.shape) == rank for s in call.inputs) else "cat with a legacy empty tensor"


def _stack(call: Call, index: Index, extents: Extents, read: Read) -> Scalar:
    dim = call.argument(1, "dim", 0) % len(index)
    inner = index[:dim] + index[dim + 1 :]
    cases = [lambda k=k: read(k, inner) for k in range(len(call.inputs))]
    return choose(index[dim], range(1, len(cases)), cases, extents)


# pad


def _pad(call: Call, index: Index, extents: Extents, read: Read) -> Scalar:
    pads, value = call.args[1], call.argument(3 if _has_mode(call) else 2, "value", None)
    outside = number(0 if value is None else value, call.outputs[0].dtype)
    padded = [(len(index) - 1 - k // 2, pads[k]) for k in range(0, len(pads), 2) if pads[k] != 0 or pads[k + 1] != 0]
    source = list(index)
    for dim, left in padded:
        source[dim] = symbols.as_dim(index[dim] - left)

    def inside(k: int) -> Scalar:
        if k == len(padded):
            return read(0, tuple(source))
        dim, left = padded[k]
        bounds = left, symbols.as_dim(left + call.inputs[0].shape[dim])
        return choose(index[dim], bounds, (lambda: outside, lambda: inside(k + 1), lambda: outside), extents)

    return inside(0)


def _has_mode(call: Call) -> bool:
    return "mode" in call.kwargs or (len(call.args) > 2 and isinstance(call.args[2], str))


def _pad_covers(call: Call) -> str | None:
    mode = call.argument(2, "mode", "constant") if _has_mode(call) else "constant"
    return None if mode == "constant" else f"padding by {mode!r}"


# triangles


def _triu(call: Call, index: Index, extents: Extents, read: Read) -> Scalar:
    row, column = index[-2:]
    first = symbols.as_dim(row + call.argument(1, "diagonal", 0))
    zero = number(0, call.outputs[0].dtype)
    return choose(column, (first,), (lambda: zero, lambda: read(0, index)), extents)


def _tril(call: Call, index: Index, extents: Extents, read: Read) -> Scalar:
    row, column = index[-2:]
    end = symbols.as_dim(row + call.argument(1, "diagonal", 0) + 1)
    zero = number(0, call.outputs[0].dtype)
    return choose(column, (end,), (lambda: read(0, index), lambda: zero), extents)


# shifts


def _diff(call: Call, index: Index, extents: Extents, read: Read) -> Scalar:
    dim = call.argument(2, "dim", -1) % len(index)
    pieces = [k for k in (call.operand(3, "prepend"), 0, call.operand(4, "append")) if k is not None]
    sizes = [call.inputs[k].shape[dim] for k in pieces]

    def at(place: Dim) -> Scalar:
        found = _joined(symbols.as_dim(place), sizes, lambda k, at: read(pieces[k], _replaced(index, dim, at)), extents)
        return number(0, call.outputs[0].dtype) if found is None else found

    after, before = at(index[dim] + 1), at(index[dim])
    return apply("ne" if call.outputs[0].dtype is torch.bool else "sub", after, before)


def _diff_covers(call: Call) -> str | None:
    return None if call.argument(1, "n", 1) == 1 else "a difference of another order than 1"


def _roll(call: Call, index: Index, extents: Extents, read: Read) -> Scalar:
    shifts, dims = _listed(call.args[1]), _listed(call.argument(2, "dims", ()))
    total: dict[int, int] = {}
    for shift, dim in zip(shifts, dims or (0,), strict=True):
        total[dim % len(index)] = total.get(dim % len(index), 0) + shift
    moves = list(total.items())

    def moved(k: int, source: Index) -> Scalar:
        if k == len(moves):
            return read(0, source)
        dim, shift = moves[k]
        size = call.inputs[0].shape[dim]
        shift = shift % size if isinstance(size, int) and size else shift
        first = shift if shift >= 0 else symbols.as_dim(size + shift)  # where element 0 lands
        cases = (symbols.as_dim(index[dim] - first + size), symbols.as_dim(index[dim] - first))
        read_at = [lambda at=at: moved(k + 1, _replaced(source, dim, at)) for at in cases]
        return choose(index[dim], (first,), read_at, extents)

    return moved(0, index)


def _roll_covers(call: Call) -> str | None:
    shape, dims = call.inputs[0].shape, _listed(call.argument(2, "dims", ()))
    if not shape or (not dims and len(shape) != 1):
        return "a roll of the flattened tensor"
    for shift, dim in zip(_listed(call.args[1]), dims or (0,), strict=True):
        known = isinstance(shift, int) and (isinstance(shape[dim], int) or abs(shift) == 1)
        if not known or (len(set(dims)) < len(dims) and not isinstance(shape[dim], int)):
            return "a roll that may be further than the dimension is long"
    return None


def _listed(dims: Any) -> tuple[Any, ...]:
    return dims if isinstance(dims, tuple) else (dims,)


def _glu(call: Call, index: Index, extents: Extents, read: Read) -> Scalar:
    dim = call.argument(1, "dim", -1) % len(index)
    other = _replaced(index, dim, index[dim] + call.outputs[0].shape[dim])
    return read(0, index) * sigmoid(read(0, other))


# writes to a part, as a new tensor


def _slice_scatter(call: Call, index: Index, extents: Extents, read: Read) -> Scalar:
    dim, start, stop = _written(call)
    place = _replaced(index, dim, index[dim] - start)
    cases = (lambda: read(0, index), lambda: read(1, place), lambda: read(0, index))
    return choose(index[dim], (start, stop), cases, extents)


def _written(call: Call) -> tuple[int, Dim, Dim]:
    """The dimension of a slice_scatter, and the slice's first and last-but-one index in it."""
    dim = call.argument(2, "dim", 0) % len(call.outputs[0].shape)
    start = call.argument(3, "start", None) or 0
    start = symbols.as_dim(call.inputs[0].shape[dim] + start) if isinstance(start, int) and start < 0 else start
    return dim, start, symbols.as_dim(start + call.inputs[1].shape[dim])


def _slice_scatter_covers(call: Call) -> str | None:
    if call.argument(5, "step", 1) != 1:
        return "a write to every n-th element"
    dim, start, _ = _written(call)
    size = call.inputs[0].shape[dim]
    if isinstance(start, int) and start >= 0:
        return "a slice that starts outside the tensor" if isinstance(size, int) and start > size else None
    return "a slice with a symbolic start"


def _select_scatter(call: Call, index: Index, extents: Extents, read: Read) -> Scalar:
    dim, at = call.args[2] % len(index), call.args[3]
    at = symbols.as_dim(call.inputs[0].shape[dim] + at) if isinstance(at, int) and at < 0 else at
    inner = index[:dim] + index[dim + 1 :]
    cases = (lambda: read(0, index), lambda: read(1, inner), lambda: read(0, index))
    return choose(index[dim], (at, symbols.as_dim(at + 1)), cases, extents)


_element(("cat.default",), _cat, _cat_covers)
_element(("stack.default",), _stack)
_element(("pad.default", "constant_pad_nd.default"), _pad, _pad_covers)
_element(("triu.default",), _triu)
_element(("tril.default",), _tril)
_element(("diff.default",), _diff, _diff_covers)
_element(("roll.default",), _roll, _roll_covers)
_element(("glu.default",), _glu, note="within 2 ulp of float32 before the result is rounded")
_element(("slice_scatter.default",), _slice_scatter, _slice_scatter_covers)
_element(("select_scatter.default",), _select_scatter)
