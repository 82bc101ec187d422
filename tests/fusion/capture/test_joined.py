"""Tensors that are filled slice by slice: a concatenation where nobody can tell, else writes in their order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import fusion

pytestmark = pytest.mark.usefixtures("without_gradients")

ROWS = (3, 4, 5, 3, 4, 6)


def rand(rows: int) -> torch.Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows))


def last(x: torch.Tensor) -> torch.Tensor:
    y = x.new_empty(*x.shape[:-1], 12)
    y[..., :8].copy_(torch.exp(x))
    y[..., 8:].copy_(x[..., :1] * 2)  # expanded
    return torch.tanh(y) * 3


def first(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros(2 * x.shape[0] + 1, 8)
    y[: x.shape[0]] = x * 2
    y[x.shape[0] : 2 * x.shape[0]] = torch.sigmoid(x)
    y[2 * x.shape[0] :] = x.amax(0, keepdim=True)
    return y


def of_views(x: torch.Tensor) -> torch.Tensor:
    y = torch.empty_like(x)
    y[:, :4] = x[:, 4:]
    y[:, 4:] = -x[:, :4]
    return (x * 2 + y).exp()[:, 1:]


@pytest.mark.parametrize("function", [last, first, of_views])
def test_a_tensor_that_is_filled_is_a_concatenation(function: Callable[..., Any], quick: fusion.FusionConfig) -> None:
    fused = fusion.fuse(function, quick)
    for rows in ROWS:
        found, expected = fused(rand(rows)), function(rand(rows))
        assert found.stride() == expected.stride()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    (row,) = fusion.report(fused).scopes
    assert (row.fused_calls, row.state) == (len(ROWS) - 2, "fused"), row.reason
    assert any("cat" in region.ops and region.decision == "fused" for region in row.regions)
    assert row.fused_ops == row.fusable_ops


def in_part(x: torch.Tensor) -> torch.Tensor:
    y = torch.ones(x.shape[0], 12)
    y[:, :4] = x[:, :4]
    y[:, 5:] = x[:, 1:]
    return y * 2


def over_each_other(x: torch.Tensor) -> torch.Tensor:
    y = torch.empty(x.shape[0], 8)
    y[:, :5] = x[:, :5]
    y[:, 4:] = x[:, 4:] + 1
    return y * 2


def read_between(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros(x.shape[0], 8)
    y[:, :4] = x[:, :4]
    total = y.sum(-1, keepdim=True)
    y[:, 4:] = x[:, 4:] + 1
    return y * total


def a_view_from_before(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros(x.shape[0], 8)
    turned = y.t()
    y[:, :4] = x[:, :4]
    y[:, 4:] = x[:, 4:] + 1
    return y @ turned


def source_overwritten(x: torch.Tensor) -> torch.Tensor:
    y, z = torch.zeros(x.shape[0], 8), x * 2
    half = z[:, :4]
    y[:, :4] = half
    z[:, 2] = 7.0
    y[:, 4:] = z[:, 4:]
    return y + z


def of_itself(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros(x.shape[0], 8)
    y[:, :4] = x[:, :4]
    y[:, 4:] = y[:, :4] * 2
    return y + 1


def written_again(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros(x.shape[0], 8)
    y[:, :4] = x[:, :4]
    y[:, 4:] = x[:, 4:] + 1
    y[:, 0] = 5.0
    return y * 2


def every_other(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros(x.shape[0], 8)
    y[:, ::2] = x[:, :4]
    y[:, 1::2] = x[:, 4:]
    return y * 2


def cast(x: torch.Tensor) -> torch.Tensor:
    y = torch.zeros(x.shape[0], 8, dtype=torch.float64)
    y[:, :4] = x[:, :4]
    y[:, 4:] = x[:, 4:]
    return y * 2


OTHERS = [
    in_part, over_each_other, read_between, a_view_from_before, source_overwritten, of_itself, written_again,
    every_other, cast,
]  # fmt: skip


@pytest.mark.parametrize("function", OTHERS)
def test_other_writes_keep_their_order(function: Callable[..., Any], quick: fusion.FusionConfig) -> None:
    fused = fusion.fuse(function, quick)
    for rows in ROWS:
        torch.testing.assert_close(fused(rand(rows)), function(rand(rows)), rtol=1e-5, atol=1e-6)
    (row,) = fusion.report(fused).scopes
    assert row.fused_calls == len(ROWS) - 2
    assert not any("cat" in region.ops for region in row.regions)
