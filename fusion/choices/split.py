"""The best split of a region that measured slower than eager: two regions that compute the same."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping

from fusion.partition import cost_model
from fusion.partition.node_facts import Facts
from fusion.partition.regions import Region, make_region


def splits(
    facts: Facts, region: Region, copied: Container[int], values: Mapping[str, int]
) -> Iterator[tuple[Region, Region]]:
    """Ways to cut a region in two, the most promising first; none for one operator.

    Matrix products come apart from what is computed of them: if a library computes them faster, the rest still is a
    kernel. A region that was merged falls apart into what it was merged from. Any other is cut where the least bytes
    cross: values that the first part would store for the second, and inputs that both would read. The first part never
    reads from the second, so that both can run where the region could.

    Args:
        facts: of the recording.
        region: of its partition.
        copied: calls that some region shares.
        values: size symbols' values.
    """
    for first, second in _cuts(facts, region, values):
        yield _part(facts, region, first, copied, region.parts), _part(facts, region, second, copied, region.parts)


def _cuts(facts: Facts, region: Region, values: Mapping[str, int]) -> Iterator[tuple[set[int], set[int]]]:
    """Owned nodes of the first and the second part."""
    owned = region.owned
    products = {i for i in owned if facts.multiplies(i)}
    if products and len(products) < len(owned):  # their operands are read from memory: they need nothing of the rest
        yield products, set(owned) - products
    if len(region.parts) > 1:
        early = {i for part in region.parts[: len(region.parts) // 2] for i in part}
        first = {i for i in owned if i in early}
        if first and len(first) < len(owned):
            yield first, set(owned) - first
    sizes = cost_model.Sizes(values)
    middle = len(owned) / 2
    places = range(1, len(owned))
    for k in sorted(places, key=lambda k: (_crossing(facts, region, owned[:k], sizes), abs(k - middle))):
        yield set(owned[:k]), set(owned[k:])


def _crossing(facts: Facts, region: Region, first: tuple[int, ...], sizes: cost_model.Sizes) -> int:
    """Bytes that a cut behind the nodes `first` adds."""
    spec, early = facts.graph.spec, set(first)
    reads: tuple[set[str], set[str]] = (set(), set())
    for i in region.owned:
        reads[i not in early].update(_memory(facts, region, i))
    made = {name for i in first for name in facts.op(i).outputs}
    stored = sum(sizes.bytes(spec[name]) for name in reads[1] & made)
    return 2 * stored + sum(sizes.bytes(spec[name]) for name in reads[0] & reads[1])


def _memory(facts: Facts, region: Region, i: int) -> Iterator[str]:
    """The values whose elements node `i` reads, through what the region shares."""
    shared, producer = set(region.shared), facts.dependence.producer
    waiting = list(facts.refs[i])
    while waiting:
        name = waiting.pop()
        maker = producer.get(name)
        if maker in shared:
            waiting += facts.refs[maker]
        else:
            yield name


def _part(
    facts: Facts, region: Region, owned: set[int], copied: Container[int], parts: tuple[tuple[int, ...], ...]
) -> Region:
    """The region of some of a region's own calls, with those it shares that they read."""
    shared = set(region.shared)
    nodes, waiting = set(owned), sorted(owned)
    while waiting:
        for source in facts.sources(waiting.pop()):
            if source in shared and source not in nodes:
                nodes.add(source)
                waiting.append(source)
    kept = tuple(part for part in parts if nodes.intersection(part) and nodes >= set(part) - shared)
    return make_region(facts, nodes, shared, copied, kept if len(kept) > 1 else ())
