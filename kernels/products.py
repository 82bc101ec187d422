"""Which loop nests are matrix products, and what part each of their axes plays in them.

A product is a sum over the column of the product of two expressions. Where one of them depends on an axis and the other
does not, its elements serve for all of that axis: this is what a schedule for products makes use of.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import sympy

from fusion.kernels.loops import Axis, LoopNest, Reduction
from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import Apply, Load, Scalar, Select, Size
from fusion.patterns.symbols import Dim


@dataclass(frozen=True, slots=True)
class Factors:
    """One product: `reduction` is the sum of `left * right` over the column."""

    reduction: Reduction
    left: Scalar
    right: Scalar


@dataclass(frozen=True, slots=True)
class ProductNest:
    """A nest of products over common axes.

    Attributes:
        batch: axes for each index of which the products are others.
        rows: axes that left factors depend on, and right ones do not.
        outer: axes that right factors depend on, and left ones do not, but for `lane`.
        lane: the innermost such axis: right factors of neighbouring lanes meet the same left factor.
        products: in the order in which later ones and stores may read them.
    """

    batch: tuple[Axis, ...]
    rows: tuple[Axis, ...]
    outer: tuple[Axis, ...]
    lane: Axis
    products: tuple[Factors, ...]

    @property
    def lefts(self) -> tuple[tuple[Scalar, Dim], ...]:
        """The left factors, each once, with how far the column runs for it."""
        return tuple({id(p.left): (p.left, p.reduction.extent) for p in self.products}.values())


@functools.lru_cache(maxsize=512)
def as_products(nest: LoopNest) -> ProductNest | None:
    """`nest` as products; None where it computes anything else once per row, or no axis is a lane of all of them."""
    if nest.column is not None or not nest.reductions:
        return None
    names = tuple(axis.name for axis in nest.rows)
    pairs: list[tuple[Factors, set[str], set[str]]] = []
    for reduction in nest.reductions:
        pair = _factors(reduction)
        if pair is None:
            return None
        left, right = pair
        pairs.append((Factors(reduction, left, right), depends_on(left, names), depends_on(right, names)))
    lanes = [a for a in nest.rows if all((a.name in first) != (a.name in second) for _, first, second in pairs)]
    if not lanes:
        return None
    lane = max(lanes, key=lambda axis: (_is_innermost(nest, axis), nest.rows.index(axis)))
    products: list[Factors] = []
    found: dict[str, set[str]] = {name: set() for name in names}
    for factors, of_left, of_right in pairs:
        if lane.name in of_left:
            factors, of_left, of_right = Factors(factors.reduction, factors.right, factors.left), of_right, of_left
        products.append(factors)
        for name in names:
            found[name].add(_place(name in of_left, name in of_right))

    def axes(place: str) -> tuple[Axis, ...]:
        return tuple(a for a in nest.rows if a is not lane and found[a.name] == {place})

    rows, outer = axes("rows"), axes("outer")
    batch = tuple(a for a in nest.rows if a is not lane and a not in rows and a not in outer)
    return ProductNest(batch, rows, outer, lane, tuple(products))


def _place(left: bool, right: bool) -> str:
    return "batch" if left == right else "rows" if left else "outer"


def _factors(reduction: Reduction) -> tuple[Scalar, Scalar] | None:
    """The two factors of what a reduction adds up; None where it is no product, or reads an earlier reduction."""
    body = reduction.body
    if reduction.fn != "sum" or reduction.running or not (isinstance(body, Apply) and body.fn == "mul"):
        return None
    if not body.dtype.is_floating_point:
        return None
    if any(not isinstance(node, (Load, Apply, scalar.Constant, Size, Select)) for node in scalar.walk(body)):
        return None
    return body.args[0], body.args[1]


def depends_on(root: Scalar, names: Sequence[str]) -> set[str]:
    """Those of the indices `names` that an expression depends on."""
    dims: list[Dim] = []
    for node in scalar.walk(root):
        match node:
            case Load(offset=dim) | Size(dim=dim):
                dims.append(dim)
            case Select(index=index, bounds=bounds):
                dims += [index, *bounds]
            case _:
                pass
    return {s.name for s in symbols.free_symbols(dims)} & set(names)


def _is_innermost(nest: LoopNest, axis: Axis) -> bool:
    """Whether the first store's neighbours in memory are along an axis."""
    return step(nest.stores[0].offset, axis.name) == 1


def step(offset: Dim, name: str) -> Dim | None:
    """How far an element offset moves with one step of an index; None where that is not always the same."""
    index = symbols.index_symbol(name)
    if isinstance(offset, int) or index not in offset.free_symbols:
        return 0
    by = sympy.expand(offset).coeff(index)
    return None if sympy.expand(offset - by * index).has(index) else symbols.as_dim(by)
