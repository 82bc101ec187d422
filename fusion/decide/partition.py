"""Which groups of calls of a recording may become one kernel: legality, not profit.

Regions grow from sinks to sources. A region is convex, has one iteration space, crosses no write, and lowers to a
LoopNest; every call outside of all regions carries a Refusal that says why.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import lower
from fusion.patterns import symbols
from fusion.patterns.errors import LoweringError
from fusion.patterns.graph import IslandNode, RecordedGraph, SubGraph, TensorSpec

from .dependence import Dependence, Step, schedule
from .facts import Extents, Facts, No
from .refusal import CODES, Refusal

Judge = Callable[[SubGraph], LoopNest]

# Codes of a LoweringError that go by another name in a report.
_LOWERING_CODES = {"domain": "different_domain", "index": "operator_use"}


@dataclass(frozen=True, slots=True)
class Region:
    """A group of calls that may become one kernel.

    Attributes:
        nodes: indices into the recording's nodes, ascending; views that are pulled inside included, even those that
            also stay outside for other users.
        subgraph: the group over the recording's own value names and size symbols; its last call's result is the first
            output.
        inputs, outputs: the subgraph's.
        removed: those of `nodes` that need not run outside any more, even if no other region is used.
    """

    nodes: tuple[int, ...]
    subgraph: SubGraph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    removed: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Partition:
    """What may be fused in a recording.

    Attributes:
        regions: disjoint but for views, in the order of their last calls.
        refusals: for each operator call in no region, its index and why, ascending.
        order: an execution order in which each region is one step; `schedule` gives one for some of the regions.
    """

    regions: tuple[Region, ...]
    refusals: tuple[tuple[int, Refusal], ...]
    order: tuple[Step, ...]


def partition(
    graph: RecordedGraph,
    *,
    min_nodes: int = 2,
    min_elements: int = 1,
    values: Mapping[str, int],
    judge: Judge | None = None,
) -> Partition:
    """Finds the regions of `graph`. Deterministic; near-linear in the number of calls.

    Args:
        graph: a recording.
        min_nodes: calls that compute (views do not count) below which a region is refused as "too_small".
        min_elements: elements of the largest output below which a region is refused as "few_elements".
        values: the size of each symbol in the recorded call, for `min_elements`; an output whose size depends on a
            symbol it lacks counts as large enough.
        judge: lowers a SubGraph or raises LoweringError; `kernels.lower.lower` by default. Called once per digest.
    """
    facts = Facts(graph)
    search = _Search(facts, min_nodes, min_elements, values, _remembered(judge or lower))
    for i in reversed(range(len(graph.nodes))):
        if facts.computes(i) and i not in search.taken and i not in search.refused:
            search.seed(i)
    regions = tuple(sorted(search.regions, key=lambda region: region.nodes[-1]))
    return Partition(regions, tuple(_refusals(search, regions)), schedule(graph, regions, facts.dependence))


def _remembered(judge: Judge) -> Callable[[SubGraph], No | None]:
    """Why a SubGraph does not lower, or None; asked once per digest."""
    known: dict[str, No | None] = {}

    def verdict(graph: SubGraph) -> No | None:
        if graph.digest not in known:
            try:
                judge(graph)
                known[graph.digest] = None
            except LoweringError as error:
                code = _LOWERING_CODES.get(error.code, error.code)
                known[graph.digest] = (code if code in CODES else "not_fusable", error.message)
        return known[graph.digest]

    return verdict


def _refusals(search: _Search, regions: Iterable[Region]) -> Iterable[tuple[int, Refusal]]:
    facts = search.facts
    inside = {i for region in regions for i in region.nodes}
    for i, node in enumerate(facts.graph.nodes):
        if isinstance(node, IslandNode) or i in inside:
            continue
        no = facts.boundary[i] or search.refused.get(i)
        code, sentence = no or ("too_small", f"{node.op} is an index map between calls that are not fused")
        yield i, Refusal(code, sentence, node.origin)


@dataclass
class _Growth:
    """A region while it grows.

    Attributes:
        space: the iteration space of its outputs.
        device: of all its values.
        nodes: its nodes, views included.
        mask: the same as a bit set.
        repeated: nodes whose value is read more than once per element.
        leaks: for each view inside, the nodes outside that read it, directly or through other views inside.
        returned: views inside that the recording hands back, as they are or through other views inside.
    """

    space: Extents
    device: str
    nodes: set[int] = field(default_factory=set)
    mask: int = 0
    repeated: set[int] = field(default_factory=set)
    leaks: dict[int, set[int]] = field(default_factory=dict)
    returned: set[int] = field(default_factory=set)


class _Search:
    """The state of one partition: what is taken, what is refused, what reaches what."""

    def __init__(
        self,
        facts: Facts,
        min_nodes: int,
        min_elements: int,
        values: Mapping[str, int],
        verdict: Callable[[SubGraph], No | None],
    ) -> None:
        self.facts = facts
        self.min_nodes = min_nodes
        self.min_elements = min_elements
        self.values = values
        self.verdict = verdict
        self.taken: set[int] = set()
        self.refused: dict[int, No] = {}
        self.declined: dict[int, No] = {}  # why a call was not taken into a region that reads it
        self.regions: list[Region] = []
        self.reach = _reach(facts.dependence)

    def seed(self, i: int) -> None:
        """Makes the region that ends in node `i`, or refuses the node."""
        grown = self._grow(i, further_outputs=True)
        no = self._accept(grown.nodes)
        if no is None:
            return
        if no[0] in ("too_small", "few_elements"):
            # Whoever else could take its calls in would read an output of this region.
            alone = len(self._outputs(grown.nodes)) == 1
            for n in grown.nodes if alone else (i,):
                if self.facts.computes(n):
                    self.refused[n] = self.declined.get(n, no) if no[0] == "too_small" else no
            return
        for n in grown.nodes - {i}:
            self.declined.setdefault(n, no)
        if not self._accept_part(i, grown.nodes):
            self.refused[i] = no

    def _accept_part(self, i: int, nodes: set[int]) -> bool:
        """Takes the largest part found of a region that does not lower: with one output, then its last calls only."""
        single = self._grow(i, further_outputs=False).nodes
        if single != nodes and self._accept(single) is None:
            return True
        ordered = sorted(single)
        computing = [k for k, n in enumerate(ordered) if self.facts.computes(n)]
        if len(computing) <= self.min_nodes:
            return False
        works, fails = computing[-self.min_nodes], 0
        if self._trial(set(ordered[works:])) is not None:
            return False
        while works - fails > 1:
            middle = (works + fails) // 2
            if self._trial(set(ordered[middle:])) is None:
                works = middle
            else:
                fails = middle
        return self._accept(set(ordered[works:])) is None

    # ---- growing

    def _grow(self, last: int, *, further_outputs: bool) -> _Growth:
        facts = self.facts
        spec = facts.graph.spec[facts.op(last).outputs[0]]
        grown = _Growth(facts.space(last), spec.device)
        queue: list[int] = []
        queued: set[int] = set()

        def take(i: int) -> None:
            grown.nodes.add(i)
            grown.mask |= 1 << i
            for source in facts.sources(i):
                if source not in queued:
                    queued.add(source)
                    heapq.heappush(queue, -source)

        take(last)
        while queue:  # the latest first: all of a call's readers are decided on before the call itself
            i = -heapq.heappop(queue)
            if facts.boundary[i] is not None or i in self.taken:
                continue
            if self._is_repeated(i, grown):
                grown.repeated.add(i)
            if facts.view[i]:
                grown.leaks[i] = self._readers_outside(i, grown)
                if self._is_returned(i, grown):
                    grown.returned.add(i)
                take(i)
                continue
            no = self._decline(i, grown, further_outputs)
            if no is not None:
                self.declined.setdefault(i, no)
                continue
            if facts.reduces(i) and len(facts.space(i)) > len(grown.space):
                grown.space = facts.space(i)
            take(i)
        return grown

    def _is_repeated(self, i: int, grown: _Growth) -> bool:
        readers = (u for u in self.facts.dependence.users[i] if u in grown.nodes)
        return any(
            self.facts.broadcasts(i, by=u) or (u in grown.repeated and not self.facts.reduces(u)) for u in readers
        )

    def _readers_outside(self, i: int, grown: _Growth) -> set[int]:
        readers = {u for u in self.facts.dependence.users[i] if u not in grown.nodes}
        for u in self.facts.dependence.users[i]:
            readers |= grown.leaks.get(u, set())
        return readers

    def _decline(self, i: int, grown: _Growth, further_outputs: bool) -> No | None:
        """Why call `i`, whose result the region reads, is not taken into it; None where it may be."""
        facts = self.facts
        op = facts.op(i).op
        if facts.graph.spec[facts.op(i).outputs[0]].device != grown.device:
            return "device", f"{op} runs on another device than the region that reads it"
        readers = self._readers_outside(i, grown)
        blocking = readers.union(u for u in facts.dependence.after[i] if u not in grown.nodes)
        if any(self.reach[u] & grown.mask for u in blocking):
            return "not_convex", f"a path leads from {op} through calls outside back into the region"
        per_row = self._is_per_row(i, grown)
        if i in grown.repeated and not per_row:
            return "broadcast_recompute", f"the result of {op} would be computed again for all it is broadcast to"
        if not (readers or self._is_returned(i, grown)):
            return None
        if not further_outputs:
            return "different_domain", f"the result of {op} is read outside too; the kernel cannot hand it back"
        if facts.made(i) != grown.space and not per_row:
            return "different_domain", f"the result of {op} is read outside too, and runs over other indices"
        return None

    def _is_returned(self, i: int, grown: _Growth) -> bool:
        """Whether the recording hands back what node `i` makes, as it is or through views inside."""
        return i in self.facts.dependence.returned or any(u in grown.returned for u in self.facts.dependence.users[i])

    def _is_per_row(self, i: int, grown: _Growth) -> bool:
        """Whether node `i` has one value per row of the region, made by a reduction that can be taken in."""
        rows, source = self.facts.rows(i), self.facts.row_source[i]
        if rows is None or source in self.taken:
            return False
        return rows == grown.space or any(
            rows == grown.space[:k] + grown.space[k + 1 :] for k in range(len(grown.space))
        )

    # ---- accepting

    def _accept(self, nodes: set[int]) -> No | None:
        """Makes a region of `nodes`; else why not."""
        no = self._trial(nodes)
        if no is None:
            region = self._region(nodes)
            self.regions.append(region)
            self.taken |= {i for i in nodes if self.facts.computes(i)}
            self._contract(region)
        return no

    def _trial(self, nodes: set[int]) -> No | None:
        computing = [i for i in nodes if self.facts.computes(i)]
        if len(computing) < self.min_nodes:
            plural = "" if len(computing) == 1 else "s"
            return "too_small", f"{len(computing)} operator{plural}, fewer than min_nodes={self.min_nodes}"
        graph = self._region(nodes).subgraph
        sizes = [_elements(graph.spec[name], self.values) for name in graph.outputs]
        known = [size for size in sizes if size is not None]
        if len(known) == len(sizes) and max(known) < self.min_elements:
            return "few_elements", f"{max(known)} elements, fewer than min_tensor_elements={self.min_elements}"
        return self.verdict(graph)

    def _leaking(self, nodes: set[int]) -> set[int]:
        """Those of a region's nodes whose result is needed outside, where its views would be remade if need be."""
        facts = self.facts.dependence
        leaking: set[int] = set()
        for i in sorted(nodes, reverse=True):
            outside = any(u not in nodes or (self.facts.view[u] and u in leaking) for u in facts.users[i])
            if outside or i in facts.returned:
                leaking.add(i)
        return leaking

    def _outputs(self, nodes: set[int]) -> list[int]:
        """The calls whose results a region stores, the last first."""
        return sorted((i for i in self._leaking(nodes) if self.facts.computes(i)), reverse=True)

    def _region(self, nodes: set[int]) -> Region:
        facts = self.facts
        ordered = tuple(sorted(nodes))
        calls = tuple(facts.op(i) for i in ordered)
        made = {name for call in calls for name in call.outputs}
        inputs = tuple(dict.fromkeys(name for call in calls for name in call.refs if name not in made))
        leaking = self._leaking(nodes)
        outputs = tuple(facts.op(i).outputs[0] for i in reversed(ordered) if i in leaking and not facts.view[i])
        outputs = outputs or calls[-1].outputs  # a result nobody reads
        names = (*inputs, *(name for call in calls for name in call.outputs))
        graph = SubGraph(inputs, calls, outputs, tuple((name, facts.graph.spec[name]) for name in names))
        removed = tuple(i for i in ordered if not (facts.view[i] and i in leaking))
        return Region(ordered, graph, inputs, outputs, removed)

    def _contract(self, region: Region) -> None:
        """Makes what reaches one call of a region reach all that the region reaches: it runs as one step."""
        computing = [i for i in region.nodes if self.facts.computes(i)]
        mask = sum(1 << i for i in computing)
        reached = 0
        for i in computing:
            reached |= self.reach[i]
        if not reached & ~mask & ~self.reach[computing[-1]]:
            return
        for i in range(computing[-1] + 1):
            if self.reach[i] & mask or mask >> i & 1:
                self.reach[i] |= reached


def _reach(facts: Dependence) -> list[int]:
    """For each node, a bit set of the nodes that depend on it."""
    reach = [0] * len(facts.after)
    for i in reversed(range(len(reach))):
        bits = 0
        for later in facts.after[i]:
            bits |= reach[later] | 1 << later
        reach[i] = bits
    return reach


def _elements(spec: TensorSpec, values: Mapping[str, int]) -> int | None:
    """How many elements a tensor has; None where that depends on a symbol of unknown value."""
    if any(s.name not in values for s in symbols.free_symbols(spec.shape)):
        return None
    count: int = math.prod(symbols.evaluate(size, values) for size in spec.shape)
    return count
