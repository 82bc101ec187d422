"""What a partition knows of each call of a recording before any region is grown."""

from __future__ import annotations

from collections.abc import Iterable

from fusion.kernels.elements import DTYPES
from fusion.patterns import ops, symbols
from fusion.patterns.graph import IslandNode, OpNode, RecordedGraph, TensorSpec, island_text
from fusion.patterns.ops import Kind
from fusion.patterns.symbols import Dim

from .dependence import Dependence, dependence, is_view, made_by

Extents = tuple[str, ...]  # sizes other than 1, as sorted text: an iteration space up to the order of its dimensions
No = tuple[str, str]  # refusal code and sentence

_COMPUTE = (Kind.POINTWISE, Kind.REDUCTION, Kind.ELEMENT)


class Facts:
    """Looked-up and derived properties of a recording's nodes, by index.

    Attributes:
        graph: the recording.
        dependence: who reads whom, and what must stay in order.
        boundary: why a node can be in no region, or None.
        view: whether a node is an index map that a region may repeat.
        row_source: the reduction that a node's values come from, where it has one value per row of that reduction.
    """

    def __init__(self, graph: RecordedGraph) -> None:
        self.graph = graph
        self.dependence: Dependence = dependence(graph)
        self._texts: dict[Dim, str] = {}
        written = self.dependence.written
        self.boundary = [_boundary(node, graph.spec, written) for node in graph.nodes]
        self.view = [no is None and is_view(n) for no, n in zip(self.boundary, graph.nodes, strict=True)]
        self.row_source: list[int | None] = []
        for i in range(len(graph.nodes)):
            self.row_source.append(self._row_source(i))

    def computes(self, i: int) -> bool:
        """Whether node `i` is a call a kernel can compute."""
        return self.boundary[i] is None and not self.view[i]

    def op(self, i: int) -> OpNode:
        """Node `i`, which is a call."""
        node = self.graph.nodes[i]
        assert isinstance(node, OpNode)
        return node

    def reduces(self, i: int) -> bool:
        """Whether node `i` is a reduction."""
        return self.computes(i) and ops.kind_of(self.op(i).op) is Kind.REDUCTION

    def sources(self, i: int) -> tuple[int, ...]:
        """The nodes that make the values whose elements node `i` reads."""
        names = self.op(i).refs[:1] if self.view[i] else self.op(i).refs
        return tuple(self.dependence.producer[n] for n in names if n in self.dependence.producer)

    def extents(self, shape: Iterable[Dim]) -> Extents:
        """An iteration space, to be compared."""
        return tuple(sorted(text for text in map(self._text, shape) if text != "1"))

    def _text(self, size: Dim) -> str:
        if size not in self._texts:
            self._texts[size] = symbols.render(size if isinstance(size, int) else symbols.as_dim(size.expand()))
        return self._texts[size]

    def made(self, i: int) -> Extents:
        """The iteration space of what node `i` makes."""
        return self.extents(self.graph.spec[self.op(i).outputs[0]].shape)

    def space(self, i: int) -> Extents:
        """The iteration space node `i` runs over."""
        return self.extents(self.graph.spec[self.op(i).refs[0]].shape) if self.reduces(i) else self.made(i)

    def rows(self, i: int) -> Extents | None:
        """The rows that node `i` has one value for each of, where it depends on a reduction over them."""
        source = self.row_source[i]
        return None if source is None else self.extents(self.graph.spec[self.op(source).refs[0]].shape[:-1])

    def _row_source(self, i: int) -> int | None:
        if self.boundary[i] is not None or isinstance(self.graph.nodes[i], IslandNode):
            return None
        if self.reduces(i):
            return i if self.made(i) == self.extents(self.graph.spec[self.op(i).refs[0]].shape[:-1]) else None
        if self.view[i] or ops.kind_of(self.op(i).op) is Kind.POINTWISE:
            below = (self.row_source[p] for p in self.sources(i))
            return next((s for s in below if s is not None and self.made(s) == self.made(i)), None)
        return None

    def broadcasts(self, i: int, by: int) -> bool:
        """Whether node `by` reads elements of what node `i` makes more than once each."""
        if self.reduces(by) or ops.kind_of(self.op(by).op) is Kind.ELEMENT:
            return False
        if self.view[by] and len(self.made(by)) <= len(self.extents(self.graph.spec[self.op(by).refs[0]].shape)):
            return False
        wanted = len(self.made(by))
        made = set(self.op(i).outputs)
        return any(len(self.extents(self.graph.spec[n].shape)) < wanted for n in self.op(by).refs if n in made)


def _boundary(node: OpNode | IslandNode, spec: dict[str, TensorSpec], written: frozenset[str]) -> No | None:
    """Why a node can be in no region, or None."""
    if isinstance(node, IslandNode):
        return "not_fusable", f"{island_text(node)} is called natively"
    names = (*node.refs, *made_by(node))
    if not written.isdisjoint(names):
        return "aliased", f"{node.op} touches memory that is written to"
    row = ops.lookup(node.op)
    if row is None or row.kind not in (*_COMPUTE, Kind.VIEW):
        return "not_fusable", f"{node.op} is a library call"
    reason = row.covers(ops.call_of(node, spec))
    if reason is not None or (row.kind is not Kind.VIEW and len(node.outputs) != 1):
        return "operator_use", f"{node.op}: {reason or 'several results'}"
    for name in names:
        if spec[name].dtype not in DTYPES:
            return "dtype", f"{node.op} touches {spec[name].text()}; kernels hold no {spec[name].dtype}"
    devices = sorted({spec[name].device for name in names})
    if len(devices) > 1:
        return "device", f"{node.op} has tensors on {' and '.join(devices)}; a kernel runs on one device"
    return None
