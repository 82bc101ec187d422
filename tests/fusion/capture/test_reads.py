"""What Python asks tensors for: whether a number is among a tensor's values is computed by operators that fuse."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fusion

pytestmark = pytest.mark.usefixtures("without_gradients")

ROWS = (3, 4, 5, 3, 4)


def numbers(rows: int, low: int) -> torch.Tensor:
    """Whole numbers from `low` on."""
    return torch.arange(rows * 4).reshape(rows, 4) + low


def padded(x: torch.Tensor, wanted: Any) -> torch.Tensor:
    y = x * 2
    return torch.exp(-y.float()) if wanted in x[:, ::2] + 1 else torch.tanh(y.float()) * 3


@pytest.mark.parametrize("wanted", [1, 1.0, True])
def test_a_number_among_the_values(wanted: Any, quick: fusion.FusionConfig) -> None:
    fused = fusion.fuse(padded, quick)
    for low in (0, 5, 0):  # with the number, without, with it again
        for rows in ROWS:
            x = numbers(rows, low)
            torch.testing.assert_close(fused(x, wanted), padded(x, wanted), rtol=1e-5, atol=1e-6)
    (row,) = fusion.report(fused).scopes
    assert row.fused_calls >= 2 * len(ROWS) and row.state == "fused"
    inside = {op for region in row.regions if region.decision == "fused" for op in region.ops}
    assert {"eq", "any"} <= inside


def test_no_number_among_the_values_is_eagers_error(quick: fusion.FusionConfig) -> None:
    fused = fusion.fuse(padded, quick)
    for _ in range(3):
        with pytest.raises(RuntimeError, match="only supports Tensor or scalar"):
            fused(numbers(3, 0), "text")


def filled(x: torch.Tensor) -> torch.Tensor:
    """Asks a constant for its value after writing to it through a view."""
    count = torch.tensor(2)
    count.view(1).add_(1)
    return torch.tanh(x.narrow(0, 0, int(count.item())) * 2) + 1


def test_a_constant_that_is_written_to_is_asked_for_what_was_written(quick: fusion.FusionConfig) -> None:
    fused = fusion.fuse(filled, quick)
    for rows in (*ROWS, 6, 7):
        x = torch.randn(rows, 4)
        torch.testing.assert_close(fused(x), filled(x), rtol=1e-5, atol=1e-6)
    (row,) = fusion.report(fused).scopes
    assert row.fused_calls >= 3 and row.state == "fused", row
