"""Which groups of calls of a recording may become one kernel, and which of those are expected to gain.

Regions grow from sinks to sources, neighbours over one iteration space are merged, and small ones that need nothing of
each other are bundled. A region is convex, crosses no write, and lowers to a LoopNest, or to a Bundle of them; every
call outside of all regions carries a Refusal that says why. `cost_model` chooses among what is legal; `verify` checks
the outcome.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from fusion import faults
from fusion.partition import cost_model
from fusion.partition.dependence import schedule
from fusion.partition.growth import Grower, Growth
from fusion.partition.horizontal import bundle
from fusion.partition.legality import Judge, Legality
from fusion.partition.merge import merge
from fusion.partition.node_facts import Extents, Facts, No
from fusion.partition.reachability import Reach
from fusion.partition.regions import Partition, Region, make_region, stored
from fusion.partition.verify import verify
from fusion.patterns.nodes import OpNode
from fusion.patterns.recorded import RecordedGraph
from fusion.patterns.specs import TensorSpec
from fusion.refusal import Refusal


def partition(
    graph: RecordedGraph,
    *,
    min_nodes: int = 1,
    min_elements: int = 1,
    values: Mapping[str, int],
    judge: Judge | None = None,
    products: bool = False,
    later: str = "",
) -> Partition:
    """Finds the regions of `graph`. Deterministic; near-linear in the number of calls.

    Args:
        graph: a recording.
        min_nodes: calls that compute (views do not count) below which a region is refused as "too_small".
        min_elements: elements of the largest output below which a region is refused as "few_elements".
        values: the size of each symbol in the recorded call, for `min_elements` and the cost model; an output whose
            size depends on a symbol it lacks counts as large enough.
        judge: as `Legality`'s.
        products, later: as for `Facts`.

    Raises:
        GraphError: the outcome is malformed; `verify` says how.
    """
    search = _Search(Facts(graph, products=products, later=later), min_nodes, min_elements, values, judge)
    facts = search.facts
    search.run()
    merged = merge(facts, search.regions, search.reach, search.legality)
    regions = tuple(bundle(facts, merged, search.reach, values))
    made = Partition(regions, tuple(_refusals(search, regions)), schedule(graph, regions, facts.dependence))
    verify(made, graph, facts)
    return made


def unfused(graph: RecordedGraph, reason: str) -> Partition:
    """The partition without regions, for a graph that none could be found in.

    Args:
        graph: a recording.
        reason: why there are none.
    """
    calls = ((i, node) for i, node in enumerate(graph.nodes) if isinstance(node, OpNode))
    refusals = tuple((i, Refusal(faults.CODE, reason, node.origin)) for i, node in calls)
    return Partition((), refusals, schedule(graph, ()))


def _refusals(search: _Search, regions: Iterable[Region]) -> Iterable[tuple[int, Refusal]]:
    facts = search.facts
    inside = {i for region in regions for i in region.nodes}
    for i, node in enumerate(facts.graph.nodes):
        if not isinstance(node, OpNode) or i in inside:
            continue
        no = facts.boundary[i] or search.refused.get(i)
        code, sentence = no or ("too_small", f"{node.op} is an index map between calls that are not fused")
        yield i, Refusal(code, sentence, node.origin)


class _Search:
    """The state of one partition: what is taken, what is refused, what reaches what."""

    def __init__(
        self,
        facts: Facts,
        min_nodes: int,
        min_elements: int,
        values: Mapping[str, int],
        judge: Judge | None,
    ) -> None:
        self.facts = facts
        self.min_nodes = min_nodes
        self.min_elements = min_elements
        self.values = values
        self.sizes = cost_model.Sizes(values)
        self.legality = Legality(facts, judge)
        self.taken: set[int] = set()
        self.holders: dict[int, list[frozenset[int]]] = {}  # the nodes of the regions that hold a node
        self.outside = [True] * len(facts.graph.nodes)  # whether a node runs in no region; known once decided on
        self.refused: dict[int, No] = {}
        self.regions: list[tuple[Region, Extents]] = []
        self.reach = Reach(facts)
        self.grower = Grower(facts, self.sizes, self.taken, self.refused, self.holders, self.reach)

    def run(self) -> None:
        """Decides on every node, the last first."""
        for i in reversed(range(len(self.outside))):
            needed = self._is_needed(i)
            if self.facts.computes(i) and needed and i not in self.taken and i not in self.refused:
                self.seed(i)
            self.outside[i] = needed and i not in self.taken

    def _is_needed(self, i: int) -> bool:
        """Whether node `i` has to run even if regions compute it for themselves."""
        dependence = self.facts.dependence
        if i not in self.holders or i in dependence.returned:
            return True
        return any(
            self.outside[u] or any(i not in held for held in self.holders.get(u, ())) for u in dependence.users[i]
        )

    def seed(self, i: int) -> None:
        """Makes the region that ends in node `i`, or refuses the node."""
        grown = self.grower.grow(i, further_outputs=True)
        no = self._accept(grown)
        if no is None:
            return
        declined = self.grower.declined
        if no[0] in ("too_small", "few_elements"):
            # Whoever else could take its calls in would read an output of this region.
            alone = len(stored(self.facts, grown.nodes, grown.shared, self.holders)) <= 1
            for n in grown.nodes - grown.shared if alone else (i,):
                self.refused[n] = declined.get(n, no) if no[0] == "too_small" else no
            return
        for n in grown.nodes - {i}:
            declined.setdefault(n, no)
        if not self._accept_part(i, grown.nodes):
            self.refused[i] = no

    def _accept_part(self, i: int, nodes: set[int]) -> bool:
        """Takes the largest part found of a region that does not lower: with one output, then its last calls only."""
        single = self.grower.grow(i, further_outputs=False)
        if single.nodes != nodes and self._accept(single) is None:
            return True
        ordered = sorted(single.nodes)
        computing = [k for k, n in enumerate(ordered) if self.facts.computes(n)]
        if len(computing) <= self.min_nodes:
            return False
        works, fails = computing[-self.min_nodes], 0
        if self._trial(set(ordered[works:]), single.shared) is not None:
            return False
        while works - fails > 1:
            middle = (works + fails) // 2
            if self._trial(set(ordered[middle:]), single.shared) is None:
                works = middle
            else:
                fails = middle
        return self._accept(replace(single, nodes=set(ordered[works:]))) is None

    def _accept(self, grown: Growth) -> No | None:
        """Makes a region of what has grown; else why not."""
        no = self._trial(grown.nodes, grown.shared)
        if no is None:
            region = make_region(self.facts, grown.nodes, grown.shared, self.holders)
            self.regions.append((region, grown.space))
            self.taken.update(region.owned)
            held = frozenset(region.nodes)
            for i in region.nodes:
                self.holders.setdefault(i, []).append(held)
            self.reach.join(region.owned)
        return no

    def _trial(self, nodes: set[int], shared: set[int]) -> No | None:
        computing = sum(self.facts.computes(i) for i in nodes)
        if computing < self.min_nodes:
            plural = "" if computing == 1 else "s"
            return "too_small", f"{computing} operator{plural}, fewer than min_nodes={self.min_nodes}"
        names = stored(self.facts, nodes, shared, self.holders) or self.facts.op(max(nodes)).outputs[:1]
        specs = [self.facts.graph.spec[name] for name in names]
        if all(self._is_known(spec) for spec in specs):
            most = max(self.sizes.elements(spec.shape) for spec in specs)
            if most < self.min_elements:
                return "few_elements", f"{most} elements, fewer than min_tensor_elements={self.min_elements}"
        if computing == 1 and not cost_model.device(specs[0].device).lone_operators:
            return "no_gain", f"one operator alone saves no bytes and no launch on {specs[0].device}"
        return self.legality(make_region(self.facts, nodes, shared, self.holders))

    def _is_known(self, spec: TensorSpec) -> bool:
        return all(isinstance(d, int) or all(s.name in self.values for s in d.free_symbols) for d in spec.shape)
