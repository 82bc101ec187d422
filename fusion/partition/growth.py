"""Growing one region from its last call towards the calls it reads: what is legal, and what is worth repeating."""

from __future__ import annotations

import heapq
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from fusion.partition import cost_model
from fusion.partition.node_facts import Extents, Facts, No
from fusion.partition.reachability import Reach


@dataclass
class Growth:
    """A region while it grows.

    Attributes:
        space: the iteration space of its outputs.
        device: of all its values.
        elements: of its iteration space, at the recorded sizes.
        nodes: its nodes, shared ones included.
        shared: those that are computed for this region alone: views, and calls worth repeating.
        mask: the same as `nodes`, as a bit set.
        repeated: nodes whose value is read more than once per element.
        leaks: for each node that is computed elsewhere too, the nodes outside that read it, directly or through other
            such nodes.
        returned: shared nodes that the recording hands back, as they are or through other shared nodes.
        operators: how many of its nodes compute.
        operations: simple operations per element.
        products: how many of its nodes are matrix products.
        rowwise: whether one of its nodes reads elements at other places than its own.
        operands: nodes whose values its products read, directly or through views.
        lead: an output over the whole space, which the other such outputs have to be stored beside.
    """

    space: Extents
    device: str
    elements: int
    nodes: set[int] = field(default_factory=set)
    shared: set[int] = field(default_factory=set)
    mask: int = 0
    repeated: set[int] = field(default_factory=set)
    leaks: dict[int, set[int]] = field(default_factory=dict)
    returned: set[int] = field(default_factory=set)
    operators: int = 0
    operations: int = 0
    products: int = 0
    rowwise: bool = False
    operands: set[int] = field(default_factory=set)
    lead: str | None = None

    def add(self, i: int, facts: Facts) -> None:
        """Takes node `i` in."""
        self.nodes.add(i)
        self.mask |= 1 << i
        self.operators += not facts.view[i]
        self.operations += cost_model.weight(facts.op(i), facts.graph.spec)
        self.products += facts.multiplies(i)
        self.rowwise |= facts.rowwise(i)
        if facts.multiplies(i) or (facts.view[i] and i in self.operands):
            self.operands.update(facts.sources(i))


class Grower:
    """Grows regions over one recording.

    Args:
        facts: of the recording.
        sizes: sizes in the recorded call.
        taken: nodes that other regions own; the caller adds to it.
        refused: nodes that stay outside; the caller adds to it.
        holders: for nodes that regions hold, of their own or shared, the nodes of each such region; the caller adds.
        reach: what depends on what, each region as one step; the caller keeps it.
    """

    def __init__(
        self,
        facts: Facts,
        sizes: cost_model.Sizes,
        taken: Collection[int],
        refused: Mapping[int, No],
        holders: Mapping[int, Sequence[Collection[int]]],
        reach: Reach,
    ) -> None:
        self.facts = facts
        self.sizes = sizes
        self.taken = taken
        self.refused = refused
        self.holders = holders
        self.reach = reach
        self.declined: dict[int, No] = {}  # why a call was not taken into a region that reads it

    def grow(self, last: int, *, further_outputs: bool) -> Growth:
        """The region that ends in node `last`.

        Args:
            last: a node that computes.
            further_outputs: whether a value that is read outside too may be stored by the region.
        """
        facts = self.facts
        spec = facts.graph.spec[facts.op(last).outputs[0]]
        grown = Growth(facts.space(last), spec.device, self._elements(last))
        if facts.made(last) == grown.space:
            grown.lead = facts.op(last).outputs[0]
        queue: list[int] = []
        queued: set[int] = set()

        def take(i: int) -> None:
            if i in self.holders:  # a copy of it reads what it reads
                grown.leaks[i] = self._readers_outside(i, grown)
            grown.add(i, facts)
            for source in facts.sources(i):
                if source not in queued:
                    queued.add(source)
                    heapq.heappush(queue, -source)

        def share(i: int) -> None:
            grown.shared.add(i)
            grown.leaks[i] = self._readers_outside(i, grown)
            if self._is_returned(i, grown):
                grown.returned.add(i)
            take(i)

        take(last)
        while queue:  # the latest first: all of a call's readers are decided on before the call itself
            i = -heapq.heappop(queue)
            if facts.boundary[i] is not None or i in self.taken:
                continue
            if self._is_repeated(i, grown):
                grown.repeated.add(i)
            if facts.view[i]:
                share(i)
                continue
            no = self._product_declines(i, grown) or self._decline(i, grown, further_outputs)
            if (no or facts.creates(i) or i in self.holders) and self._worth_sharing(i, grown):
                share(i)
                continue
            if no is not None:
                self.declined.setdefault(i, no)
                continue
            if facts.reduces(i) and len(facts.space(i)) > len(grown.space):
                grown.space, grown.elements, grown.lead = facts.space(i), self._elements(i), None
            if facts.made(i) == grown.space and grown.lead is None and self._is_stored(i, grown):
                grown.lead = facts.op(i).outputs[0]
            take(i)
        return grown

    def _elements(self, i: int) -> int:
        name = self.facts.refs[i][0] if self.facts.reduces(i) else self.facts.op(i).outputs[0]
        return self.sizes.elements(self.facts.graph.spec[name].shape)

    # ---- legality

    def _is_repeated(self, i: int, grown: Growth) -> bool:
        readers = (u for u in self.facts.dependence.users[i] if u in grown.nodes)
        return any(
            self.facts.broadcasts(i, by=u) or (u in grown.repeated and not self.facts.reduces(u)) for u in readers
        )

    def _readers_outside(self, i: int, grown: Growth) -> set[int]:
        readers = {u for u in self.facts.dependence.users[i] if u not in grown.nodes}
        for u in self.facts.dependence.users[i]:
            readers |= grown.leaks.get(u, set())
        return readers

    def _product_declines(self, i: int, grown: Growth) -> No | None:
        """Why call `i` is not taken in because of a region's matrix products, or as one; None where it may be."""
        facts, op = self.facts, self.facts.op(i).op
        if i in grown.operands:
            return "operand", f"the matrix product that reads the result of {op} reads it from memory"
        if facts.multiplies(i):
            if grown.rowwise or facts.made(i) != grown.space:
                return "reduction_in_column", f"the result of {op} would be summed again where the region reads it"
            if grown.products >= cost_model.MOST_PRODUCTS:
                return "footprint", f"the region that reads {op} has as many matrix products as a kernel holds"
        elif grown.products and facts.rowwise(i):
            return "reduction_in_column", f"{op} is read by a region that has matrix products, element by element"
        return None

    def _decline(self, i: int, grown: Growth, further_outputs: bool) -> No | None:
        """Why call `i`, whose result the region reads, is not taken into it; None where it may be."""
        facts = self.facts
        op = facts.op(i).op
        if facts.graph.spec[facts.op(i).outputs[0]].device != grown.device:
            return "device", f"{op} runs on another device than the region that reads it"
        if grown.operators >= cost_model.MOST_OPERATORS:
            return "footprint", f"the region that reads {op} has {grown.operators} operators, the most one kernel holds"
        readers = self._readers_outside(i, grown)
        blocking = readers.union(u for u in facts.dependence.after[i] if u not in grown.nodes)
        if any(self.reach[u] & grown.mask for u in blocking):
            return "not_convex", f"a path leads from {op} through calls outside back into the region"
        per_row = self._is_per_row(i, grown)
        if i in grown.repeated and not per_row and not self._cheap_to_repeat(i, grown):
            return "broadcast_recompute", f"the result of {op} would be computed again for all it is broadcast to"
        if not self._is_stored(i, grown):
            return None
        if not further_outputs:
            return "different_domain", f"the result of {op} is read outside too; the kernel cannot hand it back"
        return self._unstorable(i, grown, per_row)

    def _unstorable(self, i: int, grown: Growth, per_row: bool) -> No | None:
        """Why the region cannot store what call `i` makes beside its other outputs; None where it can."""
        facts = self.facts
        op, name = facts.op(i).op, facts.op(i).outputs[0]
        if facts.layout(name) is None:
            return "output_layout", f"the result of {op} is read outside too, and is dense in no order"
        if facts.made(i) != grown.space and not (grown.lead is not None and facts.reshaped(grown.lead, name)):
            no = "different_domain", f"the result of {op} is read outside too, and runs over other indices"
            return None if per_row else no
        if facts.made(i) == grown.space and grown.lead is not None and not facts.together(grown.lead, name):
            return (
                "different_domain",
                f"the result of {op} is read outside too, and has its dimensions in another order",
            )
        return None

    def _is_stored(self, i: int, grown: Growth) -> bool:
        """Whether the region has to store what node `i` makes."""
        return bool(self._readers_outside(i, grown)) or self._is_returned(i, grown)

    def _is_returned(self, i: int, grown: Growth) -> bool:
        """Whether the recording hands back what node `i` makes, as it is or through shared nodes."""
        return i in self.facts.dependence.returned or any(u in grown.returned for u in self.facts.dependence.users[i])

    def _is_per_row(self, i: int, grown: Growth) -> bool:
        """Whether node `i` has one value per row of the region, made by a reduction that can be taken in."""
        rows, source = self.facts.rows(i), self.facts.row_source[i]
        if rows is None or source is None or source in self.taken:
            return False
        across = _without(grown.space, rows)
        reduced = len(self.facts.space(source)) - len(rows)
        return across is not None and len(across) in (0, reduced)

    # ---- profit

    def _cheap_to_repeat(self, i: int, grown: Growth) -> bool:
        """Whether computing call `i` for every element of the region costs less than a kernel that stores it.

        Arithmetic hides behind the region's own memory traffic: the elements it reads and writes.
        """
        facts = self.facts
        if not facts.repeatable(i) or facts.row_source[i] is not None:
            return False
        device = cost_model.device(grown.device)
        spec = facts.graph.spec
        busy = 2 * grown.elements * spec[facts.op(i).outputs[0]].dtype.itemsize / device.bytes_per_us
        operations = grown.operations + cost_model.weight(facts.op(i), spec)
        recompute = max(0.0, grown.elements * operations / device.operations_per_us - busy)
        written = 2 * self.sizes.bytes(spec[facts.op(i).outputs[0]]) / device.bytes_per_us
        return recompute <= device.kernel_us + written

    def _worth_sharing(self, i: int, grown: Growth) -> bool:
        """Whether the region computes call `i` for itself alone, though others compute it too.

        Yes where it reads no memory (`arange`). Otherwise every other reader has to be able to compute it too, so that
        the call itself is dropped, and computing it must not read more bytes than loading its result.
        """
        facts, spec = self.facts, self.facts.graph.spec
        if spec[facts.op(i).outputs[0]].device != grown.device or not facts.repeatable(i):
            return False
        if grown.operators >= cost_model.MOST_OPERATORS or not self._cheap_to_repeat(i, grown):
            return False
        if i in grown.operands:
            return False
        if facts.creates(i):
            return True
        if self._is_returned(i, grown) or any(not self._could_share(u) for u in self._readers_outside(i, grown)):
            return False
        read = sum(self.sizes.bytes(spec[name]) for name in dict.fromkeys(facts.refs[i]))
        return read <= self.sizes.bytes(spec[facts.op(i).outputs[0]])

    def _could_share(self, reader: int) -> bool:
        """Whether a node may end in a kernel, which can compute what it reads for itself."""
        facts = self.facts
        if facts.boundary[reader] is not None or reader in self.refused:
            return False
        if not facts.view[reader]:
            return True
        return reader not in facts.dependence.returned and all(map(self._could_share, facts.dependence.users[reader]))


def _without(space: Extents, rows: Extents) -> Extents | None:
    """The extents of `space` but for those of `rows`; None where it lacks one."""
    left = list(space)
    for extent in rows:
        if extent not in left:
            return None
        left.remove(extent)
    return tuple(left)
