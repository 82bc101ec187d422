"""Regions over one iteration space made one kernel: those that read each other, and those with nothing in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from fusion.partition import cost_model
from fusion.partition.legality import Legality
from fusion.partition.node_facts import Extents, Facts
from fusion.partition.reachability import Reach
from fusion.partition.regions import Region, make_region

_WINDOW = 8  # groups of one space, the latest ones, that a region is tried with: keeps merging linear


@dataclass
class Group:
    """Regions that may become one kernel.

    Attributes:
        members: the regions, in an order they could run in.
        nodes: all their nodes.
        computing: those of `nodes` that are no views.
        owned: those of `nodes` that no one else runs.
        needs: the nodes they depend on directly and do not hold.
        values: names of the inputs and outputs of the members.
    """

    members: list[Region]
    nodes: set[int]
    computing: set[int]
    owned: set[int]
    needs: set[int]
    values: set[str]

    def footprint_with(self, other: Group) -> tuple[int, int]:
        """Operators that compute, and values read or written, of both groups together."""
        return len(self.computing | other.computing), len(self.values | other.values)

    def products(self, facts: Facts) -> set[int]:
        """Its matrix products."""
        return {i for i in self.computing if facts.multiplies(i)}


def merge(
    facts: Facts,
    regions: Sequence[tuple[Region, Extents]],
    reach: Reach,
    legality: Legality,
) -> list[Region]:
    """Fewer regions that compute the same.

    Two regions over one space on one device are merged where no path leads from one through calls outside to the
    other, and the kernel stays within the footprint of `cost_model`: a launch is saved, what both read is read once,
    and what one makes for the other alone is never stored.

    Args:
        facts: of the recording.
        regions: with the iteration space of each.
        reach: what depends on what, each region as one step; changed in place.
        legality: tells whether a region is one kernel.
    """
    merging = Merging(facts, reach)
    open_groups: dict[tuple[str, Extents], list[Group]] = {}
    groups: list[Group] = []
    for region, space in sorted(regions, key=lambda pair: pair[0].nodes[-1]):
        alike = open_groups.setdefault((facts.graph.spec[region.outputs[0]].device, space), [])
        joined = merging.join(region, space, alike[-1 : -_WINDOW - 1 : -1])
        if joined is None:
            joined = merging.alone(region)
            groups.append(joined)
        else:
            alike.remove(joined)
        alike.append(joined)
    copies = Counter(i for region, _ in regions for i in region.shared)
    made: list[Region] = []
    for group in groups:
        kernels = _kernels(facts, group.members, copies, legality)
        if len(kernels) > 1:
            reach.divide([region.owned for region in kernels])
        made += kernels
    return sorted(made, key=lambda region: region.nodes[-1])


def _kernels(facts: Facts, members: list[Region], copies: Counter[int], legality: Legality) -> list[Region]:
    """The members as one region where that is legal, else the halves; a half of a legal order is a legal order."""
    if len(members) == 1:
        return members
    nodes = {i for region in members for i in region.nodes}
    owned = {i for region in members for i in region.owned}
    own = Counter(i for region in members for i in region.shared)
    elsewhere = {i for i in nodes if copies[i] > own[i]}
    whole = make_region(facts, nodes, nodes - owned, elsewhere, tuple(region.nodes for region in members))
    if legality(whole) is None:
        return [whole]
    half = len(members) // 2
    return _kernels(facts, members[:half], copies, legality) + _kernels(facts, members[half:], copies, legality)


class Merging:
    """Which regions may be joined, and what reaches what once they are.

    Args:
        facts: of the recording.
        reach: what depends on what, each region as one step; changed in place.
    """

    def __init__(self, facts: Facts, reach: Reach) -> None:
        self.facts = facts
        self.reach = reach

    def alone(self, region: Region) -> Group:
        """A group of one."""
        facts, nodes = self.facts, set(region.nodes)
        needs = {p for i in region.nodes for p in facts.before[i]} - nodes
        computing = {i for i in region.nodes if not facts.view[i]}
        return Group([region], nodes, computing, set(region.owned), needs, {*region.inputs, *region.outputs})

    def join(self, region: Region, space: Extents, groups: Sequence[Group]) -> Group | None:
        """The group that `region` was added to: one it shares values with before others; None where none will do."""
        mine = self.alone(region)
        related = [g for g in groups if not (mine.needs.isdisjoint(g.owned) and mine.needs.isdisjoint(g.needs))]
        for group in (*related, *(g for g in groups if g not in related)):
            if not self._fits(group, mine, space):
                continue
            if self.may_follow(group, mine):
                self.add(group, mine, [*group.members, region])
                return group
            if self.may_follow(mine, group):
                self.add(group, mine, [region, *group.members])
                return group
        return None

    def _fits(self, group: Group, mine: Group, space: Extents) -> bool:
        operators, values = group.footprint_with(mine)
        if operators > cost_model.MOST_OPERATORS or values > cost_model.MOST_VALUES:
            return False
        if not self._may_multiply(group, mine):
            return False
        outputs = (o for r in (*group.members, *mine.members) for o in r.outputs)
        whole = [o for o in outputs if self.facts.extents(o) == space]
        return all(self.facts.together(whole[0], name) for name in whole[1:])

    def _may_multiply(self, group: Group, mine: Group) -> bool:
        """Whether matrix products of two groups may be in one kernel: those of one activation, and nothing by rows."""
        facts = self.facts
        products = group.products(facts), mine.products(facts)
        if not any(products):
            return True
        if any(facts.rowwise(i) for i in group.computing | mine.computing):
            return False
        if len(products[0] | products[1]) > cost_model.MOST_PRODUCTS:
            return False
        first, second = ({name for i in some for name in facts.refs[i]} for some in products)
        return not all(products) or not first.isdisjoint(second)

    def may_follow(self, first: Group, second: Group) -> bool:
        """Whether nothing outside that `second` depends on depends on `first`, nor `first` on `second`."""
        return not self._reaches(second, first) and not self._leads_around(first, second)

    def are_apart(self, first: Group, second: Group) -> bool:
        """Whether neither group needs the other, directly or through what runs outside of both.

        What both compute for themselves binds neither to the other.
        """
        if not (first.needs.isdisjoint(second.owned) and second.needs.isdisjoint(first.owned)):
            return False
        return not self._leads_around(first, second) and not self._leads_around(second, first)

    def _reaches(self, first: Group, second: Group) -> bool:
        """Whether a call that `second` owns depends on one that `first` owns."""
        return bool(self.reach[min(first.owned)] & self.reach.step(min(second.owned)))

    def _leads_around(self, first: Group, second: Group) -> bool:
        """Whether something outside of both that `second` depends on depends on `first`."""
        reached = self.reach[min(first.owned)]
        return any(reached & self.reach.step(p) for p in second.needs if p not in first.owned)

    def add(self, group: Group, other: Group, members: list[Region]) -> None:
        """Makes `group` the `members` of itself and `other`, in an order they could run in."""
        self.reach.join((min(group.owned), min(other.owned)))
        group.members = members
        group.nodes |= other.nodes
        group.computing |= other.computing
        group.owned |= other.owned
        group.needs = (group.needs | other.needs) - group.nodes
        group.values |= other.values
