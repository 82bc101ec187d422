"""Regions with matrix products: what comes along with a product, and what stays apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from partitions import ROWS, WIDTH, codes, divided, names, tensor

from fusion.partition import cost_model


def regions(fn: Any, *arguments: torch.Tensor) -> list[str]:
    """The operators of each region."""
    return names(*divided(fn, *arguments, products=True))


def square() -> torch.Tensor:
    """A weight."""
    return tensor(WIDTH, WIDTH)


def test_what_follows_a_product_is_computed_with_it() -> None:
    fn = lambda x, w, b, r: F.gelu(F.linear(x, w, b)) + r  # noqa: E731
    assert regions(fn, tensor(ROWS, WIDTH), square(), tensor(WIDTH), tensor(ROWS, WIDTH)) == ["linear gelu add"]


def test_two_products_and_their_gate_are_one_kernel() -> None:
    fn = lambda x, a, b: F.silu(F.linear(x, a)) * F.linear(x, b)  # noqa: E731
    assert regions(fn, tensor(ROWS, WIDTH), square(), square()) == ["linear silu linear mul"]


def test_products_of_one_activation_over_the_same_lanes_are_one_nest() -> None:
    fn = lambda x, w: (F.linear(x, w), F.linear(x, w + 1))  # noqa: E731
    assert "linear linear" in regions(fn, tensor(ROWS, WIDTH), square())


def test_small_products_over_other_lanes_are_one_launch() -> None:
    fn = lambda x, y, a, b: (F.linear(x, a), F.linear(y, b))  # noqa: E731
    assert regions(fn, tensor(ROWS, WIDTH), tensor(ROWS, WIDTH), square(), square()) == ["linear | linear"]


def test_a_row_reduction_reads_a_product_from_memory() -> None:
    fn = lambda x, w: F.linear(x, w).softmax(-1)  # noqa: E731
    graph, parts = divided(fn, tensor(ROWS, WIDTH), square(), products=True)
    assert sorted(names(graph, parts)) == ["linear", "softmax"]


def test_a_product_reads_its_operands_from_memory() -> None:
    fn = lambda x, w, v: F.linear(F.relu(F.linear(x, w)), v)  # noqa: E731
    graph, parts = divided(fn, tensor(ROWS, WIDTH), square(), square(), products=True)
    assert names(graph, parts) == ["linear relu", "linear"]


def test_a_broadcast_product_is_not_summed_again() -> None:
    fn = lambda x, w, y: F.linear(x, w)[:, None] * y  # noqa: E731
    assert sorted(regions(fn, tensor(ROWS, WIDTH), square(), tensor(ROWS, 3, WIDTH))) == ["linear", "mul"]


def test_without_products_they_are_library_calls() -> None:
    graph, parts = divided(lambda x, w: F.linear(x, w) * 2, tensor(ROWS, WIDTH), square())
    assert names(graph, parts) == ["mul"] and codes(graph, parts) == {"linear": "not_fusable"}


def test_products_of_other_dtypes_are_library_calls() -> None:
    x, w = tensor(ROWS, WIDTH).double(), square().double()
    graph, parts = divided(lambda x, w: F.linear(x, w) * 2, x, w, products=True)
    assert names(graph, parts) == ["mul"] and codes(graph, parts) == {"linear": "operator_use"}


def test_attention_on_a_gpu_is_a_library_call_beside_products_that_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        heads = F.relu(F.linear(x, w)).view(1, ROWS, 2, WIDTH // 2).transpose(1, 2)
        return F.scaled_dot_product_attention(heads, heads, heads) + 1

    arguments = (tensor(1, ROWS, WIDTH), square())
    assert {"linear relu", "scaled_dot_product_attention add"} <= set(regions(fn, *arguments))
    monkeypatch.setitem(cost_model.DEVICES, "cpu", cost_model.DEVICES["cuda"])
    graph, parts = divided(fn, *arguments, products=True, min_nodes=1)
    assert "linear relu" in names(graph, parts)
    assert codes(graph, parts)["scaled_dot_product_attention"] == "not_fusable"
