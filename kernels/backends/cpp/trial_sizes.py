"""Sizes at which every branch and every loop bound of a C++ kernel is reached: what a kernel is tried at before use.

The loops of a kernel behave alike for most sizes; they differ at one element, at a vector and a rest, past a block,
past the row buffer, and where threads start to share the work. A size for each is found by solving the extents of the
kernel's loops for its size symbols.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import sympy

from fusion.kernels.attention import as_attention
from fusion.kernels.backends.cpp.emit import PARALLEL_WORK, column_passes, parallel_rows, shares_rows, splits_column
from fusion.kernels.backends.cpp.lanes import LANES
from fusion.kernels.backends.cpp.rows import ROW_BUFFER
from fusion.kernels.bundle import Nest, parts_of
from fusion.kernels.loops import Argument, LoopNest, Output
from fusion.kernels.memory_order import row_neighbours
from fusion.kernels.products import ProductNest, as_products
from fusion.patterns import symbols
from fusion.patterns.symbols import Dim

Sizes = dict[str, int]

# Column lengths: one element; a vector and one more; two blocks of 512 and a rest that is no multiple of a vector.
_SHORT, _LONG = 17, 2 * 512 + 33
_PAST_BUFFER = ROW_BUFFER + 33
# Rows, lanes and summed elements of matrix products: one of each; few rows; a tile's rests, over more than one stretch
# of the sum; more rows than a panel has; more lanes than a block of few rows has. The large ones are for threads.
_TILES = ((1, 1, 1), (3, 37, 300), (67, 37, 557), (269, 18, 35), (7, 300, 261))
_FEW, _MANY = 3, 67  # rows: more than one; more than a block of them, and odd, so that threads get unequal shares
_MOST = 1 << 19  # the largest value a symbol is given, and the most elements of a tensor: eager takes milliseconds
# What symbols are at first: small and different; odd ones, so that vectors and halves have rests, else multiples of 4.
FIRST_SIZES = ((11, _SHORT, 5, 7, 13), (12, 20, 8, 16, 28))
# Rows and places of attention: one of each; few rows, with a chunk and one more, and with so many that threads share
# them; many rows; more than a unit has.
_ATTENDING = ((1, 1), (3, 65), (2, 600), (37, 300), (263, 140))


def branch_sizes(nest: Nest, first: Sequence[int] = FIRST_SIZES[0]) -> list[Sizes]:
    """Values of the nest's size symbols, by name; first the plainest ones, then one set for each branch.

    Whether operators allow such sizes at all, only running them tells.

    Args:
        nest: a kernel; of a bundle, every part's branches are reached.
        first: what symbols are where no branch asks for more, in turn.
    """
    base = {s.symbol: first[k % len(first)] for k, s in enumerate(nest.sizes) if s.source != "stride"}
    base |= {s.symbol: 0 for s in nest.sizes if s.source == "stride"}
    found: list[Sizes] = []
    for part in parts_of(nest):
        for sizes in (base, *_branches(part, base)):
            complete = _with_strides(nest, sizes)
            if complete not in found and _fits(nest, complete):
                found.append(complete)
    return found


def _branches(nest: LoopNest, base: Sizes) -> Iterator[Sizes]:
    products = as_products(nest)
    if products is not None:
        yield from _tiles(products, base)
        return
    attention = as_attention(nest)
    if attention is not None:
        for count, length in _ATTENDING:
            at_rows = _at_rows(_varying([a.extent for a in attention.rows]), count, base)
            yield from _reaching(attention.places, length, at_rows)
        return
    columns = _varying([*(r.extent for r in nest.reductions), *([nest.column.extent] if nest.column else [])])
    lanes = row_neighbours(nest)
    rows = _varying([a.extent for a in nest.rows if a is not lanes])
    single = base
    for extent in (*columns, *rows):
        single = next(_reaching(extent, 1, single), single)
    yield single
    few = _at_rows(rows, _FEW, base)
    for column in columns:
        for length in (_LONG, _PAST_BUFFER) if nest.reductions else (_LONG,):
            yield from _reaching(column, length, few)
    if lanes is not None:
        yield from _reaching(lanes.extent, LANES + 1, few)
    yield from _shared_work(nest, columns, rows, base)


def _tiles(form: ProductNest, base: Sizes) -> Iterator[Sizes]:
    """Sizes that reach every path of a matrix product: few rows, tiles with rests, more than one panel or block."""
    rows = _varying([a.extent for a in form.rows])
    lanes, depths = _varying([form.lane.extent]), _varying([p.reduction.extent for p in form.products])
    for wanted in _TILES:
        sizes = base
        for extents, target in zip((rows, lanes, depths), wanted, strict=True):
            for extent in extents:
                sizes = next(_reaching(extent, target, sizes), sizes)
        yield sizes


def _shared_work(nest: LoopNest, columns: list[Dim], rows: list[Dim], base: Sizes) -> Iterator[Sizes]:
    """Sizes at which threads share rows, one row, or the column; longer columns, or more rows where those are fixed."""
    each = symbols.as_dim(sum((extent * of for extent, of in column_passes(nest)), start=sympy.Integer(0)))
    longest = columns[-1] if columns else rows[0] if rows else None
    if longest is None:
        return
    total: Dim = 1 if splits_column(nest) else symbols.product(a.extent for a in parallel_rows(nest))
    yield from _reaching(symbols.as_dim(each * total), PARALLEL_WORK + 1, _at_rows(rows, _MANY, base), vary=longest)
    if shares_rows(nest):
        yield from _reaching(each, PARALLEL_WORK + 1, _at_rows(rows, 1, base), vary=longest)


def _at_rows(rows: list[Dim], count: int, base: Sizes) -> Sizes:
    """`base` with `count` rows along the first axis that varies."""
    return next((sizes for row in rows[:1] for sizes in _reaching(row, count, base)), base)


def _reaching(extent: Dim, target: int, base: Sizes, vary: Dim | None = None) -> Iterator[Sizes]:
    """`base` with the one symbol changed that makes `extent` at least `target`, and as little more as it can.

    Args:
        extent: what is to reach `target`; it grows with its symbols.
        target: the least value wanted.
        base: values of all symbols.
        vary: an expression whose symbol is changed; None for one of `extent`'s own.
    """
    own = [s.name for s in symbols.free_symbols([extent if vary is None else vary])]
    if target == 1:
        base = {**base, **dict.fromkeys(own, 1)}
    for name in own:
        low, high = 1, 1
        while high <= _MOST and _value(extent, {**base, name: high}) < target:
            low, high = high + 1, 2 * high
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if _value(extent, {**base, name: middle}) >= target else (middle + 1, high)
        if high <= _MOST:
            yield {**base, name: high}
            return


def _value(dim: Dim, sizes: Mapping[str, int]) -> int:
    return symbols.evaluate(dim, sizes)


def _varying(extents: list[Dim]) -> list[Dim]:
    return list(dict.fromkeys(e for e in extents if isinstance(e, sympy.Expr)))


def _with_strides(nest: Nest, sizes: Sizes) -> Sizes:
    """`sizes` with strides that are symbols of their own so large that no two elements of the tensor share memory."""
    result = dict(sizes)
    for parameter in nest.sizes:
        if parameter.source == "stride":
            argument = nest.inputs[parameter.argument]
            pairs = zip(argument.shape, argument.strides, strict=True)
            reach = 1 + sum((_value(n, result) - 1) * _value(s, result) for n, s in pairs)
            result[parameter.symbol] = max(reach, 1) + 2
    return result


def _fits(nest: Nest, sizes: Sizes) -> bool:
    """Whether every tensor has a few elements at most, and at least one."""
    tensors: tuple[Argument | Output, ...] = (*nest.inputs, *nest.outputs)
    for tensor in tensors:
        shape = [_value(n, sizes) for n in tensor.shape]
        strides = [_value(s, sizes) for s in tensor.strides]
        reach = 1 + sum((n - 1) * s for n, s in zip(shape, strides, strict=True))
        if min(shape, default=1) < 1 or min(strides, default=0) < 0 or not 0 < reach <= _MOST:
            return False
    return True
