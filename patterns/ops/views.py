"""View rows: where an element of the result lies in the operand."""

from __future__ import annotations

from typing import Any

from .. import symbols
from ..indexing import Extents, Index, broadcast_index, divide, reshape_index
from ..symbols import Dim
from .table import Call, Kind, Operator, covered, register


def _same(call: Call, index: Index, extents: Extents, number: int) -> Index:
    return index


def _reshape(call: Call, index: Index, extents: Extents, number: int) -> Index:
    return reshape_index(index, call.outputs[0].shape, call.inputs[0].shape, extents)


def _transpose(call: Call, index: Index, extents: Extents, number: int) -> Index:
    if not index:
        return index
    a, b = (d % len(index) for d in call.args[1:3])
    swapped = list(index)
    swapped[a], swapped[b] = swapped[b], swapped[a]
    return tuple(swapped)


def _matrix_transpose(call: Call, index: Index, extents: Extents, number: int) -> Index:
    return index if len(index) < 2 else (*index[:-2], index[-1], index[-2])


def _reverse(call: Call, index: Index, extents: Extents, number: int) -> Index:
    return index[::-1]


def _permute(call: Call, index: Index, extents: Extents, number: int) -> Index:
    order = [d % len(index) for d in call.args[1]]
    return tuple(index[order.index(d)] for d in range(len(index)))


def _unsqueeze(call: Call, index: Index, extents: Extents, number: int) -> Index:
    at = call.args[1] % len(index)
    return index[:at] + index[at + 1 :]


def _expand(call: Call, index: Index, extents: Extents, number: int) -> Index:
    return broadcast_index(index, call.outputs[0].shape, call.inputs[0].shape)


def _shifted(index: Index, dim: int, start: Dim, step: int = 1) -> Index:
    moved = symbols.as_dim(index[dim] * step + start)
    return (*index[:dim], moved, *index[dim + 1 :])


def _from_end(position: Dim, size: Dim) -> Dim:
    return symbols.as_dim(size + position) if isinstance(position, int) and position < 0 else position


_NO_END = 2**63 - 1  # what torch writes for the end of a slice that has none


def _is_tail(call: Call) -> bool:
    """Whether a slice is the last elements along its dimension, wherever it is said to start."""
    end = call.argument(3, "end", None)
    return call.argument(4, "step", 1) == 1 and (end is None or (isinstance(end, int) and end >= _NO_END))


def _slice(call: Call, index: Index, extents: Extents, number: int) -> Index:
    dim = call.argument(1, "dim", 0) % len(index)
    if _is_tail(call):  # so that a start that is negative or past the end needs no thought
        return _shifted(index, dim, symbols.as_dim(call.inputs[0].shape[dim] - call.outputs[0].shape[dim]))
    start = call.argument(2, "start", None)
    return _shifted(index, dim, _from_end(start or 0, call.inputs[0].shape[dim]), call.argument(4, "step", 1))


def _slice_covers(call: Call) -> str | None:
    if _is_tail(call):
        return None
    start = call.argument(2, "start", None) or 0
    dim = call.argument(1, "dim", 0)
    size = call.inputs[0].shape[dim]
    if isinstance(start, int) and isinstance(size, int):
        return None if abs(start) <= size else "a slice that starts outside the tensor"
    return None if isinstance(start, int) and start >= 0 else "a slice with a symbolic start"


def _select(call: Call, index: Index, extents: Extents, number: int) -> Index:
    dim = call.args[1] % (len(index) + 1)
    return (*index[:dim], _from_end(call.args[2], call.inputs[0].shape[dim]), *index[dim:])


def _narrow(call: Call, index: Index, extents: Extents, number: int) -> Index:
    dim = call.args[1] % len(index)
    return _shifted(index, dim, _from_end(call.args[2], call.inputs[0].shape[dim]))


def _part(call: Call, index: Index, extents: Extents, number: int) -> Index:
    """Part `number` of chunk or split: it starts where the parts before it end."""
    return _part_along(call.argument(2, "dim", 0) % len(index), call, index, number)


def _part_along(dim: int, call: Call, index: Index, number: int) -> Index:
    start: Dim = 0
    for part in call.outputs[:number]:
        start = start + part.shape[dim]
    return _shifted(index, dim, start)


def _unbind(call: Call, index: Index, extents: Extents, number: int) -> Index:
    dim = call.argument(1, "dim", 0) % (len(index) + 1)
    return (*index[:dim], number, *index[dim:])


def _splits_at(axis: int) -> Any:
    """hsplit, vsplit, dsplit: parts along a given dimension; along the only one of a vector."""

    def index_of(call: Call, index: Index, extents: Extents, number: int) -> Index:
        return _part_along(min(axis, len(index) - 1), call, index, number)

    return index_of


def _ascending(call: Call) -> str | None:
    """The parts of tensor_split follow one another where the indices ascend."""
    at = call.args[1]
    if all(isinstance(i, int) and i >= 0 for i in at) and list(at) == sorted(at):
        return None
    return "a split at indices that do not ascend"


def _move(call: Call, index: Index, extents: Extents, number: int) -> Index:
    rank = len(index)
    if not rank:
        return index
    source, target = (
        [d % rank for d in (dims if isinstance(dims, tuple) else (dims,))] for dims in (call.args[1], call.args[2])
    )
    rest = iter(d for d in range(rank) if d not in source)
    order = [source[target.index(d)] if d in target else next(rest) for d in range(rank)]
    return tuple(index[order.index(d)] for d in range(rank))


def _flip(call: Call, index: Index, extents: Extents, number: int) -> Index:
    return _flipped(call, index, {d % len(index) for d in call.argument(1, "dims", ())} if index else set())


def _flips(dim: int) -> Any:
    """fliplr, flipud."""
    return lambda call, index, extents, number: _flipped(call, index, {dim})


def _flipped(call: Call, index: Index, dims: set[int]) -> Index:
    shape = call.inputs[0].shape
    return tuple(symbols.as_dim(shape[d] - 1 - at) if d in dims else at for d, at in enumerate(index))


def _repeat(call: Call, index: Index, extents: Extents, number: int) -> Index:
    """repeat and tile: each dimension starts over after its size."""
    shape, out = call.inputs[0].shape, call.outputs[0].shape
    kept = index[len(index) - len(shape) :]
    sizes = zip(kept, shape, out[len(out) - len(shape) :], strict=True)
    return tuple(at if symbols.same(size, made) else symbols.modulo(at, size) for at, size, made in sizes)


def _repeat_interleave(call: Call, index: Index, extents: Extents, number: int) -> Index:
    repeats, dim = call.args[1], call.argument(2, "dim", None)
    shape = call.inputs[0].shape
    if dim is None:
        return reshape_index((divide(index[0], repeats, extents)[0],), (symbols.product(shape),), shape, extents)
    at = dim % len(index)
    return (*index[:at], divide(index[at], repeats, extents)[0], *index[at + 1 :])


def _repeat_covers(call: Call) -> str | None:
    return None if call.args[1] != 0 else "no repeats"


def _diagonal(call: Call, index: Index, extents: Extents, number: int) -> Index:
    offset, rank = call.argument(1, "offset", 0), len(call.inputs[0].shape)
    one, two = (call.argument(k, name, k - 2) % rank for k, name in ((2, "dim1"), (3, "dim2")))
    rest = iter(index[:-1])
    down, right = symbols.as_dim(index[-1] + max(-offset, 0)), symbols.as_dim(index[-1] + max(offset, 0))
    return tuple(down if d == one else right if d == two else next(rest) for d in range(rank))


def _diagonal_covers(call: Call) -> str | None:
    return None if isinstance(call.argument(1, "offset", 0), int) else "a diagonal whose offset is a size"


def _unfold(call: Call, index: Index, extents: Extents, number: int) -> Index:
    rank = len(call.inputs[0].shape)
    if not rank:
        return ()
    dim, step = call.args[1] % rank, call.args[3]
    return (*index[:dim], symbols.as_dim(index[dim] * step + index[-1]), *index[dim + 1 : -1])


SAME_ELEMENTS = (_same, _expand)  # every element stays where it is, up to broadcasting
_SPLITS = tuple(map(_splits_at, range(3)))
_FLIPS = (_flip, _flips(0), _flips(1))
# The result has a part of the elements, in their order.
SELECTIONS = (_slice, _select, _narrow, _part, _unbind, *_SPLITS)
# The result has the dimensions in another order.
PERMUTATIONS = (_transpose, _matrix_transpose, _permute, _reverse, _move)
# The result has elements in another order, or several times, within a dimension.
REARRANGEMENTS = (*_FLIPS, _repeat, _repeat_interleave, _diagonal, _unfold)


def _view(ops: tuple[str, ...], index: Any, covers: Any = covered) -> None:
    for op in ops:
        register(Operator(f"aten.{op}", Kind.VIEW, index=index, covers=covers))


_view(
    (
        "alias.default", "detach.default", "contiguous.default", "clone.default", "lift_fresh.default",
        "positive.default",
    ),
    _same,
)  # fmt: skip
_view(
    (
        "view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints", "unflatten.int",
        "squeeze.default", "squeeze.dim", "squeeze.dims", "view_as.default", "reshape_as.default",
        "ravel.default", "atleast_1d.default", "atleast_2d.default", "atleast_3d.default",
    ),
    _reshape,
)  # fmt: skip
_view(("transpose.int",), _transpose)
_view(("t.default", "mT.default", "mH.default", "adjoint.default"), _matrix_transpose)
_view(("numpy_T.default",), _reverse)
_view(("permute.default",), _permute)
_view(("unsqueeze.default",), _unsqueeze)
_view(("expand.default", "expand_as.default", "broadcast_to.default"), _expand)
_view(("slice.Tensor",), _slice, _slice_covers)
_view(("select.int",), _select)
_view(("narrow.default",), _narrow)
_view(
    (
        "chunk.default",
        "split.Tensor",
        "split_with_sizes.default",
        "split.sizes",
        "split.default",
        "unsafe_chunk.default",
        "unsafe_split.Tensor",
        "unsafe_split_with_sizes.default",
        "tensor_split.sections",
    ),
    _part,
)
_view(("tensor_split.indices",), _part, _ascending)
for _axis, _op in enumerate(("vsplit", "hsplit", "dsplit")):
    _view((f"{_op}.int",), _SPLITS[_axis])
    _view((f"{_op}.array",), _SPLITS[_axis], _ascending)
_view(("unbind.int",), _unbind)
_view(("movedim.int", "movedim.intlist"), _move)
for _op, _index in zip(("flip", "flipud", "fliplr"), _FLIPS, strict=True):
    _view((f"{_op}.default",), _index)
_view(("repeat.default", "tile.default"), _repeat)
_view(("repeat_interleave.self_int",), _repeat_interleave, _repeat_covers)
_view(("diagonal.default",), _diagonal, _diagonal_covers)
_view(("unfold.default",), _unfold)
