"""What a partition knows of each call of a recording before any region is grown."""

from __future__ import annotations

from fusion import faults
from fusion.kernels.inline import DTYPES
from fusion.kernels.iteration_space import memory_order
from fusion.partition import cost_model
from fusion.partition.dependence import Dependence, dependence, is_view
from fusion.patterns import ops, symbols
from fusion.patterns.errors import LoweringError
from fusion.patterns.leaves import Ref, leaves
from fusion.patterns.nodes import Node, OpNode, made_by
from fusion.patterns.ops import Kind
from fusion.patterns.recorded import RecordedGraph
from fusion.patterns.specs import TensorSpec
from fusion.patterns.symbols import Dim

Extents = tuple[str, ...]  # sizes other than 1, as sorted text: an iteration space up to the order of its dimensions
No = tuple[str, str]  # refusal code and sentence

_OUTSIDE = (Kind.LIBRARY, Kind.EFFECT)  # kinds that no kernel holds


class Facts:
    """Looked-up and derived properties of a recording's nodes, by index.

    Args:
        graph: the recording.
        products: whether kernels may hold matrix products; otherwise those are library calls.
        later: what is said of a product where kernels are going to hold it, but not yet.

    Attributes:
        graph: the recording.
        dependence: who reads whom, and what must stay in order.
        before: for each node, the nodes that may not run after it.
        boundary: why a node can be in no region, or None.
        view: whether a node is an index map that a region may repeat.
        row_source: the reduction that a node's values come from, where it has one value per row of that reduction.
        returned: names of the values the recording hands back.
    """

    def __init__(self, graph: RecordedGraph, *, products: bool = False, later: str = "") -> None:
        self.graph = graph
        self.dependence: Dependence = dependence(graph)
        self.refs = tuple(node.refs for node in graph.nodes)
        self.before = _inverse(self.dependence.after)
        self.returned = frozenset(leaf.name for leaf in leaves(graph.outputs) if isinstance(leaf, Ref))
        self._texts: dict[Dim, str] = {}
        self._extents: dict[str, Extents] = {}
        self._layouts: dict[str, tuple[Extents, Extents] | None] = {}
        written = self.dependence.written
        self.boundary = [
            _boundary(node, refs, graph.spec, written, products, later)
            for node, refs in zip(graph.nodes, self.refs, strict=True)
        ]
        self.view = [no is None and is_view(n) for no, n in zip(self.boundary, graph.nodes, strict=True)]
        self.row_source: list[int | None] = []
        self._indexed: list[bool] = []  # whether a node's values depend on nothing but indices and sizes
        for i in range(len(graph.nodes)):
            self.row_source.append(self._row_source(i))
            self._indexed.append(self._is_indexed(i))

    def computes(self, i: int) -> bool:
        """Whether node `i` is a call a kernel can compute."""
        return self.boundary[i] is None and not self.view[i]

    def op(self, i: int) -> OpNode:
        """Node `i`, which is a call."""
        node = self.graph.nodes[i]
        assert isinstance(node, OpNode)
        return node

    def kind(self, i: int) -> Kind:
        """The kind of node `i`, which is a call."""
        return ops.kind_of(self.op(i).op)

    def reduces(self, i: int) -> bool:
        """Whether node `i` is a reduction."""
        return self.computes(i) and self.kind(i) is Kind.REDUCTION

    def multiplies(self, i: int) -> bool:
        """Whether node `i` is a matrix product that a kernel can hold."""
        return self.computes(i) and self.kind(i) is Kind.PRODUCT

    def rowwise(self, i: int) -> bool:
        """Whether node `i` is a reduction or an element operator (cat, pad): a kernel with a product holds neither."""
        return self.computes(i) and self.kind(i) in (Kind.REDUCTION, Kind.ELEMENT)

    def creates(self, i: int) -> bool:
        """Whether node `i` computes its elements from their indices alone: a kernel reads no memory for it."""
        return self._indexed[i] and not self.view[i]

    def _is_indexed(self, i: int) -> bool:
        if not (self.view[i] or self.repeatable(i)):
            return False
        makers = [self.dependence.producer.get(name) for name in self.refs[i]]
        return all(maker is not None and maker < i and self._indexed[maker] for maker in makers)

    def repeatable(self, i: int) -> bool:
        """Whether several regions may compute node `i`, each for itself: element by element, and bound to no effect."""
        bound = len(self.dependence.after[i]) > len(self.dependence.users[i])
        if self.reduces(i) or self.multiplies(i):
            return False
        return self.computes(i) and len(self.op(i).outputs) == 1 and not bound

    def sources(self, i: int) -> tuple[int, ...]:
        """The nodes that make the values whose elements node `i` reads."""
        names = self.refs[i][:1] if self.view[i] else self.refs[i]
        return tuple(self.dependence.producer[n] for n in names if n in self.dependence.producer)

    def extents(self, name: str) -> Extents:
        """The iteration space of a value, to be compared."""
        known = self._extents.get(name)
        if known is None:
            shape = self.graph.spec[name].shape
            known = self._extents[name] = tuple(sorted(_other_than_one(tuple(map(self._text, shape)))))
        return known

    def together(self, first: str, second: str) -> bool:
        """Whether two values of one iteration space can be stored by one kernel: index by index, or in memory order."""
        one, other = self.layout(first), self.layout(second)
        return one is not None and other is not None and (one[0] == other[0] or one[1] == other[1])

    def layout(self, name: str) -> tuple[Extents, Extents] | None:
        """The sizes of a value other than 1 by dimension and in memory order; None where a kernel cannot store it."""
        if name not in self._layouts:
            self._layouts[name] = self._layout(name)
        return self._layouts[name]

    def _layout(self, name: str) -> tuple[Extents, Extents] | None:
        spec = self.graph.spec[name]
        texts = [self._text(size) for size in spec.shape]
        try:
            order = memory_order(name, spec)
        except LoweringError:
            return None
        logical, by_memory = (tuple(texts[d] for d in dims) for dims in (range(len(texts)), order))
        return _other_than_one(logical), _other_than_one(by_memory)

    def as_many(self, first: str, second: str) -> bool:
        """Whether two values provably have equally many elements."""
        one, other = (symbols.product(self.graph.spec[name].shape) for name in (first, second))
        return symbols.same(one, other)

    def reshaped(self, first: str, second: str) -> bool:
        """Whether two values are row-major with equally many elements: one index counts through both."""
        specs = self.graph.spec[first], self.graph.spec[second]
        return all(spec.is_contiguous for spec in specs) and self.as_many(first, second)

    def _text(self, size: Dim) -> str:
        if size not in self._texts:
            self._texts[size] = symbols.render(size if isinstance(size, int) else symbols.as_dim(size.expand()))
        return self._texts[size]

    def made(self, i: int) -> Extents:
        """The iteration space of what node `i` makes."""
        return self.extents(self.op(i).outputs[0])

    def space(self, i: int) -> Extents:
        """The iteration space node `i` runs over."""
        return self.extents(self.refs[i][0]) if self.reduces(i) else self.made(i)

    def rows(self, i: int) -> Extents | None:
        """The rows that node `i` has one value for each of, where it depends on a reduction over them."""
        source = self.row_source[i]
        return None if source is None else self.made(source)

    def _row_source(self, i: int) -> int | None:
        if self.boundary[i] is not None:
            return None
        if self.reduces(i):
            return i if len(self.made(i)) < len(self.space(i)) else None
        if self.view[i] or self.kind(i) is Kind.POINTWISE:
            below = (self.row_source[p] for p in self.sources(i))
            return next((s for s in below if s is not None and self.made(s) == self.made(i)), None)
        return None

    def broadcasts(self, i: int, by: int) -> bool:
        """Whether node `by` reads elements of what node `i` makes more than once each."""
        if self.view[by]:
            source = self.refs[by][0]
            return len(self.made(by)) > len(self.extents(source)) and not self.as_many(source, self.op(by).outputs[0])
        if self.kind(by) is Kind.ELEMENT:
            return False
        wanted = len(self.space(by))
        made = set(self.op(i).outputs)
        return any(len(self.extents(n)) < wanted for n in self.refs[by] if n in made)


def _other_than_one(texts: Extents) -> Extents:
    return tuple(text for text in texts if text != "1")


def _inverse(after: tuple[tuple[int, ...], ...]) -> tuple[tuple[int, ...], ...]:
    before: list[list[int]] = [[] for _ in after]
    for i, later in enumerate(after):
        for j in later:
            before[j].append(i)
    return tuple(map(tuple, before))


def _boundary(
    node: Node, refs: tuple[str, ...], spec: dict[str, TensorSpec], written: frozenset[str], products: bool, later: str
) -> No | None:
    """Why a node can be in no region, or None."""
    if not isinstance(node, OpNode):
        return "not_fusable", f"{node.text} is called natively"
    names = (*refs, *made_by(node))
    if not written.isdisjoint(names):
        return "aliased", f"{node.op} touches memory that is written to"
    row = ops.lookup(node.op)
    if row is None or row.kind in _OUTSIDE or (row.kind is Kind.PRODUCT and not (products or later)):
        return "not_fusable", f"{node.op} is a library call"
    if row.kind is Kind.POINTWISE and not refs:
        return "operator_use", f"{node.op} is given no tensor"
    try:
        reason = row.covers(ops.call_of(node, spec))
    except Exception as error:
        return faults.CODE, faults.noted(error, node.op)
    if reason is not None or not node.outputs:
        return "operator_use", f"{node.op}: {reason or 'no result'}"
    for name in names:
        if spec[name].dtype not in DTYPES:
            return "dtype", f"{node.op} touches {spec[name].text()}; kernels hold no {spec[name].dtype}"
    devices = sorted({spec[name].device for name in names})
    if row.kind is Kind.PRODUCT and not all(cost_model.multiplies_on(name, row) for name in devices):
        return "not_fusable", f"{node.op} is a library call on {devices[0]}"
    if row.kind is Kind.PRODUCT and later:
        return "few_calls", f"{node.op} {later}"
    if len(devices) > 1:
        return "device", f"{node.op} has tensors on {' and '.join(devices)}; a kernel runs on one device"
    return None
