"""The order of a partition's steps, against networkx."""

from __future__ import annotations

import random

import networkx
import pytest
from partitions import chain, tangled

from fusion.partition.dependence import Step, _sorted, schedule
from fusion.partition.node_facts import Facts
from fusion.partition.partitioner import partition
from fusion.partition.regions import Partition, make_region
from fusion.patterns.errors import GraphError


@pytest.mark.parametrize("seed", range(20))
def test_steps_are_sorted_as_networkx_sorts_them(seed: int) -> None:
    draw = random.Random(seed)
    steps: list[Step] = [(draw.choice(("node", "region")), k) for k in range(40)]
    place = {step: draw.randrange(30) for step in steps}  # some alike
    following: dict[Step, set[Step]] = {step: set() for step in steps}
    for _ in range(60):
        one, other = sorted(draw.sample(range(40), 2))
        following[steps[one]].add(steps[other])
    flow = networkx.DiGraph(following)
    wanted = networkx.lexicographical_topological_sort(flow, key=lambda step: (place[step], step))
    assert _sorted(steps, following, place) == tuple(wanted)


def contracted(facts: Facts, parts: Partition) -> networkx.DiGraph:
    """What must run before what, each region one node."""
    holders: dict[int, list[Step]] = {i: [("node", i)] for i in range(len(facts.graph.nodes))}
    for k, region in enumerate(parts.regions):
        for i in region.owned:
            holders[i] = [("region", k)]
        for i in region.shared:
            holders[i].append(("region", k))
    flow = networkx.DiGraph()
    for i, later in enumerate(facts.dependence.after):
        for j in later:
            flow.add_edges_from((holders[i][0], step) for step in holders[j] if step not in holders[i])
    return flow


@pytest.mark.parametrize("seed", range(12))
def test_regions_are_convex(seed: int) -> None:
    graph = tangled(300, seed)
    parts = partition(graph, values={"s0": 2, "s1": 9})
    flow = contracted(Facts(graph), parts)
    assert networkx.is_directed_acyclic_graph(flow), networkx.find_cycle(flow)
    place = {step: k for k, step in enumerate(parts.order)}
    assert all(place[one] < place[other] for one, other in flow.edges if one in place and other in place)
    assert len(parts.regions) > 5


def test_a_region_that_is_left_and_entered_again_is_named() -> None:
    graph = chain(4)
    facts = Facts(graph)
    around = make_region(facts, {0, 2}, (), ())
    with pytest.raises(GraphError, match="in a circle: region 0 -> node 1 -> region 0"):
        schedule(graph, [around])
    assert schedule(graph, [make_region(facts, {1, 2}, (), ())]) == (("node", 0), ("region", 0), ("node", 3))
