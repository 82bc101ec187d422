"""Random draws: the results and the generators are eager's, and no kernel draws."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stateful import ROWS, Stateful, assert_fused, beside_eager, ops_in_kernels, rand, same
from tiny import no_grad, scopes

import fusion


def drawn_and_used(m: Any, x: torch.Tensor) -> Any:
    noise = torch.rand_like(x)
    y = torch.exp(x) * 2 + noise
    return F.dropout(F.silu(y) * 2, 0.3, training=True) * 2 + 1


def every_kind_of_draw(m: Any, x: torch.Tensor) -> Any:
    probability = torch.softmax(x, -1)
    race = probability / torch.empty_like(probability).exponential_() * 2
    chosen = torch.multinomial(probability, 2)
    normal = torch.empty(x.shape[0], 8).normal_(1.0, 2.0)
    return race + normal, chosen, torch.bernoulli(probability), torch.randint(0, 9, (x.shape[0],)), torch.randn(3) + 1


def drawn_into_an_argument(m: Any, x: torch.Tensor) -> Any:
    x.uniform_(-1, 1)
    return torch.exp(x) * 2 + 1


@pytest.mark.parametrize(
    "function", [drawn_and_used, every_kind_of_draw, drawn_into_an_argument], ids=lambda f: f.__name__
)
def test_draws_are_eagers(function: Any, quick: fusion.FusionConfig) -> None:
    assert_fused(beside_eager(function, quick))


def test_nothing_that_draws_is_in_a_kernel(quick: fusion.FusionConfig) -> None:
    scope = beside_eager(drawn_and_used, quick)
    assert ops_in_kernels(scope).isdisjoint({"aten.rand_like.default", "aten.dropout.default"})
    assert len(scope.known[0].graph.draws) == 2


def test_a_draw_whose_result_nobody_reads_still_happens(quick: fusion.FusionConfig) -> None:
    def call(m: Any, x: torch.Tensor) -> Any:
        torch.rand(5)
        return torch.exp(x) * 2 + 1

    assert_fused(beside_eager(call, quick))


def test_a_generator_given_as_an_argument(quick: fusion.FusionConfig) -> None:
    def call(m: Any, x: torch.Tensor, generator: torch.Generator) -> Any:
        noise = torch.rand(x.shape, generator=generator)
        return torch.exp(x) * noise + 1

    eager = Stateful(call).eval()
    model = fusion.enable(copy.deepcopy(eager), quick)
    mine, theirs = torch.Generator().manual_seed(3), torch.Generator().manual_seed(3)
    for seed, rows in enumerate(ROWS):
        same(no_grad(model, rand(rows, seed), mine), no_grad(eager, rand(rows, seed), theirs))
        assert torch.equal(mine.get_state(), theirs.get_state())
    assert_fused(scopes(model)["Stateful"])


def test_seeding_inside_is_refused(quick: fusion.FusionConfig) -> None:
    def call(m: Any, x: torch.Tensor) -> Any:
        torch.manual_seed(3)
        return torch.exp(x) * 2 + torch.rand(8)

    scope = beside_eager(call, quick)
    assert {r.code for r in scope.refused.values()} == {"random"} and scope.statistics.planned[0] == 0
