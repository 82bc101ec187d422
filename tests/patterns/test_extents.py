"""Extents of matrix products: all sizes as symbols, and samples of rows and columns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from graphs import trace

from fusion.patterns import symbols
from fusion.patterns.extents import agreeing, disagreement, divided, extents, generalized, sample
from fusion.patterns.graph import SubGraph
from fusion.patterns.leaves import Ref
from fusion.patterns.nodes import OpNode
from fusion.patterns.reference import run
from fusion.patterns.specs import TensorSpec


def shapes(fn: object, *inputs: torch.Tensor) -> list[str]:
    """The inputs' and outputs' specs once their extents are symbols."""
    graph = generalized(trace(fn, *inputs))  # type: ignore[arg-type]
    return [graph.spec[name].text().partition("[")[2] for name in (*graph.inputs, *graph.outputs)]


def test_layers_of_other_sizes_have_one_graph() -> None:
    def digest(rows: int, inner: int, lanes: int) -> str:
        return generalized(trace(F.linear, torch.rand(1, rows, inner), torch.rand(lanes, inner))).digest

    assert digest(5, 8, 6) == digest(7, 9, 4)
    assert digest(5, 8, 8) == digest(7, 9, 4)  # sizes that happen to be equal are not the same extent
    assert digest(1, 8, 6) != digest(5, 8, 6)  # a dimension of size 1 stays one


def test_extents_run_through_transposes_and_what_follows_a_product() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return F.gelu(x @ w.t() + b) * r

    assert shapes(fn, torch.rand(5, 8), torch.rand(6, 8), torch.rand(6), torch.rand(5, 1)) == [
        "s0, s1]", "s2, s1]", "s2]", "s0, 1]", "s0, s2]"
    ]  # fmt: skip


def test_outputs_of_one_shape_stay_so() -> None:
    made = shapes(
        lambda x, a, b: (F.linear(x, a), F.linear(x, b)), torch.rand(5, 8), torch.rand(6, 8), torch.rand(6, 8)
    )
    assert made[-1] == made[-2] == "s0, s2]"


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, w: F.linear(x.reshape(4, 8), w),
        lambda x, w: F.linear(x, w)[:, 1:],
        lambda x, w: F.linear(x, w).sum(-1),
        lambda x, w: x * w[:1],
    ],
)
def test_what_moves_elements_is_left_alone(fn: object) -> None:
    graph = trace(fn, torch.rand(4, 8), torch.rand(6, 8))  # type: ignore[arg-type]
    assert extents(graph) is None and generalized(graph) is graph


def test_a_layout_that_is_not_dense_is_left_alone() -> None:
    graph = trace(F.linear, torch.rand(4, 8), torch.rand(6, 16)[:, ::2])
    assert generalized(graph) is graph


def test_a_sample_is_computed_from_some_elements_alone() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.relu(F.linear(x, w, b))

    torch.manual_seed(0)
    inputs = {"x0": torch.rand(50, 40), "x1": torch.rand(70, 40), "x2": torch.rand(70)}
    graph = trace(fn, *inputs.values())
    part = sample(graph, inputs, 16)
    assert part is not None
    some = {name: part.of(name, tensor) for name, tensor in inputs.items()}
    assert some["x0"].shape[1] == some["x1"].shape[1] == 40, "sums are whole"
    assert 16 <= len(some["x0"]) < 40 and 16 <= len(some["x1"]) < 40
    (whole,) = run(graph, inputs).items()
    (few,) = run(part.graph, some).values()
    torch.testing.assert_close(few, part.of(*whole))
    kept = next(iter(part.kept.values())).tolist()
    assert {0, 1, 2, 3} <= set(kept) and {i % 8 for i in kept} == set(range(8)), "edges, and every place in a tile"


def test_small_products_are_compared_whole() -> None:
    inputs = {"x0": torch.rand(5, 8), "x1": torch.rand(6, 8)}
    assert sample(trace(F.linear, *inputs.values()), inputs, 16) is None


def test_sizes_that_a_product_needs_to_be_equal_become_one() -> None:
    marked = {7: "s0", 11: "s1"}
    keys, values = torch.rand(1, 2, 7, 8), torch.rand(1, 2, 11, 8)
    graph = trace(lambda q, k, v: (q @ k.mT, v * 2), torch.rand(1, 2, 3, 8), keys, values, dynamic=marked)
    assert agreeing(graph) is graph
    names = {"x0": TensorSpec.contiguous(torch.float32, (5, symbols.symbol("s0")))}
    names["x1"] = TensorSpec.contiguous(torch.float32, (symbols.symbol("s1"), 6))
    names["t2"] = TensorSpec.contiguous(torch.float32, (5, 6))
    node = OpNode("aten.mm.default", (Ref("x0"), Ref("x1")), (), ("t2",), "")
    apart = SubGraph(("x0", "x1"), (node,), ("t2",), tuple(names.items()))
    assert disagreement(node, apart) is not None
    one = agreeing(apart)
    assert disagreement(node, one) is None and len(one.symbols) == 1


def test_views_of_inputs_are_told_from_the_rest() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return F.relu(F.linear(x[:, -1:].reshape(-1, 8), w.detach()))

    inputs = {"x0": torch.rand(3, 5, 8), "x1": torch.rand(6, 8)}
    graph = trace(fn, *inputs.values())
    views, rest = divided(graph)
    assert extents(graph) is None and extents(rest) is not None
    whole = {**inputs, **run(views, inputs)}
    (made,) = run(rest, {name: whole[name] for name in rest.inputs}).values()
    assert torch.equal(made, fn(*inputs.values()))
