"""Which loop nests are attention, and what part each of their axes plays.

Attention is three reductions over places: the highest score, the sum of the exponentials of scores, and the sum of
values weighted by those. A schedule can make all three in one pass, as a softmax that runs along.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import sympy

from fusion.kernels.loops import Axis, LoopNest, Reduction
from fusion.kernels.products import depends_on
from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import Apply, Constant, Dot, Load, Reduced, Scalar, Select
from fusion.patterns.symbols import Dim

_MOST_INNER, _MOST_LANES = 512, 256  # elements of a head, which a schedule keeps on the stack


@dataclass(frozen=True, slots=True)
class AttentionNest:
    """A nest that is attention.

    Attributes:
        batch: axes for each index of which keys and values are others, but for `head`.
        head: the axis of heads where `group` of them share keys and values; None where each has its own.
        group: how many.
        rows: axes that queries depend on, and keys do not.
        lane: the axis of a value's elements.
        highest, weighted, total: the reductions.
        score: at one place, over `dot`.
        query, key: the factors of `dot`; value: what is weighted.
        inner: how many products a score adds up.
    """

    batch: tuple[Axis, ...]
    head: Axis | None
    group: int
    rows: tuple[Axis, ...]
    lane: Axis
    highest: Reduction
    weighted: Reduction
    total: Reduction
    score: Scalar
    dot: Dot
    query: Scalar
    key: Load
    value: Load
    inner: int

    @property
    def places(self) -> Dim:
        """How many keys and values there are."""
        return self.highest.extent

    @property
    def end(self) -> Dim | None:
        """The place from which on scores of a row are -inf, where its index tells."""
        match self.score:
            case Select(index=index, bounds=(bound,), cases=(_, Constant(value=value))):
                return bound if index == symbols.index_symbol(scalar.COLUMN) and value == -math.inf else None
            case _:
                return None


@functools.lru_cache(maxsize=256)
def as_attention(nest: LoopNest) -> AttentionNest | None:
    """`nest` as attention; None where it is anything else, or larger than schedules take."""
    if nest.column is not None or len(nest.reductions) != 3:
        return None
    highest, *sums = nest.reductions
    weighted = next((r for r in sums if isinstance(r.body, Apply) and r.body.fn == "mul"), None)
    total = next((r for r in sums if r is not weighted), None)
    if weighted is None or total is None or [highest.fn, weighted.fn, total.fn] != ["max", "sum", "sum"]:
        return None
    assert isinstance(weighted.body, Apply)
    weight, value = weighted.body.args
    dots = [n for n in scalar.walk(highest.body) if isinstance(n, Dot)]
    if weight is not total.body or not _is_weight(weight, highest) or len(dots) != 1:
        return None
    (dot,) = dots
    if not (isinstance(dot.body, Apply) and dot.body.fn == "mul" and isinstance(dot.extent, int)):
        return None
    query, key = dot.body.args
    if not (isinstance(key, Load) and isinstance(value, Load) and dot.extent <= _MOST_INNER):
        return None
    axes = _axes(nest, key, value, highest.body)
    if axes is None:
        return None
    return AttentionNest(*axes, highest, weighted, total, highest.body, dot, query, key, value, dot.extent)


def _is_weight(weight: Scalar, highest: Reduction) -> bool:
    """Whether an expression is the exponential of the score less the highest one, or less 0 where that is -inf."""
    if not (isinstance(weight, Apply) and weight.fn == "exp" and isinstance(weight.args[0], Apply)):
        return False
    less = weight.args[0]
    if less.fn != "sub" or less.args[0] is not highest.body:
        return False
    return {n.name for n in scalar.walk(less.args[1]) if isinstance(n, Reduced)} == {highest.name}


def _axes(
    nest: LoopNest, key: Load, value: Load, score: Scalar
) -> tuple[tuple[Axis, ...], Axis | None, int, tuple[Axis, ...], Axis] | None:
    names = tuple(axis.name for axis in nest.rows)
    of_key, of_value, of_score = (depends_on(x, names) for x in (key, value, score))
    lanes = [a for a in nest.rows if a.name in of_value and a.name not in of_score | of_key]
    if len(lanes) != 1 or not isinstance(lanes[0].extent, int) or lanes[0].extent > _MOST_LANES:
        return None
    (lane,) = lanes
    shared = of_key | (of_value - {lane.name})
    rows = tuple(a for a in nest.rows if a is not lane and a.name not in shared)
    batch = [a for a in nest.rows if a is not lane and a.name in shared]
    head, group = None, 1
    for axis in batch:
        found = _group(axis, key.offset, value.offset)
        if found is not None:
            head, group = axis, found
    return tuple(a for a in batch if a is not head), head, group, rows, lane


def _group(axis: Axis, *offsets: Dim) -> int | None:
    """How many neighbouring indices of an axis have the same keys and values, where they do; None where none has."""
    index, found = symbols.index_symbol(axis.name), set[int]()
    for offset in offsets:
        if not isinstance(offset, sympy.Expr):
            return None
        divisions = {n for n in offset.atoms(sympy.Function) if n.has(index)}
        by = {n.args[1] for n in divisions if len(n.args) == 2 and n.args[0] == index}
        if offset.subs(dict.fromkeys(divisions, 0)).has(index) or len(by) != 1:
            return None
        found.add(int(next(iter(by))))
    size = found.pop() if len(found) == 1 else 0
    return size if size and isinstance(axis.extent, int) and axis.extent % size == 0 else None
