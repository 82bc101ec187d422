"""Which dimensions of a graph's values are one and the same extent, and what may be done to extents as a whole.

In a graph of matrix products, pointwise operators and transposes, an element of a result is computed from the elements
at the same places of each operand. So a dimension of the result can be traced to the dimensions of the inputs that run
with it. All that run together can be given another size, or fewer elements, and the graph still means the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import sympy
import torch

from . import indexing, symbols
from .graph import SubGraph
from .leaves import Leaf, leaves, map_leaves
from .nodes import OpNode
from .ops import Kind, call_of, lookup
from .ops.pointwise import CONVERSIONS
from .ops.views import PERMUTATIONS
from .specs import TensorSpec, contiguous_strides
from .symbols import Dim

_SUMMED = "summed"
_CONVERSIONS = frozenset(f"aten.{op}" for op in CONVERSIONS)  # of whose second operand only the dtype counts
Place = tuple[str, int]  # a value and one of its dimensions


@dataclass(frozen=True)
class Extents:
    """The extents of one graph.

    Attributes:
        of: the number of its extent for each dimension of each value; dimensions of size 1 have none.
        summed: extents that a product sums over.
    """

    of: Mapping[Place, int]
    summed: frozenset[int]

    def number(self, name: str, dim: int) -> int | None:
        """The extent that a dimension is, or None for one of size 1."""
        return self.of.get((name, dim))


def extents(graph: SubGraph) -> Extents | None:
    """The extents of a graph with matrix products.

    None where it has no product, holds sizes as numbers, or has an operator whose results' elements are not at their
    operands' places: a slice, a reshape, a reduction.
    """
    if graph.bundle or any(isinstance(leaf, sympy.Expr) for n in graph.nodes for leaf in leaves((n.args, n.kwargs))):
        return None
    joined = _Joined()
    products = False
    for node in graph.nodes:
        row = lookup(node.op)
        if row is None or row.kind not in (Kind.PRODUCT, Kind.POINTWISE, Kind.VIEW) or len(node.outputs) != 1:
            return None
        products |= row.kind is Kind.PRODUCT
        pairs = _operand_places(node, graph)
        if pairs is None:
            return None
        for first, second in pairs:
            joined.join(first, second)
    if not products:
        return None
    for place, alike in _alike_outputs(graph):
        joined.join(place, alike)
    summed = {joined.root(place) for place in joined.places() if place[0].startswith(_SUMMED)}
    numbers: dict[Place, int] = {}
    of = {
        (name, d): numbers.setdefault(joined.root((name, d)), len(numbers))
        for name, spec in graph.specs
        for d, size in enumerate(spec.shape)
        if not _is_one(size)
    }
    return Extents(of, frozenset(numbers[root] for root in summed if root in numbers))


class _Joined:
    """Places that are known to run together."""

    def __init__(self) -> None:
        self._above: dict[Place, Place] = {}

    def root(self, place: Place) -> Place:
        while self._above.setdefault(place, place) != place:
            place = self._above[place]
        return place

    def join(self, first: Place, second: Place) -> None:
        self._above[self.root(first)] = self.root(second)

    def places(self) -> Iterable[Place]:
        return tuple(self._above)


def _alike_outputs(graph: SubGraph) -> Iterator[tuple[Place, Place]]:
    """Dimensions of outputs with the same sizes: a kernel computes them over the same loops."""
    first = graph.outputs[0]
    shape = graph.spec[first].shape
    for name in graph.outputs[1:]:
        if graph.spec[name].shape == shape:
            yield from (((first, d), (name, d)) for d in range(len(shape)))


def _operand_places(node: OpNode, graph: SubGraph) -> list[tuple[Place, Place]] | None:
    """A call's pairs of a place in an operand and the place in the result, or the sum, that runs with it.

    None where they are unknown.
    """
    spec, made = graph.spec, node.outputs[0]
    call, row = call_of(node, spec), lookup(node.op)
    assert row is not None
    shape = spec[made].shape
    index = tuple(symbols.index_symbol(f"d{d}") for d in range(len(shape)))
    place = symbols.index_symbol("k")
    reads: list[tuple[str, tuple[Dim, ...]]]
    if row.attention is not None:
        return None
    if row.contraction is not None:
        summed = row.contraction(call, index, place)
        parts = (summed.left, summed.right, *([summed.addend] if summed.addend else []))
        reads = [(node.refs[number], at) for number, at in parts]
    elif row.kind is Kind.VIEW:
        if row.index not in PERMUTATIONS:
            return None
        reads = [(node.refs[0], row.index(call, index, {f"d{d}": n for d, n in enumerate(shape)}, 0))]
    else:
        read = node.refs[:1] if node.op in _CONVERSIONS else node.refs
        if any(len(spec[r].shape) > len(shape) for r in read):
            return None
        reads = [(r, indexing.broadcast_index(index, shape, spec[r].shape)) for r in read]
    pairs: list[tuple[Place, Place]] = []
    for name, at in reads:
        for d, where in enumerate(at):
            if _is_one(spec[name].shape[d]):
                continue
            if where == place:
                pairs.append(((name, d), (f"{_SUMMED} {made}", 0)))
            elif where in index and symbols.same(spec[name].shape[d], shape[index.index(where)]):
                pairs.append(((name, d), (made, index.index(where))))
            else:
                return None
    return pairs


def agreeing(graph: SubGraph) -> SubGraph:
    """`graph` with one symbol for sizes that its matrix products need to be equal.

    A recording may have two: what a cache gives as keys and as values has sizes of its own. A kernel of the result
    checks that they are equal, where eager's product raises an error.
    """
    renamed: dict[sympy.Expr, Dim] = {}
    for node in graph.nodes:
        row = lookup(node.op)
        if row is not None and row.kind is Kind.PRODUCT:
            for first, second in _equal_sizes(node, graph):
                one, other = symbols.substitute(first, renamed), symbols.substitute(second, renamed)
                if symbols.same(one, other) or _is_one(one) or _is_one(other):
                    continue
                if isinstance(one, sympy.Symbol):
                    one, other = other, one
                if isinstance(other, sympy.Symbol):
                    renamed = {k: symbols.substitute(v, {other: one}) for k, v in renamed.items()} | {other: one}
    if not renamed:
        return graph

    def leaf(value: Leaf) -> Leaf:
        return symbols.substitute(value, renamed) if isinstance(value, sympy.Expr) else value

    def dims(sizes: tuple[Dim, ...]) -> tuple[Dim, ...]:
        return tuple(symbols.substitute(n, renamed) for n in sizes)

    nodes = tuple(
        replace(n, args=map_leaves(leaf, n.args), kwargs=tuple((k, map_leaves(leaf, v)) for k, v in n.kwargs))
        for n in graph.nodes
    )
    specs = tuple((name, replace(s, shape=dims(s.shape), strides=dims(s.strides))) for name, s in graph.specs)
    return replace(graph, nodes=nodes, specs=specs)


def _equal_sizes(node: OpNode, graph: SubGraph) -> list[tuple[Dim, Dim]]:
    """Pairs of sizes that a product needs to be equal: those that run with one index of the sum or of the result."""
    call, row = call_of(node, graph.spec), lookup(node.op)
    assert row is not None
    index = tuple(symbols.index_symbol(f"d{d}") for d in range(len(call.outputs[0].shape)))
    place, inner = symbols.index_symbol("k"), symbols.index_symbol("i")
    if row.contraction is not None:
        summed = row.contraction(call, index, place)
        reads = [summed.left, summed.right, *([summed.addend] if summed.addend else [])]
    else:
        assert row.attention is not None
        what = row.attention(call, index, place, inner)
        reads = [what.query, what.key, what.value, *([what.mask] if what.mask else [])]
    sizes: dict[Dim, list[Dim]] = {at: [n] for at, n in zip(index, call.outputs[0].shape, strict=True)}
    for number, where in reads:
        for at, size in zip(where, call.inputs[number].shape, strict=True):
            if isinstance(at, sympy.Symbol):
                sizes.setdefault(at, []).append(size)
    return [(found[0], other) for found in sizes.values() for other in found[1:]]


def disagreement(node: OpNode, graph: SubGraph) -> tuple[Dim, Dim] | None:
    """Two sizes that a product needs to be equal, and that may not be; None where all are."""
    pairs = _equal_sizes(node, graph)
    return next(((a, b) for a, b in pairs if not symbols.same(a, b) and not _is_one(a) and not _is_one(b)), None)


def generalized(graph: SubGraph) -> SubGraph:
    """`graph` with a size symbol for every extent that is a number, so that one kernel serves all sizes.

    The graph itself where its extents are unknown, or a value is laid out in another way than densely.
    """
    found = extents(graph)
    fresh = None if found is None else _sizes(graph, found)
    if found is None or fresh is None:
        return graph
    specs: list[tuple[str, TensorSpec]] = []
    for name, spec in graph.specs:
        shape = _shape(name, spec, found, fresh)
        strides = _strides(spec, shape)
        if strides is None:
            return graph
        specs.append((name, replace(spec, shape=shape, strides=strides)))
    made = replace(graph, specs=tuple(specs))
    told = {d for name in made.inputs for d in made.spec[name].shape}
    return made if all(symbols.symbol(s) in told for s in made.symbols) else graph


def _shape(name: str, spec: TensorSpec, found: Extents, sizes: Mapping[int, Dim]) -> tuple[Dim, ...]:
    numbers = (found.number(name, d) for d in range(len(spec.shape)))
    return tuple(n if number is None else sizes[number] for number, n in zip(numbers, spec.shape, strict=True))


def _sizes(graph: SubGraph, found: Extents) -> dict[int, Dim] | None:
    """The size of each extent: a fresh symbol for a number; None where one extent has two sizes."""
    known: dict[int, Dim] = {}
    for (name, d), number in found.of.items():
        size = graph.spec[name].shape[d]
        if known.setdefault(number, size) != size:
            return None
    taken = {int(s[1:]) for s in graph.symbols if s[1:].isdigit()}
    names = (f"s{k}" for k in range(max(taken, default=-1) + 1, 1 << 30))
    return {n: symbols.symbol(next(names)) if isinstance(size, int) else size for n, size in known.items()}


def _strides(spec: TensorSpec, shape: tuple[Dim, ...]) -> tuple[Dim, ...] | None:
    """The strides of a tensor that is dense as `spec` is, with another shape; None where that is not dense."""
    rank = range(len(shape))
    orders = [tuple(rank)]
    if all(isinstance(s, int) for s in spec.strides):
        orders.append(tuple(sorted(rank, key=lambda d: (-int(spec.strides[d]), -d))))
    for order in orders:
        dense = contiguous_strides(tuple(spec.shape[d] for d in order))
        packed = {d: symbols.same(spec.strides[d], s) for d, s in zip(order, dense, strict=True)}
        if all(packed[d] or (_is_one(spec.shape[d]) and isinstance(spec.strides[d], int)) for d in rank):
            fresh = contiguous_strides(tuple(shape[d] for d in order))
            return tuple(fresh[order.index(d)] if packed[d] else spec.strides[d] for d in rank)
    return None


@dataclass(frozen=True)
class Sample:
    """Some of the elements of every value of a graph, which depend on nothing but such elements.

    Attributes:
        graph: the graph, whose extents may have any size.
        extents: the graph's.
        kept: the indices that are kept, by extent; of the others all are.
    """

    graph: SubGraph
    extents: Extents
    kept: Mapping[int, torch.Tensor]

    def of(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """The elements of a value that are in the sample."""
        for d in range(tensor.dim()):
            indices = self.kept.get(self.extents.of.get((name, d), -1))
            if indices is not None:
                tensor = tensor.index_select(d, indices.to(tensor.device))
        return tensor


def divided(graph: SubGraph) -> tuple[SubGraph, SubGraph]:
    """What a graph makes of its inputs by views alone, and the rest, for which that is given."""
    made: set[str] = set()
    views: list[OpNode] = []
    for node in graph.nodes:
        row = lookup(node.op)
        if row is not None and row.kind is Kind.VIEW and all(r in graph.inputs or r in made for r in node.refs):
            views.append(node)
            made.update(node.outputs)
    rest = tuple(node for node in graph.nodes if node not in views)
    inside = {name for node in rest for name in node.outputs}
    needed = dict.fromkeys(name for node in rest for name in node.refs if name not in inside)
    needed |= dict.fromkeys(name for name in graph.outputs if name not in inside)
    kept = {name for node in views for name in (*node.refs, *node.outputs)}
    first = replace(
        graph, nodes=tuple(views), outputs=tuple(name for name in needed if name in made),
        specs=tuple((name, spec) for name, spec in graph.specs if name in kept or name in graph.inputs),
    )  # fmt: skip
    specs = tuple((name, spec) for name, spec in graph.specs if name in needed or name in inside)
    return first, replace(graph, inputs=tuple(needed), nodes=rest, specs=specs)


def sample(graph: SubGraph, tensors: Mapping[str, torch.Tensor], most: int) -> Sample | None:
    """A sample of what a graph with matrix products computes: sums are whole, rows and columns are some.

    Of an extent that is longer than `2 * most`, elements are kept at both ends, where tiles have rests, and between
    them by an odd step, which meets every place in a tile.

    Args:
        graph: a graph with matrix products.
        tensors: a tensor for every input.
        most: about how many elements of an extent are kept.

    Returns:
        None where the graph's extents are unknown, or all of them are short.
    """
    found = extents(graph)
    fresh = None if found is None else _sizes(graph, found)
    if found is None or fresh is None:
        return None
    sizes = {number: tensors[name].shape[d] for (name, d), number in found.of.items() if name in tensors}
    kept = {
        number: torch.tensor(_spread(size, most))
        for number, size in sizes.items()
        if size > 2 * most and number not in found.summed
    }
    specs = tuple(
        (name, TensorSpec.contiguous(spec.dtype, _shape(name, spec, found, fresh), spec.device))
        for name, spec in graph.specs
    )
    return Sample(replace(graph, specs=specs), found, kept) if kept else None


def _spread(size: int, most: int) -> list[int]:
    ends = most // 4
    step = max(1, (size - 2 * ends) // (most - 2 * ends))
    step += step % 2 == 0  # odd, so that it meets each remainder of a power of two
    return sorted({*range(ends), *range(ends, size - ends, step), *range(size - ends, size)})


def _is_one(size: Dim) -> bool:
    return isinstance(size, int) and size == 1
