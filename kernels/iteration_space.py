"""The iteration space of a kernel: which loops run, where each output's elements lie in them, which loops merge."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import sympy

from fusion.kernels.loops import Axis, Reduction, Store
from fusion.patterns import indexing, scalar, symbols
from fusion.patterns.errors import LoweringError
from fusion.patterns.indexing import Extents, Index
from fusion.patterns.scalar import COLUMN, Load, Scalar, Select, Size
from fusion.patterns.specs import TensorSpec
from fusion.patterns.symbols import Dim


@dataclass(frozen=True, slots=True)
class Space:
    """Loops, and for each output the index of the element they are at.

    Attributes:
        rows: row axes, outermost first.
        column: the column axis; None where every output is computed once per row.
        at: for each output, its index over the axes' names, and whether it has one element per row.
    """

    rows: tuple[Axis, ...]
    column: Axis | None
    at: tuple[tuple[Index, bool], ...]

    @property
    def extents(self) -> dict[str, Dim]:
        """Extents of the row axes by name."""
        return {axis.name: axis.extent for axis in self.rows}


def memory_order(name: str, spec: TensorSpec) -> tuple[int, ...]:
    """The dimensions of a dense tensor from outermost to innermost in memory.

    Raises:
        LoweringError: "output_layout": the tensor is not dense in any order.
    """
    order = _dense_order(spec.shape, spec.strides)
    if order is None:
        text = ", ".join(symbols.render(s) for s in spec.strides)
        raise LoweringError(
            "output_layout",
            f"The output {name} is {spec.text()} with strides [{text}], which is dense in no order.",
            remedy="Make it the input of a copy, or leave the view outside the region.",
        )
    return order


@functools.lru_cache(maxsize=1 << 12)  # the tensors of a model have few different structures
def _dense_order(shape: tuple[Dim, ...], strides: tuple[Dim, ...]) -> tuple[int, ...] | None:
    left = list(range(len(shape)))
    if any(isinstance(size, int) and size == 0 for size in shape):
        return tuple(left)
    order: list[int] = []
    running: Dim = 1
    steps = tuple(map(symbols.nonempty, strides))
    while left:
        fitting = [d for d in left if symbols.same(steps[d], running)]
        fitting = fitting or [d for d in left if _is_one(shape[d])]
        if not fitting:
            return None
        # A dimension of size 1 leaves the running stride as it is, so it has to go first.
        taken = max(fitting, key=lambda d: (_is_one(shape[d]), d))
        left.remove(taken)
        order.append(taken)
        running = symbols.as_dim(running * shape[taken])
    return tuple(reversed(order))


ReducedSizes = tuple[tuple[Dim, ...], tuple[int, ...]]  # the shape a reduction reads, the dimensions it runs over
# Dimensions of the widest output that are the column, as one, each with how many of its elements; () for none.
Columns = tuple[tuple[int, Dim], ...]


def column_space(specs: Sequence[TensorSpec], orders: Sequence[tuple[int, ...]]) -> Space:
    """The space whose column is the widest output's innermost dimension in memory.

    Raises:
        LoweringError: "domain": an output has neither the widest output's elements nor one element per row.
    """
    spec, order = _widest(specs, orders)
    free = _free(spec)
    if not free:
        return Space((), Axis(COLUMN, 1), tuple(((0,) * len(s.shape), False) for s in specs))
    innermost = [d for d in order if d in free][-1]
    return space_of(specs, orders, ((innermost, spec.shape[innermost]),))


def column_candidates(
    specs: Sequence[TensorSpec], orders: Sequence[tuple[int, ...]], over: Sequence[ReducedSizes]
) -> Iterator[Columns]:
    """Dimensions of the widest output that may be the column of a kernel with reductions, the likeliest first.

    First what a reduction runs over where its operand has the output's shape there, then the last dimension and the
    innermost one, runs of dimensions with as many elements as a reduction has, parts of a dimension that have (heads
    that were flattened), and at last no column.
    """
    spec, order = _widest(specs, orders)
    free = _free(spec)
    tried: set[Columns] = set()
    whole = itertools.chain(_in_place(spec, over), _ends(order, free), _runs(spec, free, over))
    parts = itertools.chain(_parts(spec, free, over), ((),))
    for column in itertools.chain((tuple((d, spec.shape[d]) for d in dims) for dims in whole), parts):
        if column not in tried:
            tried.add(column)
            yield column


def _in_place(spec: TensorSpec, over: Sequence[ReducedSizes]) -> Iterator[tuple[int, ...]]:
    for shape, dims in over:
        if len(shape) == len(spec.shape) and all(symbols.same(shape[d], spec.shape[d]) for d in dims):
            column = tuple(d for d in dims if not _is_one(spec.shape[d]))
            if column:
                yield column


def _ends(order: Sequence[int], free: Sequence[int]) -> Iterator[tuple[int, ...]]:
    if free:
        yield (free[-1],)
        yield ([d for d in order if d in free][-1],)


def _runs(spec: TensorSpec, free: Sequence[int], over: Sequence[ReducedSizes]) -> Iterator[tuple[int, ...]]:
    for shape, dims in over:
        wanted = symbols.product(shape[d] for d in dims)
        for first in range(len(free)):
            size: Dim = 1
            for last in range(first, len(free)):
                size = symbols.as_dim(size * spec.shape[free[last]])
                if symbols.same(size, wanted):
                    yield tuple(free[first : last + 1])


def _parts(spec: TensorSpec, free: Sequence[int], over: Sequence[ReducedSizes]) -> Iterator[Columns]:
    """The innermost part of a dimension, alone or with all dimensions after it."""
    for shape, dims in over:
        wanted = symbols.product(shape[d] for d in dims)
        for k, d in reversed(list(enumerate(free))):
            for rest in (free[k + 1 :], free[:0]):
                part = _quotient(wanted, symbols.product(spec.shape[r] for r in rest))
                if part is not None and not _is_one(part) and _quotient(spec.shape[d], part) not in (None, 1):
                    yield ((d, part), *((r, spec.shape[r]) for r in rest))


def _quotient(value: Dim, by: Dim) -> Dim | None:
    """`value / by` where that is provably whole; an empty dimension is one time itself."""
    if symbols.same(value, by):
        return 1
    if isinstance(by, int) and by == 0:
        return None
    if isinstance(value, int) and isinstance(by, int):
        return value // by if value % by == 0 else None
    ratio = sympy.cancel(sympy.sympify(value) / by)
    return symbols.as_dim(ratio) if sympy.denom(ratio) == 1 else None


def space_of(specs: Sequence[TensorSpec], orders: Sequence[tuple[int, ...]], column: Columns) -> Space:
    """The space with the column `column`; every other dimension of the widest output is a row axis.

    Raises:
        LoweringError: "domain": an output has neither the widest output's elements nor one element per row.
    """
    spec, order = _widest(specs, orders)
    taken = dict(column)
    axes: dict[int, Axis] = {}
    for d in order:
        size: Dim | None = spec.shape[d]
        if d in taken:  # an empty dimension, too, is once what the column takes of it
            size = 1 if symbols.same(size, taken[d]) else _quotient(size, taken[d])
        assert size is not None, "a column takes whole parts"
        if not _is_one(size):
            axes[d] = Axis(f"i{len(axes)}", size)
    rows = tuple(axes.values())
    per_row = {d: Place(a.extent, symbols.index_symbol(a.name)) for d, a in axes.items()}
    full, last = dict(per_row), None
    if column:
        sizes = tuple(size for _, size in column)
        last = Axis(COLUMN, symbols.product(sizes))
        steps = indexing.delinearize(symbols.index_symbol(COLUMN), sizes, {COLUMN: last.extent})
        for (d, size), step in zip(column, steps, strict=True):
            before = per_row[d].at * size if d in per_row else 0
            full[d] = Place(spec.shape[d], symbols.as_dim(before + step))
    extents = {axis.name: axis.extent for axis in rows} | ({COLUMN: last.extent} if last else {})
    at: list[tuple[Index, bool]] = []
    for own, own_order in zip(specs, orders, strict=True):
        index = _index(own, own_order, full, order)
        index = _reshaped(own, spec, full, extents) if index is None else index
        once = index is None or last is None
        index = _index(own, own_order, per_row, order) if index is None and last else index
        if index is None:
            raise LoweringError(
                "domain",
                f"The outputs {spec.text()} and {own.text()} have no common iteration space.",
                remedy="Compute them in two kernels.",
            )
        at.append((index, once))
    return Space(rows, last, tuple(at))


def _reshaped(own: TensorSpec, spec: TensorSpec, places: Mapping[int, Place], extents: Extents) -> Index | None:
    """The element of an output that has the widest one's elements in another shape."""
    if not symbols.same(symbols.product(own.shape), symbols.product(spec.shape)):
        return None
    index = tuple(places[d].at if d in places else 0 for d in range(len(spec.shape)))
    try:
        return indexing.reshape_index(index, spec.shape, own.shape, extents)
    except LoweringError:
        return None


@dataclass(frozen=True, slots=True)
class Place:
    """Where the loops are along one dimension of the widest output, and how long it is."""

    extent: Dim
    at: Dim


def _widest(specs: Sequence[TensorSpec], orders: Sequence[tuple[int, ...]]) -> tuple[TensorSpec, tuple[int, ...]]:
    return max(zip(specs, orders, strict=True), key=lambda pair: len(_free(pair[0])))


def _index(
    spec: TensorSpec, own_order: Sequence[int], places: Mapping[int, Place], order: Sequence[int]
) -> Index | None:
    """The element of an output the loops are at: places matched with its dimensions in order, or in memory order.

    Any one-to-one match of equal extents is right; these two keep a view of another output on that one's elements.
    """
    free = _free(spec)
    logical = [places[d] for d in sorted(places)]
    by_memory = [places[d] for d in order if d in places]
    for dims, candidates in ((free, logical), ([d for d in own_order if d in free], by_memory)):
        pairs = list(zip(dims, candidates, strict=False))
        if len(dims) == len(candidates) and all(symbols.same(spec.shape[d], p.extent) for d, p in pairs):
            index: list[Dim] = [0] * len(spec.shape)
            for d, place in pairs:
                index[d] = place.at
            return tuple(index)
    return None


def _free(spec: TensorSpec) -> list[int]:
    return [d for d, size in enumerate(spec.shape) if not _is_one(size)]


def _is_one(size: Dim) -> bool:
    return isinstance(size, int) and size == 1


@dataclass(frozen=True, slots=True)
class Body:
    """The part of a kernel that names loop indices."""

    rows: tuple[Axis, ...]
    column: Axis | None
    reductions: tuple[Reduction, ...]
    stores: tuple[Store, ...]

    @property
    def roots(self) -> tuple[Scalar, ...]:
        """All expressions."""
        return (*(r.body for r in self.reductions), *(s.value for s in self.stores))


def merged(body: Body) -> Body:
    """`body` with adjacent axes that every offset steps through as one made one axis.

    Axes merge where each load and store moves by `extent(inner)` inner steps for one outer step. The column takes part
    only where there is no reduction over it and nothing is stored once per row.
    """
    joins_column = body.column is not None and not body.reductions and not any(s.per_row for s in body.stores)
    axes = [*body.rows, body.column] if joins_column and body.column else list(body.rows)
    if len(axes) < 2:
        return body
    steps, fixed = _steps(body, {a.name for a in axes})
    kept: list[Axis] = [axes[-1]]
    for outer in reversed(axes[:-1]):
        inner = kept[-1]
        joined = not fixed & {outer.name, inner.name} and all(
            symbols.same(step.get(outer.name, 0), symbols.as_dim(step.get(inner.name, 0) * inner.extent))
            for step in steps
        )
        if joined:
            kept[-1] = replace(inner, extent=symbols.as_dim(outer.extent * inner.extent))
        else:
            kept.append(outer)
    kept.reverse()
    column = kept.pop() if joins_column else body.column
    names = {axis.name: f"i{k}" for k, axis in enumerate(kept)}
    moved: dict[sympy.Expr, Dim] = {
        symbols.index_symbol(a.name): symbols.index_symbol(names[a.name]) if a.name in names else 0 for a in body.rows
    }
    rows = tuple(Axis(names[a.name], a.extent) for a in kept)
    return _moved(replace(body, rows=rows, column=column), moved)


def _steps(body: Body, axes: set[str]) -> tuple[list[dict[str, Dim]], set[str]]:
    """For each offset, how far each axis moves it; and the axes that something depends on in another way."""
    offsets: set[Dim] = {s.offset for s in body.stores}
    others: list[Dim] = []
    for node in scalar.walk(*body.roots):
        match node:
            case Load(offset=offset):
                offsets.add(offset)
            case Select(index=index, bounds=bounds):
                others += [index, *bounds]
            case Size(dim=dim):
                others.append(dim)
            case _:
                pass
    fixed = {s.name for s in symbols.free_symbols(others)} & axes
    steps: list[dict[str, Dim]] = []
    for offset in offsets:
        step: dict[str, Dim] = {}
        for term in sympy.Add.make_args(sympy.sympify(offset)):
            named = [s for s in term.free_symbols if s.name in axes]
            ratio = term / named[0] if named else sympy.Integer(0)
            if len(named) > 1 or (named and named[0] in ratio.free_symbols):
                fixed |= {s.name for s in named}
            elif named:
                step[named[0].name] = symbols.as_dim(step.get(named[0].name, 0) + ratio)
        steps.append(step)
    return steps, fixed


def _moved(body: Body, by: Mapping[sympy.Expr, Dim]) -> Body:
    """`body` with index symbols replaced."""
    memo: dict[int, Scalar] = {}
    reductions = tuple(replace(r, body=moved(r.body, by, memo)) for r in body.reductions)
    stores = tuple(
        replace(s, offset=symbols.substitute(s.offset, by), value=moved(s.value, by, memo)) for s in body.stores
    )
    return replace(body, reductions=reductions, stores=stores)


def moved(root: Scalar, by: Mapping[sympy.Expr, Dim], memo: dict[int, Scalar]) -> Scalar:
    """An expression with index symbols replaced; `memo` keeps what expressions share shared."""

    def change(node: Scalar) -> Scalar | None:
        match node:
            case Load(offset=offset):
                return replace(node, offset=symbols.substitute(offset, by))
            case Size(dim=dim):
                return replace(node, dim=symbols.substitute(dim, by))
            case Select(index=index, bounds=bounds, cases=cases):
                parts = tuple(scalar.rebuild(c, change, memo) for c in cases)
                there = tuple(symbols.substitute(d, by) for d in bounds)
                return Select(node.dtype, symbols.substitute(index, by), there, parts)
            case _:
                return None

    return scalar.rebuild(root, change, memo)
