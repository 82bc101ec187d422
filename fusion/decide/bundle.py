"""Small regions that need nothing of each other, over whatever indices, made one kernel: a launch is saved for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import cost
from .facts import Facts
from .merge import Group, Merging
from .regions import Region, bundled

_WINDOW = 8  # bundles of one device, the latest ones, that a region is tried with: keeps bundling linear


def bundle(facts: Facts, regions: Sequence[Region], reach: list[int], values: Mapping[str, int]) -> list[Region]:
    """Fewer regions that compute the same: small ones that run at once, as parts of one kernel.

    Two regions on one device are bundled where neither needs the other, directly or through what runs outside; where
    each does so little that its launch counts (`cost.is_launch_bound`); and where the kernel stays within the footprint
    of `cost`.

    Args:
        facts: of the recording.
        regions: in the order of their last calls.
        reach: for each node, a bit set of the nodes that depend on it, each region as one step; changed in place.
        values: size symbols' values.
    """
    merging = Merging(facts, reach, regions)
    open_bundles: dict[str, list[Group]] = {}
    groups: list[Group] = []
    for region in regions:
        mine = merging.alone(region)
        if not cost.is_launch_bound(region.subgraph, values):
            groups.append(mine)
            continue
        latest = open_bundles.setdefault(facts.graph.spec[region.outputs[0]].device, [])
        fitting = (g for g in latest[-1 : -_WINDOW - 1 : -1] if _fits(facts, g, region) and merging.are_apart(g, mine))
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


def _fits(facts: Facts, group: Group, region: Region) -> bool:
    """Whether the kernel keeps to the footprint, and neither makes what the other reads, not even for itself alone."""
    nodes = group.nodes.union(region.nodes)
    if sum(not facts.view[i] for i in nodes) > cost.MOST_OPERATORS:
        return False
    together = (*group.members, region)
    if len({name for r in together for name in (*r.inputs, *r.outputs)}) > cost.MOST_VALUES:
        return False
    return all(facts.dependence.producer.get(name) not in nodes for r in together for name in r.inputs)
