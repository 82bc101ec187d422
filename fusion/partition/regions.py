"""Regions: groups of a recording's calls that may become one kernel, as values."""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence, Set
from dataclasses import dataclass

from fusion.partition.dependence import Step
from fusion.partition.node_facts import Facts
from fusion.patterns.graph import SubGraph
from fusion.refusal import Refusal


@dataclass(frozen=True, slots=True)
class Region:
    """A group of calls that may become one kernel.

    Attributes:
        nodes: indices into the recording's nodes, ascending.
        subgraph: the group over the recording's own value names and size symbols; the last call's result is the first
            output of it, or of a member.
        inputs, outputs: the subgraph's.
        shared: those of `nodes` that the kernel computes for itself and hands to nobody: views, and calls cheap enough
            to be computed again. Other regions may hold them too, and they run outside for whoever else needs them.
        parts: where the region was merged from several, the nodes of each, in an order they could run in; else empty.
        members: where the region is a bundle, the regions in it, which need nothing of each other; else empty.
    """

    nodes: tuple[int, ...]
    subgraph: SubGraph
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shared: tuple[int, ...] = ()
    parts: tuple[tuple[int, ...], ...] = ()
    members: tuple[Region, ...] = ()

    @property
    def owned(self) -> tuple[int, ...]:
        """Nodes that no one else runs."""
        shared = set(self.shared)
        return tuple(i for i in self.nodes if i not in shared)


@dataclass(frozen=True, slots=True)
class Partition:
    """What may be fused in a recording.

    Attributes:
        regions: disjoint but for what they share, in the order of their last calls.
        refusals: for each operator call in no region, its index and why, ascending.
        order: an execution order in which each region is one step; `schedule` gives one for some of the regions.
    """

    regions: tuple[Region, ...]
    refusals: tuple[tuple[int, Refusal], ...]
    order: tuple[Step, ...]


def make_region(
    facts: Facts,
    nodes: Set[int],
    shared: Iterable[int],
    copied: Container[int],
    parts: tuple[tuple[int, ...], ...] = (),
) -> Region:
    """The region of some calls.

    Args:
        facts: of the recording.
        nodes: the calls, shared ones included.
        shared: those that others may run too; views always are.
        copied: calls that some other region shares.
        parts: as in `Region`.
    """
    ordered = tuple(sorted(nodes))
    own_copies = {i for i in shared if i in nodes} | {i for i in ordered if facts.view[i]}
    calls = tuple(facts.op(i) for i in ordered)
    made = {name for call in calls for name in call.outputs}
    inputs = tuple(dict.fromkeys(name for call in calls for name in call.refs if name not in made))
    outputs = stored(facts, nodes, own_copies, copied) or calls[-1].outputs[:1]  # a result nobody reads
    names = (*inputs, *(name for call in calls for name in call.outputs))
    graph = SubGraph(inputs, calls, outputs, tuple((name, facts.graph.spec[name]) for name in names))
    return Region(ordered, graph, inputs, outputs, tuple(sorted(own_copies)), parts)


def bundled(facts: Facts, members: Sequence[Region]) -> Region:
    """The region that runs `members` at once, each over its own indices.

    Args:
        facts: of the recording.
        members: two or more that read nothing of each other, in the order of their last calls.
    """
    nodes = tuple(sorted({i for region in members for i in region.nodes}))
    owned = {i for region in members for i in region.owned}
    calls = tuple(facts.op(i) for i in nodes)
    made = {name for call in calls for name in call.outputs}
    inputs = tuple(dict.fromkeys(name for call in calls for name in call.refs if name not in made))
    outputs = tuple(name for region in members for name in region.outputs)
    names = (*inputs, *(name for call in calls for name in call.outputs))
    specs = tuple((name, facts.graph.spec[name]) for name in names)
    graph = SubGraph(inputs, calls, outputs, specs, bundle=tuple(len(region.outputs) for region in members))
    shared = tuple(i for i in nodes if i not in owned)
    return Region(nodes, graph, inputs, outputs, shared, members=tuple(members))


def stored(facts: Facts, nodes: Set[int], shared: Set[int], copied: Container[int]) -> tuple[str, ...]:
    """The values a region has to store, the last first: results of its own calls that someone outside reads.

    What is shared, here or elsewhere, is made again by those who need it, from the region's own results if need be.
    """
    users, leaking = facts.dependence.users, set[int]()
    outputs: list[str] = []
    for i in sorted(nodes, reverse=True):
        outside = {u for u in users[i] if u not in nodes or (u in leaking and (u in shared or u in copied))}
        if not outside and i not in facts.dependence.returned:
            continue
        leaking.add(i)
        if i in shared:
            continue
        for name in facts.op(i).outputs:
            if name in facts.returned or any(name in facts.refs[u] for u in outside):
                outputs.append(name)
    return tuple(outputs)
