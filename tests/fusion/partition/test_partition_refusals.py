"""Why calls are left out of regions: recomputing, memory that is written to, side effects."""

from __future__ import annotations

from typing import Any

import torch
from partitions import (
    ROWS,
    WIDTH,
    Store,
    Views,
    codes,
    divided,
    names,
    tensor,
)

from fusion.patterns.errors import LoweringError
from fusion.patterns.graph import SubGraph
from fusion.patterns.nodes import OpNode
from fusion.patterns.python_nodes import OpaqueCall
from fusion.remedies import REMEDIES

# ---- refusing


def test_a_reduction_that_is_broadcast_is_not_computed_again() -> None:
    def fn(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (x + b.softmax(-1)) * 2

    graph, parts = divided(fn, tensor(ROWS, WIDTH), tensor(WIDTH), min_nodes=2)
    assert names(graph, parts) == ["add mul"]
    assert codes(graph, parts) == {"softmax": "broadcast_recompute"}


def test_a_value_expanded_by_a_view_is_not_computed_again() -> None:
    def fn(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return (x + b.softmax(-1).unsqueeze(0).expand(ROWS, WIDTH)) * 2

    graph, parts = divided(fn, tensor(ROWS, WIDTH), tensor(WIDTH), min_nodes=2)
    assert names(graph, parts) == ["add mul"]
    assert codes(graph, parts)["softmax"] == "broadcast_recompute"


def test_memory_that_is_written_to_is_left_alone() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        half = y[:, :2]  # which the write below reaches too: it has to stay a write
        before = y.relu() + 1
        y.add_(1)
        return before * y.relu().tanh() + half.sum()

    graph, parts = divided(fn, tensor(ROWS, WIDTH))
    (write,) = (i for i, node in enumerate(graph.nodes) if node.op == "aten.add_.Tensor")
    before, (after,) = graph.nodes[write].refs[0], graph.nodes[write].outputs
    assert before in graph.mutated and after not in graph.mutated
    written = {i for i, node in enumerate(graph.nodes) if not {*node.refs, *node.outputs}.isdisjoint(graph.mutated)}
    assert len(written) == 5  # mul, the slice, relu, add_, sum; what reads the new value is free
    assert {i for i, refusal in parts.refusals if refusal.code == "aliased"} == written
    assert any("relu tanh" in name for name in names(graph, parts))


def test_a_write_that_nobody_else_sees_becomes_part_of_a_kernel() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        before = y.relu() + 1
        y.add_(1)
        return before * y.relu().tanh()

    graph, parts = divided(fn, tensor(ROWS, WIDTH))
    assert not graph.mutated
    assert names(graph, parts) == ["mul relu add add relu tanh mul"]


def test_too_small_and_few_elements() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).relu()

    graph, parts = divided(fn, tensor(ROWS, WIDTH), min_nodes=3)
    assert not parts.regions
    assert codes(graph, parts) == {"mul": "too_small", "relu": "too_small"}
    graph, parts = divided(fn, tensor(ROWS, WIDTH), min_elements=ROWS * WIDTH + 1)
    assert codes(graph, parts) == {"mul": "few_elements", "relu": "few_elements"}
    graph, parts = divided(fn, tensor(ROWS, WIDTH), min_elements=ROWS * WIDTH)
    assert names(graph, parts) == ["mul relu"]


def test_dtypes_and_uses_that_no_kernel_covers() -> None:
    def fn(x: torch.Tensor, c: torch.Tensor) -> Any:
        return torch.linalg.norm(x, 1, (0, 1)) * 2 + 1, (c * c) + c

    graph, parts = divided(fn, tensor(ROWS, WIDTH), torch.ones(ROWS, dtype=torch.complex64))
    assert names(graph, parts) == ["mul add"]
    assert [refusal.code for _, refusal in parts.refusals] == ["operator_use", "dtype", "dtype"]


# ---- effects


def test_regions_stay_on_their_side_of_an_island() -> None:
    def fn(x: torch.Tensor, store: Store) -> torch.Tensor:
        kept = store.update((x * 2).relu())
        return (kept + 1).tanh()

    graph, parts = divided(fn, tensor(ROWS, WIDTH), Store())
    assert names(graph, parts) == ["mul relu", "add tanh"]
    assert parts.order == (("region", 0), ("node", 2), ("region", 1))


def test_what_reads_an_islands_result_stays_before_the_next_island() -> None:
    def fn(x: torch.Tensor, store: Views) -> torch.Tensor:
        early = store.update(x)[:, :WIDTH] * 2  # reads memory that the second call writes to
        late = store.update(x)
        return (early.relu() + late).tanh()

    graph, parts = divided(fn, tensor(ROWS, WIDTH), Views(), min_nodes=2)
    place = {step: k for k, step in enumerate(parts.order)}
    first, second = (i for i, node in enumerate(graph.nodes) if isinstance(node, OpaqueCall))
    reader = next(i for i, n in enumerate(graph.nodes) if isinstance(n, OpNode) and n.op == "aten.mul.Tensor")
    assert place["node", first] < place["node", reader] < place["node", second]
    assert names(graph, parts) == ["relu add tanh"]
    assert codes(graph, parts)["mul"] == "not_convex"


def test_a_tensor_that_an_island_hands_out_again_counts_as_written_to() -> None:
    def fn(x: torch.Tensor, store: Store) -> torch.Tensor:
        early = store.update(x) * 2
        late = store.update(x)
        return (early.relu() + late).tanh() * 3

    graph, parts = divided(fn, tensor(ROWS, WIDTH), Store(), min_nodes=2)
    assert codes(graph, parts) == {"mul": "aliased", "add": "aliased", "relu": "too_small"}
    assert names(graph, parts) == ["tanh mul"]
    assert [k for kind, k in parts.order if kind == "node"] == [0, 1, 2, 3, 4]


def test_a_region_that_one_kernel_cannot_express_says_so() -> None:
    """Lowering calls it too large, as recordings are; max_graph_size, the remedy for those, would change nothing."""

    def judge(region: SubGraph) -> None:
        if "sum" in "".join(region.ops):
            raise LoweringError("too_large", "Too many different elements.")

    graph, parts = divided(lambda x: (x * 2).sum(-1).softmax(-1), tensor(ROWS, WIDTH), judge=judge)
    assert "too_deep" in codes(graph, parts).values()
    assert "max_graph_size" not in REMEDIES["too_deep"]
