"""Regions over one iteration space that become one kernel, and those that must not."""

from __future__ import annotations

from typing import Any

import torch
from partitions import ROWS, WIDTH, divided, names, tensor

from fusion.partition import cost_model
from fusion.patterns.errors import LoweringError
from fusion.patterns.graph import SubGraph


def test_independent_regions_over_one_space_become_one() -> None:
    graph, parts = divided(lambda x: ((x[0] * 2).relu(), (x[1] + 1).tanh()), tensor(2, ROWS, WIDTH))
    assert names(graph, parts) == ["mul relu add tanh"]
    (region,) = parts.regions
    assert len(region.outputs) == 2
    assert region.parts == ((0, 1, 2), (3, 4, 5))


def test_other_spaces_stay_loops_of_their_own() -> None:
    graph, parts = divided(lambda x, y: ((x * 2).relu(), (y + 1).tanh()), tensor(ROWS, WIDTH), tensor(ROWS, 2 * WIDTH))
    assert names(graph, parts) == ["mul relu | add tanh"]


def test_what_one_region_makes_for_the_other_alone_is_not_stored() -> None:
    def fn(x: torch.Tensor) -> Any:
        y = torch.cat((x, x), -1)
        return y.cos() * 2, y.sin() * 2

    graph, parts = divided(fn, tensor(ROWS, WIDTH))
    (region,) = parts.regions
    assert set(region.outputs) == {ref.name for ref in graph.outputs}


def test_regions_with_a_library_call_between_them_stay_apart() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.linear((x * 2).relu(), w).tanh() + 1

    graph, parts = divided(fn, tensor(ROWS, WIDTH), tensor(WIDTH, WIDTH))
    assert names(graph, parts) == ["mul relu", "tanh add"]


def test_independent_regions_merge_on_each_side_of_a_library_call() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> Any:
        a, b = (x[0] * 2).relu(), (x[1] * 3).relu()
        c = torch.nn.functional.linear(a, w).tanh() + 1
        d = torch.nn.functional.linear(b, w).tanh() + 2
        return c, d, torch.nn.functional.linear(c, w) + torch.nn.functional.linear(d, w)

    graph, parts = divided(fn, tensor(2, ROWS, WIDTH), tensor(WIDTH, WIDTH))
    assert names(graph, parts) == ["mul relu mul relu", "tanh add tanh add", "add"]


def test_two_rotations_with_equal_heads_are_one_kernel() -> None:
    def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return x * cos + torch.cat((-x[..., 4:], x[..., :4]), -1) * sin

    def fn(both: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        return rotated(both[0], cos, sin), rotated(both[1], cos, sin)

    angles = tensor(2, 1, 5, 8)
    _, parts = divided(fn, tensor(2, 2, 4, 5, 8), angles.cos(), angles.sin())
    (region,) = parts.regions
    assert len(region.outputs) == 2


def test_what_does_not_lower_together_is_cut_into_what_does() -> None:
    def judge(graph: SubGraph) -> Any:
        if graph.ops.count("softmax") > 2:
            raise LoweringError("domain", "two at most")

    def fn(x: torch.Tensor) -> Any:
        return [torch.softmax(x * k, -1) for k in range(4)]

    graph, parts = divided(fn, tensor(ROWS, WIDTH), judge=judge)
    assert names(graph, parts) == ["mul softmax mul softmax | mul softmax mul softmax"]


def test_what_does_not_lower_together_still_waits_for_each_other() -> None:
    def judge(graph: SubGraph) -> Any:
        if graph.ops.count("softmax") > 1:
            raise LoweringError("domain", "one at most")

    def fn(x: torch.Tensor) -> torch.Tensor:
        first = torch.softmax(x, -1)
        second = torch.softmax(first + 1, -1)
        return torch.softmax(second[:, 4:], -1)  # apart from `first` but for `second`, which stood with it

    graph, parts = divided(fn, tensor(ROWS, WIDTH), judge=judge)
    assert names(graph, parts) == ["softmax", "add softmax", "softmax"]


def test_a_merged_kernel_keeps_within_its_footprint() -> None:
    _, parts = divided(lambda x: [(x * k).relu() for k in range(2 * cost_model.MOST_VALUES)], tensor(ROWS, WIDTH))
    assert len(parts.regions) > 1
    assert all(len(r.inputs) + len(r.outputs) <= cost_model.MOST_VALUES for r in parts.regions)


def test_regions_that_would_wait_for_each_other_stay_apart() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> Any:
        a = (x[0] * 2).relu()
        b = torch.softmax(x[1], -1)
        c = torch.nn.functional.linear(a, w).tanh()  # behind a
        d = torch.nn.functional.linear(b, w).sigmoid()  # behind b
        # a with d leaves b before c: each pair alone is legal, both are a circle.
        return a[:, 1:] * 2, b[:, 1:] * 3, c + 1, d + 1

    graph, parts = divided(fn, tensor(2, ROWS, WIDTH), tensor(WIDTH, WIDTH))
    assert "linear" in " ".join(graph.nodes[k].op for kind, k in parts.order if kind == "node")
    assert len(parts.regions) <= 3


def test_a_value_that_others_read_in_another_shape_is_stored_by_the_kernel_that_makes_it() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        flat = (x + y).reshape(-1, x.size(-1))
        return torch.nn.functional.linear(torch.nn.functional.layer_norm(flat, (WIDTH,)), w).tanh() + flat

    graph, parts = divided(fn, tensor(3, ROWS, WIDTH), tensor(3, ROWS, WIDTH), tensor(WIDTH, WIDTH))
    assert names(graph, parts) == ["add layer_norm", "tanh add"]
    assert [graph.spec[name].text() for name in parts.regions[0].outputs] == [
        f"float32[s0*s1, {WIDTH}]",
        f"float32[s0, s1, {WIDTH}]",
    ]


def test_a_sum_that_is_read_in_another_shape_is_not_broadcast() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x.reshape(-1, 2, WIDTH).sum(1).view(*x.shape[:2], WIDTH) + y

    graph, parts = divided(fn, tensor(3, ROWS, 2 * WIDTH), tensor(3, ROWS, WIDTH))
    assert names(graph, parts) == ["sum add"]
