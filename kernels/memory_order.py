"""Which way a kernel's rows lie in memory."""

from __future__ import annotations

import functools

import sympy

from fusion.kernels.loops import Axis, LoopNest
from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import COLUMN, Load
from fusion.patterns.symbols import Dim

_FEW = 8  # neighbours that are not worth taking together: half a vector of floats


@functools.lru_cache(maxsize=512)
def row_neighbours(nest: LoopNest) -> Axis | None:
    """The row axis along which a kernel with reductions finds neighbours in memory, unless the column is one."""
    if not nest.reductions:
        return None
    loads = {n for root in nest.roots for n in scalar.walk(root) if isinstance(n, Load)}
    if any(_steps_by_one(load.offset, COLUMN) for load in loads):
        return None
    rows = [axis for axis in nest.rows if not (isinstance(axis.extent, int) and axis.extent < _FEW)]
    along = {axis: sum(_steps_by_one(load.offset, axis.name) for load in loads) for axis in rows}
    best = max(rows, key=lambda axis: along[axis], default=None)
    return best if best is not None and along[best] else None


def _steps_by_one(offset: Dim, name: str) -> bool:
    if isinstance(offset, int):
        return False
    index = symbols.index_symbol(name)
    return bool(sympy.expand(offset).coeff(index) == 1 and not (offset - index).has(index))
