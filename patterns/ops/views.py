"""View and join rows: where an element of the result lies in the operand."""

from __future__ import annotations

from typing import Any

from .. import symbols
from ..indexing import Extents, Index, broadcast_index, reshape_index
from ..symbols import Dim
from .table import Call, Kind, Operator, register


def _same(call: Call, index: Index, extents: Extents, number: int) -> Index:
    return index


def _reshape(call: Call, index: Index, extents: Extents, number: int) -> Index:
    return reshape_index(index, call.outputs[0].shape, call.inputs[0].shape, extents)


def _transpose(call: Call, index: Index, extents: Extents, number: int) -> Index:
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


def _slice(call: Call, index: Index, extents: Extents, number: int) -> Index:
    dim = call.argument(1, "dim", 0) % len(index)
    start = call.argument(2, "start", None)
    return _shifted(index, dim, _from_end(start or 0, call.inputs[0].shape[dim]), call.argument(4, "step", 1))


def _slice_covers(call: Call) -> str | None:
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
    dim = call.argument(2, "dim", 0) % len(index)
    start: Dim = 0
    for part in call.outputs[:number]:
        start = start + part.shape[dim]
    return _shifted(index, dim, start)


def _unbind(call: Call, index: Index, extents: Extents, number: int) -> Index:
    dim = call.argument(1, "dim", 0) % (len(index) + 1)
    return (*index[:dim], number, *index[dim:])


def _cat(call: Call) -> tuple[int, tuple[Any, ...]]:
    dim = call.argument(1, "dim", 0) % len(call.outputs[0].shape)
    return dim, tuple(spec.shape[dim] for spec in call.inputs)


def _cat_covers(call: Call) -> str | None:
    rank = len(call.outputs[0].shape)
    return None if all(len(s.shape) == rank for s in call.inputs) else "cat with a legacy empty tensor"


SAME_ELEMENTS = (_same, _expand)  # every element stays where it is, up to broadcasting
SELECTIONS = (_slice, _select, _narrow, _part, _unbind)  # the result has a part of the elements, in their order
PERMUTATIONS = (_transpose, _matrix_transpose, _permute, _reverse)  # the result has the dimensions in another order


def _view(ops: tuple[str, ...], index: Any, covers: Any = lambda call: None) -> None:
    for op in ops:
        register(Operator(f"aten.{op}", Kind.VIEW, index=index, covers=covers))


_view(("alias.default", "detach.default", "contiguous.default", "clone.default", "lift_fresh.default"), _same)
_view(
    (
        "view.default", "reshape.default", "_unsafe_view.default", "flatten.using_ints", "unflatten.int",
        "squeeze.default", "squeeze.dim", "squeeze.dims", "view_as.default", "reshape_as.default",
    ),
    _reshape,
)  # fmt: skip
_view(("transpose.int", "swapaxes.default"), _transpose)
_view(("t.default", "mT.default"), _matrix_transpose)
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
    ),
    _part,
)
_view(("unbind.int",), _unbind)
for _op in ("cat.default", "concat.default"):
    register(Operator(f"aten.{_op}", Kind.JOIN, pieces=_cat, covers=_cat_covers))
