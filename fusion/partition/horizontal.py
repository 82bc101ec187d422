"""Small regions that need nothing of each other, over whatever indices, made one kernel: a launch is saved for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fusion.partition import cost_model
from fusion.partition.merge import Group, Merging
from fusion.partition.node_facts import Facts
from fusion.partition.reachability import Reach
from fusion.partition.regions import Region, bundled

_WINDOW = 8  # bundles of one device, the latest ones, that a region is tried with: keeps bundling linear


def bundle(facts: Facts, regions: Sequence[Region], reach: Reach, values: Mapping[str, int]) -> list[Region]:
    """Fewer regions that compute the same: small ones that run at once, as parts of one kernel.

    Two regions on one device are bundled where neither needs the other, directly or through what runs outside; where
    each does so little that its launch counts (`cost_model.is_launch_bound`); and where the kernel stays within the
    footprint of `cost_model`.

    Args:
        facts: of the recording.
        regions: in the order of their last calls.
        reach: what depends on what, each region as one step; changed in place.
        values: size symbols' values.
    """
    merging = Merging(facts, reach)
    open_bundles: dict[str, list[Group]] = {}
    groups: list[Group] = []
    for region in regions:
        mine = merging.alone(region)
        if not cost_model.is_launch_bound(region.subgraph, values):
            groups.append(mine)
            continue
        latest = open_bundles.setdefault(facts.graph.spec[region.outputs[0]].device, [])
        fitting = (g for g in latest[-1 : -_WINDOW - 1 : -1] if _fits(facts, g, mine) and merging.are_apart(g, mine))
        joined = next(fitting, None)
        if joined is None:
            groups.append(mine)
            latest.append(mine)
        else:
            merging.add(joined, mine, [*joined.members, region])
            latest.remove(joined)
            latest.append(joined)
    made = [bundled(facts, group.members) if len(group.members) > 1 else group.members[0] for group in groups]
    return sorted(made, key=lambda region: region.nodes[-1])


def _fits(facts: Facts, group: Group, mine: Group) -> bool:
    """Whether the kernel keeps to the footprint, and neither makes what the other reads, not even for itself alone."""
    operators, values = group.footprint_with(mine)
    if operators > cost_model.MOST_OPERATORS or values > cost_model.MOST_VALUES:
        return False
    producer = facts.dependence.producer
    inputs = (name for r in (*group.members, *mine.members) for name in r.inputs)
    return all((maker := producer.get(name)) not in group.nodes and maker not in mine.nodes for name in inputs)
