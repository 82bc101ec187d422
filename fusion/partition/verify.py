"""What every partition must hold to, checked after it is made."""

from __future__ import annotations

from collections.abc import Mapping

from fusion.partition.dependence import Step
from fusion.partition.node_facts import Facts
from fusion.partition.regions import Partition, Region, stored
from fusion.patterns.errors import GraphError
from fusion.patterns.nodes import OpNode
from fusion.patterns.recorded import RecordedGraph

_REMEDY = "This is a mistake in fusion.partition; please report it with the recording's text."


def verify(partition: Partition, graph: RecordedGraph, facts: Facts | None = None) -> None:
    """Rejects a malformed partition.

    An order in which each region is one step and nothing is read before it is made exists only where the steps have
    no circle, so that no region is left and entered again (it is convex): one walk over the order shows both. For 3,000
    calls it takes 6 to 17 ms; a networkx graph of the steps and its check for circles takes 10 to 26 ms, and 0.2 s
    more to import, so it is used by the tests only.

    Args:
        partition: of `graph`.
        graph: the recording.
        facts: of `graph`, where they are known already.

    Raises:
        GraphError: a region is not the calls it names, shares what may run only once, or stores too little; a bundle is
            not its members, or one of them reads what another makes; two regions own one call; a call is neither in a
            region nor refused, or both; a step reads what is not made yet, passes an effect, or stands in the order
            twice; an output is not made.
    """
    facts = facts or Facts(graph)
    copied = {i for region in partition.regions for i in region.shared}
    for k, region in enumerate(partition.regions):
        _check_region(k, region, copied, graph, facts)
    _check_owners(partition)
    _check_refusals(partition, graph)
    _check_order(partition, graph, facts)


def _fail(message: str) -> GraphError:
    return GraphError(message, remedy=_REMEDY)


def _check_region(k: int, region: Region, copied: set[int], graph: RecordedGraph, facts: Facts) -> None:
    if list(region.nodes) != sorted(set(region.nodes)) or not set(region.shared) < set(region.nodes):
        raise _fail(f"Region {k}: its nodes {region.nodes} are not ascending, or {region.shared} are not some of them.")
    if region.subgraph.nodes != tuple(graph.nodes[i] for i in region.nodes):
        raise _fail(f"Region {k}: its calls are not the recording's nodes {region.nodes}.")
    if (region.inputs, region.outputs) != (region.subgraph.inputs, region.subgraph.outputs):
        raise _fail(f"Region {k}: its inputs and outputs are not its subgraph's.")
    for i in region.nodes:
        if facts.boundary[i] is not None:
            raise _fail(f"Region {k} holds node {i}, which no region may: {facts.boundary[i]}.")
        if i in region.shared and not (facts.view[i] or facts.repeatable(i)):
            raise _fail(f"Region {k} shares node {i}, {facts.op(i).op}, which may run only once.")
    missing = set(stored(facts, set(region.nodes), set(region.shared), copied)) - set(region.outputs)
    if missing:
        raise _fail(f"Region {k} does not store {sorted(missing)}, which others read.")
    if region.members or region.subgraph.bundle:
        _check_bundle(k, region)


def _check_bundle(k: int, region: Region) -> None:
    """A bundle is its members side by side; that no path leads between them outside, the order of steps shows."""
    members = region.members
    if region.subgraph.bundle != tuple(len(m.outputs) for m in members):
        raise _fail(f"Region {k}: its subgraph's parts are not the outputs of its members.")
    if region.outputs != tuple(name for m in members for name in m.outputs):
        raise _fail(f"Region {k}: its outputs are not those of its members.")
    if sorted(i for m in members for i in m.owned) != list(region.owned):
        raise _fail(f"Region {k}: its members do not own its calls, each one once.")
    if any(m.members for m in members):
        raise _fail(f"Region {k}: a member of a bundle is a bundle.")
    for member, part in zip(members, region.subgraph.parts, strict=True):
        made = {
            name for other in members if other is not member for node in other.subgraph.nodes for name in node.outputs
        }
        if not made.isdisjoint(member.inputs):
            raise _fail(f"Region {k}: a member reads {sorted(made & set(member.inputs))}, which another makes.")
        if not {name for node in part.nodes for name in node.outputs} <= set(member.subgraph.spec):
            raise _fail(f"Region {k}: a part of its subgraph has calls that the member it stands for has not.")


def _check_owners(partition: Partition) -> None:
    owner: dict[int, int] = {}
    for k, region in enumerate(partition.regions):
        for i in region.owned:
            if i in owner:
                raise _fail(f"The regions {owner[i]} and {k} both own node {i}.")
            owner[i] = k


def _check_refusals(partition: Partition, graph: RecordedGraph) -> None:
    inside = {i for region in partition.regions for i in region.nodes}
    refused = [i for i, _ in partition.refusals]
    if refused != sorted(set(refused)):
        raise _fail(f"The refusals {refused} are not ascending.")
    calls = {i for i, node in enumerate(graph.nodes) if isinstance(node, OpNode)}
    if inside & set(refused):
        raise _fail(f"The nodes {sorted(inside & set(refused))} are refused and in a region.")
    if inside | set(refused) != calls:
        raise _fail(f"The nodes {sorted(calls ^ (inside | set(refused)))} are neither in a region nor refused.")


def _check_order(partition: Partition, graph: RecordedGraph, facts: Facts) -> None:
    place = {step: k for k, step in enumerate(partition.order)}
    steps = {("region", k) for k in range(len(partition.regions))}
    if len(place) != len(partition.order) or not steps <= set(place):
        raise _fail("The order has a step twice, or lacks a region.")
    made = set(facts.graph.spec) - set(facts.dependence.producer)
    for kind, k in partition.order:
        node = graph.nodes[k] if kind == "node" else None
        reads = node.refs if node is not None else partition.regions[k].inputs
        late = [name for name in reads if name not in made and name in facts.dependence.producer]
        if late:
            raise _fail(f"The step {kind} {k} reads {late} before they are made.")
        made.update(o for o in (node.outputs if node else partition.regions[k].outputs) if isinstance(o, str))
    lost = facts.returned - made - (facts.returned - set(facts.dependence.producer))
    if lost:
        raise _fail(f"The outputs {sorted(lost)} are made by no step.")
    _check_effects(partition, facts, place)


def _check_effects(partition: Partition, facts: Facts, place: Mapping[Step, int]) -> None:
    """Side effects keep their order among themselves and to what reads the memory they write to."""
    steps: dict[int, list[Step]] = {i: [("node", i)] for i in range(len(facts.graph.nodes)) if ("node", i) in place}
    for k, region in enumerate(partition.regions):
        for i in region.owned:
            steps.setdefault(i, []).append(("region", k))
    for i, later in enumerate(facts.dependence.after):
        for j in set(later).difference(facts.dependence.users[i]):
            for before in steps.get(i, ()):
                for then in steps.get(j, ()):
                    if before != then and place[before] >= place[then]:
                        raise _fail(f"Node {i} runs after node {j}, which an effect or a size keeps behind it.")
    silent = [i for i, n in enumerate(facts.graph.nodes) if not isinstance(n, OpNode) and ("node", i) not in place]
    if silent:
        raise _fail(f"The order lacks the nodes {silent}, which are no operators.")
