"""What the cost model chooses among legal regions: what is computed again, what is stored, how large a kernel gets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from partitions import ROWS, WIDTH, chain, codes, divided, names, taken_apart, tensor

from fusion.partition import cost_model
from fusion.partition.partitioner import partition
from fusion.patterns import symbols
from fusion.patterns.graph import SubGraph
from fusion.patterns.leaves import Ref
from fusion.patterns.nodes import OpNode
from fusion.patterns.recorded import RecordedGraph
from fusion.patterns.specs import TensorSpec


def test_a_cheap_broadcast_is_computed_where_it_is_read() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x * (1 + w)

    graph, parts = divided(fn, tensor(ROWS, WIDTH), tensor(WIDTH))
    assert names(graph, parts) == ["add mul"]


def test_a_costly_broadcast_over_many_elements_is_stored() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return x * w.tanh().sin().exp().tanh()

    graph, parts = divided(fn, torch.randn(2000, WIDTH), tensor(WIDTH))
    assert names(graph, parts)[-1].split()[-1] == "mul"
    assert len(parts.regions) == 2, "the functions of w run over its own elements"
    graph, parts = divided(fn, torch.randn(2, WIDTH), tensor(WIDTH))
    assert names(graph, parts) == ["tanh sin exp tanh mul"], "two rows are cheaper than a launch"


def test_a_conversion_that_regions_over_other_indices_read_is_never_stored() -> None:
    def fn(x: torch.Tensor) -> Any:
        wide = x.float()
        return wide[:, :4].softmax(-1), wide[:, :8].softmax(-1)

    graph, parts = divided(fn, tensor(ROWS, WIDTH, dtype=torch.bfloat16))
    assert [r.inputs for r in taken_apart(parts)] == [("x0",), ("x0",)]
    assert names(graph, parts) == ["to softmax | to softmax"]
    conversion = next(i for i, n in enumerate(graph.nodes) if isinstance(n, OpNode) and n.op.startswith("aten.to"))
    assert all(conversion in r.shared for r in taken_apart(parts))
    assert ("node", conversion) not in parts.order


def test_what_a_library_call_reads_is_stored_once() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> Any:
        wide = x.float()
        return torch.nn.functional.linear(wide, w), wide[:, :4].softmax(-1)

    graph, parts = divided(fn, tensor(ROWS, WIDTH, dtype=torch.bfloat16), tensor(WIDTH, WIDTH))
    assert sorted(names(graph, parts)) == ["softmax", "to"]


def test_no_kernel_outgrows_its_footprint() -> None:
    parts = partition(chain(3 * cost_model.MOST_OPERATORS), values={})
    assert [len(r.nodes) for r in parts.regions] == [cost_model.MOST_OPERATORS] * 3


def test_one_operator_alone_gains_on_a_cpu_only() -> None:
    def alone(device: str) -> RecordedGraph:
        spec = TensorSpec.contiguous(torch.float32, (4, 8), device)
        node = OpNode("aten.relu.default", (Ref("v0"),), (), ("v1",))
        specs = (("v0", spec), ("v1", spec))
        return RecordedGraph((), (("v0", "x"),), (), (), (node,), (Ref("v1"),), "*", specs, (), ())

    assert len(partition(alone("cpu"), values={}).regions) == 1
    on_gpu = partition(alone("cuda"), values={})
    assert not on_gpu.regions
    assert codes(alone("cuda"), on_gpu) == {"relu": "no_gain"}


def subgraph(*ops: str, size: Any = 8, device: str = "cpu") -> SubGraph:
    spec = TensorSpec.contiguous(torch.float32, (4, size), device)
    nodes = tuple(OpNode(op, (Ref(f"v{i}"),), (), (f"v{i + 1}",)) for i, op in enumerate(ops))
    return SubGraph(("v0",), nodes, (f"v{len(ops)}",), tuple((f"v{i}", spec) for i in range(len(ops) + 1)))


def test_the_estimate_counts_launches_bytes_and_operations() -> None:
    found = cost_model.estimate(
        subgraph("aten.relu.default", "aten.neg.default", size=symbols.symbol("s0")), {"s0": 10}
    )
    assert (found.launches_saved, found.operators, found.values) == (1, 2, 2)
    assert (found.bytes_before, found.bytes_after) == (4 * 40 * 4, 2 * 40 * 4)
    assert found.operations == 2 * 40
    constants = cost_model.device("cpu")
    eager = 2 * constants.operator_us + found.bytes_before / constants.bytes_per_us
    assert found.saved_us == pytest.approx(eager - constants.kernel_us - found.bytes_after / constants.bytes_per_us)


def test_a_function_weighs_more_than_a_sum_and_a_view_nothing() -> None:
    def weight(op: str) -> int:
        graph = subgraph(op)
        return cost_model.weight(graph.nodes[0], graph.spec)

    assert weight("aten.contiguous.default") == 0
    assert 0 < weight("aten.relu.default") < weight("aten.tanh.default")
    assert weight("aten.gelu.default") > weight("aten.erf.default")
    assert weight("aten.some_library_call.default") == 0


def test_an_operator_of_integers_that_counts_in_floats_is_weighed() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.logaddexp(x, y).sin()

    whole = torch.arange(ROWS, dtype=torch.int64)
    graph, parts = divided(fn, whole, torch.randn(ROWS, dtype=torch.float16))
    assert names(graph, parts) == ["logaddexp sin"]


def test_an_unknown_size_counts_as_some_hundreds() -> None:
    sizes = cost_model.Sizes({"s0": 3})
    assert sizes.size(symbols.symbol("s0") * 2) == 6
    assert 64 <= sizes.size(symbols.symbol("s9")) <= 1024


def test_masks_are_computed_from_indices_wherever_they_are_read() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        position = torch.arange(x.shape[0])
        mask = torch.where(position[None, :] <= position[:, None], 0.0, float("-inf"))
        weights = torch.softmax(torch.nn.functional.linear(x, x) + mask, -1)
        mixed = torch.nn.functional.linear(weights, x.t())
        return torch.softmax(torch.nn.functional.linear(mixed, mixed) + mask, -1)

    graph, parts = divided(fn, tensor(ROWS, WIDTH))
    assert names(graph, parts) == ["arange le where add softmax"] * 2
    assert all(len(r.inputs) == len(r.outputs) == 1 for r in parts.regions), "no mask is stored or read"
    assert {graph.nodes[k].op for kind, k in parts.order if kind == "node"} == {"aten.linear.default", "aten.t.default"}


def test_a_mask_that_a_library_call_reads_is_one_kernel() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        position = torch.arange(x.shape[0])
        mask = position[None, :] <= position[:, None]
        return torch.nn.functional.scaled_dot_product_attention(x[None], x[None], x[None], attn_mask=mask[None])

    graph, parts = divided(fn, tensor(ROWS, WIDTH))
    assert names(graph, parts) == ["arange le"]
    assert not parts.regions[0].inputs
