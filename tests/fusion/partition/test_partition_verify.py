"""The verifier of partitions: a good one passes, and each way of being malformed is named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from partitions import ROWS, WIDTH, Store, divided, tensor

from fusion.partition.node_facts import Facts
from fusion.partition.regions import Partition, make_region
from fusion.partition.verify import verify
from fusion.patterns.errors import GraphError
from fusion.patterns.leaves import Ref
from fusion.patterns.recorded import RecordedGraph


def program(x: torch.Tensor, w: torch.Tensor) -> Any:
    """Nodes: 0 mul, 1 softmax, 2 linear, 3 add, 4 relu; regions {0, 1} and {3, 4}."""
    y = (x * 2).softmax(-1)
    return (torch.nn.functional.linear(y, w) + y).relu()


def good() -> tuple[RecordedGraph, Partition]:
    graph, parts = divided(program, tensor(ROWS, WIDTH), tensor(WIDTH, WIDTH))
    assert [r.nodes for r in parts.regions] == [(0, 1), (3, 4)]
    return graph, parts


def with_region(parts: Partition, k: int, **changes: Any) -> Partition:
    regions = list(parts.regions)
    regions[k] = replace(regions[k], **changes)
    return replace(parts, regions=tuple(regions))


def made(graph: RecordedGraph, parts: Partition, *groups: set[int], shared: tuple[int, ...] = ()) -> Partition:
    """The partition with regions of `groups` and everything else as it was."""
    facts = Facts(graph)
    return replace(parts, regions=tuple(make_region(facts, g, shared, ()) for g in groups))


def without_store(graph: RecordedGraph, parts: Partition) -> Partition:
    first = parts.regions[0]
    silent = replace(first.subgraph, outputs=(first.subgraph.nodes[0].outputs[0],))
    return with_region(parts, 0, subgraph=silent, outputs=silent.outputs)


BREAKS: dict[str, Callable[[RecordedGraph, Partition], Partition]] = {
    "not ascending": lambda g, p: with_region(p, 0, nodes=(1, 0)),
    "are not some of them": lambda g, p: with_region(p, 0, shared=(3,)),
    "are not the recording's nodes": lambda g, p: with_region(p, 0, nodes=(0, 3)),
    "not its subgraph's": lambda g, p: with_region(p, 0, inputs=("x1",)),
    "which no region may": lambda g, p: made(g, p, {0, 1}, {2, 3, 4}),
    "may run only once": lambda g, p: made(g, p, {0, 1, 3, 4}, shared=(1,)),
    "does not store": without_store,
    "both own": lambda g, p: made(g, p, {0, 1}, {0, 1, 3, 4}),
    "refusals .* not ascending": lambda g, p: replace(p, refusals=p.refusals * 2),
    "refused and in a region": lambda g, p: replace(p, refusals=((0, p.refusals[0][1]), *p.refusals)),
    "neither in a region nor refused": lambda g, p: replace(p, refusals=()),
    "a step twice": lambda g, p: replace(p, order=p.order * 2),
    "lacks a region": lambda g, p: replace(p, order=p.order[:-1]),
    "before they are made": lambda g, p: replace(p, order=p.order[::-1]),
}


def bundled(x: torch.Tensor, y: torch.Tensor) -> Any:
    """Nodes: 0 mul, 1 relu, 2 add, 3 tanh; one region, a bundle of {0, 1} and {2, 3}."""
    return (x * 2).relu(), (y + 1).tanh()


def swapped(parts: Partition) -> Partition:
    return with_region(parts, 0, members=parts.regions[0].members[::-1])


def with_member(parts: Partition, k: int, **changes: Any) -> Partition:
    members = list(parts.regions[0].members)
    members[k] = replace(members[k], **changes)
    return with_region(parts, 0, members=tuple(members))


def with_division(parts: Partition, *bundle: int) -> Partition:
    subgraph = replace(parts.regions[0].subgraph, bundle=bundle)
    return with_region(parts, 0, subgraph=subgraph)


BUNDLE_BREAKS: dict[str, Callable[[Partition], Partition]] = {
    "parts are not the outputs of its members": lambda p: with_division(p),
    "outputs are not those of its members": swapped,
    "do not own its calls": lambda p: with_member(p, 0, shared=(0,)),
    "a member of a bundle is a bundle": lambda p: with_member(p, 0, members=p.regions[0].members),
    "which another makes": lambda p: with_member(p, 1, inputs=("y0", *p.regions[0].members[0].outputs)),
    "calls that the member it stands for has not": lambda p: with_member(
        p, 0, subgraph=p.regions[0].members[1].subgraph
    ),
}


@pytest.mark.parametrize("message", BUNDLE_BREAKS)
def test_each_mistake_of_a_bundle_is_named(message: str) -> None:
    graph, parts = divided(bundled, tensor(ROWS, WIDTH), tensor(ROWS, 2 * WIDTH))
    assert [m.nodes for m in parts.regions[0].members] == [(0, 1), (2, 3)]
    verify(parts, graph)
    with pytest.raises(GraphError, match=message):
        verify(BUNDLE_BREAKS[message](parts), graph)


def test_a_good_partition_passes() -> None:
    graph, parts = good()
    verify(parts, graph)


@pytest.mark.parametrize("message", BREAKS)
def test_each_mistake_is_named(message: str) -> None:
    graph, parts = good()
    with pytest.raises(GraphError, match=message):
        verify(BREAKS[message](graph, parts), graph)


def test_a_region_that_is_not_convex_reads_what_is_not_made() -> None:
    graph, parts = good()
    circle = made(graph, parts, {0, 1, 3, 4})
    with pytest.raises(GraphError, match="before they are made"):
        verify(replace(circle, order=(("region", 0), ("node", 2))), graph)


def test_an_output_that_no_step_makes() -> None:
    graph, parts = good()
    asked = replace(graph, outputs=(*graph.outputs, Ref(graph.nodes[0].outputs[0])))
    with pytest.raises(GraphError, match=r"does not store|made by no step"):
        verify(parts, asked)
    idle = replace(parts, regions=(), refusals=_refused(graph, parts), order=(("node", 0),))
    with pytest.raises(GraphError, match="made by no step"):
        verify(idle, graph)


def _refused(graph: RecordedGraph, parts: Partition) -> Any:
    reason = parts.refusals[0][1]
    return tuple((i, reason) for i in range(len(graph.nodes)))


def test_effects_keep_their_order() -> None:
    def fn(x: torch.Tensor, store: Store) -> Any:
        store.update(x)
        store.update(x * 2)
        return x + 1

    graph, parts = divided(fn, tensor(ROWS, WIDTH), Store())
    islands = [step for step in parts.order if step[0] == "node"]
    assert len(islands) == 2
    rest = [step for step in parts.order if step not in islands]
    with pytest.raises(GraphError, match="an effect or a size keeps behind it"):
        verify(replace(parts, order=(*rest, *islands[::-1])), graph)
    with pytest.raises(GraphError, match="lacks the nodes"):
        verify(replace(parts, order=(*rest, islands[1])), graph)
