"""Regions of recordings: which calls are grouped, and what is asked of the judge."""

from __future__ import annotations

from typing import Any

import torch
from partitions import (
    ROWS,
    WIDTH,
    codes,
    divided,
    names,
    tensor,
)

from fusion.capture.python.argument_snapshot import ArgumentSnapshot
from fusion.capture.record import record
from fusion.partition.dependence import dependence, schedule
from fusion.partition.partitioner import partition
from fusion.patterns.errors import LoweringError
from fusion.patterns.graph import SubGraph

# ---- growing


def test_a_chain_is_one_region() -> None:
    graph, parts = divided(lambda x: (x * 2 + 1).relu(), tensor(ROWS, WIDTH))
    assert names(graph, parts) == ["mul add relu"]
    assert parts.order == (("region", 0),)
    assert parts.regions[0].inputs == ("x0",)


def test_a_residual_through_a_linear_is_not_convex() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        y = (x * 2).relu()
        return (torch.nn.functional.linear(y, w) + y) * 3

    graph, parts = divided(fn, tensor(ROWS, WIDTH), tensor(WIDTH, WIDTH))
    assert names(graph, parts) == ["mul relu", "add mul"]
    assert codes(graph, parts) == {"linear": "not_fusable"}


def test_a_value_read_outside_is_a_further_output() -> None:
    def fn(x: torch.Tensor, r: torch.Tensor, w: torch.Tensor) -> Any:
        total = x + r
        return torch.nn.functional.linear(total.tanh() * 2, w), total

    graph, parts = divided(fn, tensor(ROWS, WIDTH), tensor(ROWS, WIDTH), tensor(WIDTH, WIDTH))
    assert names(graph, parts) == ["add tanh mul"]
    last, first = parts.regions[0].outputs
    producer = dependence(graph).producer
    assert producer[first] < producer[last]
    assert first == graph.outputs[1].name


def test_a_value_read_through_a_view_outside_is_an_output_and_the_view_stays() -> None:
    def fn(x: torch.Tensor) -> Any:
        y = (x * 2).transpose(0, 1)
        return y.relu() + 1, y

    _, parts = divided(fn, tensor(ROWS, WIDTH))
    (region,) = parts.regions
    assert region.nodes == (0, 1, 2, 3)
    assert (region.owned, region.shared) == ((0, 2, 3), (1,))
    assert parts.order == (("region", 0), ("node", 1))


def test_a_further_output_over_other_indices_is_left_outside() -> None:
    def fn(x: torch.Tensor) -> Any:
        y = (x * 2).exp()
        return y[:, :4].relu() + 1, y

    graph, parts = divided(fn, tensor(ROWS, WIDTH))
    assert names(graph, parts) == ["mul exp", "relu add"]


def test_views_at_the_top_are_pulled_in_by_every_reader_and_run_no_more() -> None:
    def fn(x: torch.Tensor, a: torch.Tensor, w: torch.Tensor) -> Any:
        t = x.transpose(0, 1)
        return (t * a + torch.nn.functional.linear((t + a).exp(), w)).relu()

    graph, parts = divided(fn, tensor(WIDTH, ROWS), tensor(ROWS, WIDTH), tensor(WIDTH, WIDTH))
    assert names(graph, parts) == ["add exp", "mul add relu"]
    assert all(0 in r.shared and r.inputs[:2] == ("x0", "x1") for r in parts.regions)
    assert ("node", 0) not in parts.order
    # Should only one of them be used, the view has to run for the other.
    assert ("node", 0) in schedule(graph, parts.regions[:1])
    assert schedule(graph, ()) == tuple(("node", i) for i in range(len(graph.nodes)))


def test_trailing_views_and_lone_copies_stay_outside() -> None:
    graph, parts = divided(
        lambda x: ((x * 2).relu().view(-1), x.transpose(0, 1).contiguous()), tensor(ROWS, WIDTH), min_nodes=1
    )
    assert names(graph, parts) == ["mul relu"]
    assert codes(graph, parts) == {"view": "too_small", "transpose": "too_small", "contiguous": "too_small"}


def test_chunk_is_one_view_with_two_results() -> None:
    class Halves(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = torch.nn.Linear(WIDTH, WIDTH)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate, up = self.both(x).chunk(2, -1)
            return torch.nn.functional.silu(gate) * up

    module, x = Halves(), tensor(ROWS, WIDTH)
    graph = record(module.forward, ArgumentSnapshot({"x": x}), lambda: module(x), {"": module}).graph
    assert graph is not None
    parts = partition(graph, values={"s0": ROWS, "s1": WIDTH})
    assert parts.regions[0].nodes == (1, 2, 3)
    assert parts.order == (("node", 0), ("region", 0))


def test_softmax_with_a_mask() -> None:
    def fn(q: torch.Tensor, k: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = torch.matmul(q, k.transpose(2, 3)) * 0.25 + mask
        return torch.nn.functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)

    half = torch.bfloat16
    heads = tensor(2, 3, 5, 8, dtype=half)
    graph, parts = divided(fn, heads, heads.clone(), tensor(2, 1, 5, 5, dtype=half))
    assert names(graph, parts) == ["mul add softmax to"]


def test_the_value_per_row_is_a_further_output() -> None:
    def fn(x: torch.Tensor) -> Any:
        scale = torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)
        return x * scale, scale

    graph, parts = divided(fn, tensor(ROWS, WIDTH))
    assert names(graph, parts) == ["mul mean add rsqrt mul"]
    assert len(parts.regions[0].outputs) == 2


def test_two_regions_that_would_wait_for_each_other() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> Any:
        a, b = x * 2, x * 3
        left = torch.nn.functional.linear(a, w) + b
        right = torch.nn.functional.linear(b, w) + a
        return left, right

    graph, parts = divided(fn, tensor(ROWS, WIDTH), tensor(WIDTH, WIDTH))
    # Either sum could take the other's product in, as each by itself is convex; both together would be a circle.
    assert names(graph, parts).count("mul add") <= 1


# ---- the judge


def test_what_does_not_lower_is_cut() -> None:
    def judge(graph: SubGraph) -> Any:
        if "softmax" in graph.ops:
            raise LoweringError("domain", "no softmax here")

    graph, parts = divided(lambda x: (x.softmax(-1) + 1).relu().tanh() * 2, tensor(ROWS, WIDTH), judge=judge)
    assert names(graph, parts) == ["add relu tanh mul"]
    assert codes(graph, parts) == {"softmax": "different_domain"}
    graph, parts = divided(lambda x: (x + 1).relu().softmax(-1), tensor(ROWS, WIDTH), judge=judge)
    assert names(graph, parts) == ["add relu"]
    assert codes(graph, parts) == {"softmax": "different_domain"}


def test_what_does_not_lower_is_tried_with_one_output() -> None:
    def judge(graph: SubGraph) -> Any:
        if len(graph.outputs) > 1:
            raise LoweringError("domain", "one output at most")

    def fn(x: torch.Tensor) -> Any:
        y = (x * 2).relu()
        return (y + 1).reshape(-1).tanh(), y  # a view that may divide an index, so that the judge is asked

    graph, parts = divided(fn, tensor(ROWS, WIDTH), judge=judge)
    assert names(graph, parts) == ["mul relu", "add tanh"]


def test_the_judge_is_asked_once_per_structure() -> None:
    asked: list[str] = []

    def judge(graph: SubGraph) -> Any:
        asked.append(graph.digest)

    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        for _ in range(3):
            x = torch.nn.functional.linear((x * 2).softmax(-1), w)
        return x

    _, parts = divided(fn, tensor(ROWS, WIDTH), tensor(WIDTH, WIDTH), judge=judge)
    assert len(parts.regions) == 3
    assert len(asked) == len(set(asked)) == 1
