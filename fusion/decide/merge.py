"""Regions over one iteration space made one kernel: those that read each other, and those with nothing in common."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from . import cost
from .facts import Extents, Facts
from .regions import Region, make_region

_WINDOW = 8  # groups of one space, the latest ones, that a region is tried with: keeps merging linear


@dataclass
class Group:
    """Regions that may become one kernel.

    Attributes:
        members: the regions, in an order they could run in.
        nodes: all their nodes.
        owned: bit set of those that no one else runs.
        needs: bit set of the nodes they depend on directly and do not hold.
    """

    members: list[Region]
    nodes: set[int]
    owned: int
    needs: int


def merge(
    facts: Facts,
    regions: Sequence[tuple[Region, Extents]],
    reach: list[int],
    legal: Callable[[Region], bool],
) -> list[Region]:
    """Fewer regions that compute the same.

    Two regions over one space on one device are merged where no path leads from one through calls outside to the
    other, and the kernel stays within the footprint of `cost`: a launch is saved, what both read is read once, and
    what one makes for the other alone is never stored.

    Args:
        facts: of the recording.
        regions: with the iteration space of each.
        reach: for each node, a bit set of the nodes that depend on it, each region as one step; changed in place.
        legal: whether a region is one kernel.
    """
    merging = Merging(facts, reach, [region for region, _ in regions])
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
    made = [region for group in groups for region in _kernels(facts, group.members, copies, legal)]
    return sorted(made, key=lambda region: region.nodes[-1])


def _kernels(
    facts: Facts, members: list[Region], copies: Counter[int], legal: Callable[[Region], bool]
) -> list[Region]:
    """The members as one region where that is legal, else the halves; a half of a legal order is a legal order."""
    if len(members) == 1:
        return members
    nodes = {i for region in members for i in region.nodes}
    owned = {i for region in members for i in region.owned}
    elsewhere = copies - Counter(i for region in members for i in region.shared)
    whole = make_region(facts, nodes, nodes - owned, elsewhere, tuple(region.nodes for region in members))
    if legal(whole):
        return [whole]
    half = len(members) // 2
    return _kernels(facts, members[:half], copies, legal) + _kernels(facts, members[half:], copies, legal)


def spread(reach: list[int], together: Iterable[int], bits: int, reached: int) -> None:
    """Makes what reaches one of some nodes that run together reach all that they reach.

    Args:
        reach: for each node, a bit set of the nodes that depend on it; changed.
        together: the nodes.
        bits: the same as a bit set.
        reached: what they reach together.
    """
    for i in [i for i, later in enumerate(reach) if later & bits]:
        reach[i] |= reached
    for i in together:
        reach[i] |= reached


class Merging:
    """Which regions reach which, as they are joined.

    Args:
        facts: of the recording.
        reach: for each node, a bit set of the nodes that depend on it, each region as one step; changed in place.
        regions: all of them.
    """

    def __init__(self, facts: Facts, reach: list[int], regions: Sequence[Region]) -> None:
        self.facts = facts
        self.reach = reach
        self.step: dict[int, int] = {}  # for each owned node, the bit set of the nodes it runs with
        for region in regions:
            self._run_together(region.owned, _bits(region.owned))

    def _run_together(self, owned: Sequence[int], bits: int) -> None:
        self.step.update(dict.fromkeys(owned, bits))

    def alone(self, region: Region) -> Group:
        """A group of one."""
        needs = {p for i in region.nodes for p in self.facts.before[i]} - set(region.nodes)
        return Group([region], set(region.nodes), _bits(region.owned), _bits(needs))

    def join(self, region: Region, space: Extents, groups: Sequence[Group]) -> Group | None:
        """The group that `region` was added to: one it shares values with before others; None where none will do."""
        mine = self.alone(region)
        related = [g for g in groups if g.owned & mine.needs or g.needs & mine.needs]
        for group in (*related, *(g for g in groups if g not in related)):
            if not self._fits(group, region, space):
                continue
            if self.may_follow(group, mine):
                self.add(group, mine, [*group.members, region])
                return group
            if self.may_follow(mine, group):
                self.add(group, mine, [region, *group.members])
                return group
        return None

    def _fits(self, group: Group, region: Region, space: Extents) -> bool:
        computing = sum(not self.facts.view[i] for i in group.nodes.union(region.nodes))
        if computing > cost.MOST_OPERATORS:
            return False
        values = {name for r in (*group.members, region) for name in (*r.inputs, *r.outputs)}
        if len(values) > cost.MOST_VALUES:
            return False
        whole = [o for r in (*group.members, region) for o in r.outputs if self.facts.extents(o) == space]
        return all(self.facts.together(whole[0], name) for name in whole[1:])

    def may_follow(self, first: Group, second: Group) -> bool:
        """Whether nothing outside that `second` depends on depends on `first`, nor `first` on `second`."""
        return not self._reached(second) & first.owned and not self._leads_around(first, second)

    def are_apart(self, first: Group, second: Group) -> bool:
        """Whether neither group needs the other, directly or through what runs outside of both.

        What both compute for themselves binds neither to the other.
        """
        if first.needs & second.owned or second.needs & first.owned:
            return False
        return not self._leads_around(first, second) and not self._leads_around(second, first)

    def _leads_around(self, first: Group, second: Group) -> bool:
        """Whether something outside of both that `second` depends on depends on `first`."""
        reached = self._reached(first)
        return any(reached & self.step.get(p, 1 << p) for p in _ones(second.needs & ~first.owned))

    def _reached(self, group: Group) -> int:
        bits = 0
        for i in _ones(group.owned):
            bits |= self.reach[i]
        return bits

    def add(self, group: Group, other: Group, members: list[Region]) -> None:
        """Makes `group` the `members` of itself and `other`, in an order they could run in."""
        owned = group.owned | other.owned
        first, second = self._reached(group), self._reached(other)
        if (first ^ second) & ~owned:  # what reached one of them reaches now what the other reaches
            reached = first | second
            spread(self.reach, _ones(owned), owned, reached)
        group.members = members
        group.nodes |= other.nodes
        group.owned = owned
        group.needs = (group.needs | other.needs) & ~_bits(group.nodes)
        self._run_together([i for r in group.members for i in r.owned], owned)


def _bits(numbers: Iterable[int]) -> int:
    bits = 0
    for i in numbers:
        bits |= 1 << i
    return bits


def _ones(bits: int) -> list[int]:
    """The positions of the ones in a bit set."""
    found = []
    while bits:
        low = bits & -bits
        found.append(low.bit_length() - 1)
        bits ^= low
    return found
