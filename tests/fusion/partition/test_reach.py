"""Which nodes depend on which while groups of them become one step: against a search over the joined graph."""

from __future__ import annotations

import random

import pytest
from partitions import tangled

from fusion.partition.node_facts import Facts
from fusion.partition.reachability import Reach


def searched(facts: Facts, steps: list[set[int]], start: int) -> set[int]:
    """The nodes that depend on `start` where each of `steps` runs at once."""
    together = {i: step for step in steps for i in step}
    found: set[int] = set()
    waiting = list(together.get(start, {start}))
    while waiting:
        for later in facts.dependence.after[waiting.pop()]:
            if later not in found:
                found.add(later)
                waiting += together.get(later, {later})
    return found - together.get(start, set())


def whole(steps: list[set[int]], nodes: set[int]) -> set[int]:
    """The nodes with all that they run with: of a step that depends on a node, one bit is enough."""
    return nodes.union(*(step for step in steps if not step.isdisjoint(nodes)))


def is_convex(facts: Facts, steps: list[set[int]], group: set[int]) -> bool:
    """Whether no path leads from the group through other steps back into it."""
    outside = {j for i in group for j in facts.dependence.after[i]} - group
    return all(searched(facts, [s for s in steps if s.isdisjoint(group)], i).isdisjoint(group) for i in outside)


@pytest.mark.parametrize("seed", range(12))
def test_joined_nodes_reach_what_a_search_finds(seed: int) -> None:
    facts = Facts(tangled(50, seed, back=(3, 8)[seed % 2]))
    draw, reach = random.Random(seed), Reach(facts)
    steps: list[set[int]] = []
    joined = 0
    for _ in range(60):
        one, other = draw.sample(range(len(facts.before)), 2)
        group = {one, other}.union(*(step for step in steps if not step.isdisjoint({one, other})))
        if not is_convex(facts, steps, group):
            continue
        reach.join((one, other))
        steps = [step for step in steps if step.isdisjoint(group)] + [group]
        joined += 1
        for i in range(len(facts.before)):
            step = next((s for s in steps if i in s), {i})
            assert reach.step(i) == sum(1 << k for k in step)
            bits = {k for k in range(len(facts.before)) if reach[i] >> k & 1}
            assert whole(steps, bits) - step == whole(steps, searched(facts, steps, i)) - step
    assert joined > 5
