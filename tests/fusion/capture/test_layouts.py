"""Results have eager's strides, in dimensions of size 1 too: what follows may read them, or choose a layout by them.

By default a function is called with one channel or two, the next function with the other; `make test-all` does both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from thorough import combined

import fusion

pytestmark = pytest.mark.slow
FUNCTIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "pointwise": lambda x: torch.tanh(x) * 2 + 1,
    "cat": lambda x: torch.cat([torch.tanh(x), x * 2], 1),
    "stack": lambda x: torch.stack([x * 2, x + 1], 1),
    "pad": lambda x: F.pad(x * 2, (1, 1)) + 1,
    "group norm": lambda x: F.group_norm(torch.tanh(x), 1) * 2,
    "row by row": lambda x: (x * 2 - x.amax(-1, keepdim=True)) + 1,
    "conv": lambda x: torch.tanh(F.conv2d(x * 2, x.new_ones(2, x.shape[1], 1, 1))),
    "sum": lambda x: (x * 2).sum(1, keepdim=True) + 1,
    "transpose": lambda x: (x.transpose(1, 2) * 2, torch.tanh(x.flatten(2)) + 1),
    "stride read": lambda x: x * x.stride(1) + 1,
    "clone": lambda x: (x * 2).clone() + x,
}


def _layouts(batch: int, channels: int) -> list[torch.Tensor]:
    """Tensors [batch, channels, 4, 3] in layouts that differ, some of them only where a size is 1."""
    plain = torch.randn(batch, channels, 4, 3)
    last = plain.to(memory_format=torch.channels_last)
    wide = torch.randn(batch, channels + 2, 4, 3)[:, :channels]
    rows = torch.randn(batch, channels, 9, 3)[:, :, :4]
    turned = torch.randn(3, 4, channels, batch).permute(3, 2, 1, 0)
    odd = plain.as_strided(plain.shape, (77, 55, 3, 1)) if batch == channels == 1 else plain
    return [plain, last, wide, rows, turned, odd]


@pytest.mark.parametrize(("name", "channels"), combined(FUNCTIONS, (1, 2)))
def test_strides_are_eagers(name: str, channels: int) -> None:
    function = FUNCTIONS[name]
    fused = fusion.fuse(function, {"profile": False})
    with torch.no_grad():
        for batch in (2, 1, 2, 1, 3):
            for x in _layouts(batch, channels):
                for _ in range(3):
                    found, expected = fused(x), function(x)
                    pairs = zip(found, expected, strict=True) if isinstance(found, tuple) else [(found, expected)]
                    for one, other in pairs:
                        assert one.stride() == other.stride(), (batch, x.stride())
                        assert torch.allclose(one, other, rtol=1e-5, atol=1e-5)
    assert fused.report().scopes[0].fused_calls > 0


def test_batches_of_1_and_2_in_turn_have_plans() -> None:
    """No call falls back once each batch has been met a few times."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3, padding=1), torch.nn.GroupNorm(2, 4), torch.nn.SiLU(), torch.nn.Conv2d(4, 3, 1)
    ).eval()
    fused = fusion.enable(net, {"profile": False})
    with torch.no_grad():
        for batch in (1, 2, 1, 2, 1, 2, 1, 2):
            fused(torch.randn(batch, 3, 8, 8))
        before = fusion.report(fused)
        for batch in (1, 2) * 5:
            fused(torch.randn(batch, 3, 8, 8))
        after = fusion.report(fused)
    assert after.totals.fallbacks == before.totals.fallbacks
    assert sum(s.fused_calls for s in after.scopes) - sum(s.fused_calls for s in before.scopes) >= 10


@pytest.mark.parametrize("stride", [0, 1, 3, 7, 8, 64])
def test_a_kernels_result_keeps_any_stride_of_a_dimension_of_size_1(stride: int) -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x.float() * 2, torch.rad2deg(x > 0), (x * 2).unsqueeze(0)

    fused = fusion.fuse(function, {"profile": False})
    with torch.no_grad():
        for step in (stride, 5, stride, 0, stride, 5, stride):
            x = torch.randn(1, 8, dtype=torch.float64).as_strided((1, 8), (step, 1))
            found, expected = fused(x), function(x)
            assert [t.stride() for t in found] == [t.stride() for t in expected]
            assert all(torch.allclose(a, b) for a, b in zip(found, expected, strict=True))
    assert fused.report().scopes[0].fused_calls > 1


@pytest.mark.parametrize("stride", [0, 1, 2, 9])
def test_a_view_of_another_rank_keeps_any_stride_of_a_dimension_of_size_1(stride: int) -> None:
    def function(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parted = x.unflatten(-1, (-1, 1))
        return parted, parted * 3 + 1, x[None]

    fused = fusion.fuse(function, {"profile": False})
    with torch.no_grad():
        for step in (stride, 5, stride, 3, stride):
            x = torch.randn(8).as_strided((1,), (step,))
            found, expected = fused(x), function(x)
            assert [t.stride() for t in found] == [t.stride() for t in expected]
            assert all(map(torch.equal, found[::2], expected[::2])) and torch.allclose(found[1], expected[1])
    assert fused.report().scopes[0].fused_calls > 0


def test_a_view_whose_strides_torch_tells_otherwise_beforehand() -> None:
    """An image from rows of its points, as attention on images makes it: of one image the first stride is another."""

    def function(h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        return (h.transpose(-1, -2).reshape(x.shape) + x) * 0.5

    fused = fusion.fuse(function, {"profile": False})
    with torch.no_grad():
        for batch, side in ((1, 8), (2, 12), (1, 16), (2, 8), (1, 12), (1, 9)) * 2:
            x, h = torch.randn(batch, 32, side, side), torch.randn(batch, side * side, 32)
            found, expected = fused(h, x), function(h, x)
            assert found.stride() == expected.stride() and torch.allclose(found, expected)
    assert fused.report().scopes[0].fused_calls > 6


@pytest.mark.parametrize("calls", [(0, 1, 2, 1, 2, 0), (2, 1, 2, 0, 1), (1, 1, 1, 2, 2, 2)])
def test_the_place_of_a_size_1_stride_among_the_others_decides_the_results_layout(
    quick: fusion.FusionConfig, calls: tuple[int, ...], without_gradients: None
) -> None:
    """Strides 0, between those of the other dimensions, and above them, in another order and at other sizes each."""

    def forward(x: torch.Tensor) -> torch.Tensor:
        return x + 7

    fused = fusion.fuse(forward, quick)
    for size in (4, 9, 3, 4):
        for kind in calls:
            dense = torch.randn(1, size, 8)
            x = dense.as_strided(dense.shape, ((0, 7, 3 * 8 * size)[kind], 8, 1))
            result = fused(x)
            assert result.stride() == forward(x).stride()
            assert torch.equal(result, forward(x))
    assert fusion.report(fused).scopes[0].fused_calls


def test_a_step_of_heads_from_a_split_has_plans_for_every_batch() -> None:
    """One token of query, key and value from one product, as GPT-2 makes them: a view of other strides than told."""

    def function(x: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        parts = torch.nn.functional.linear(x, w).split(16, dim=2)
        heads = tuple(part.view(*part.shape[:-1], -1, 4).transpose(1, 2) for part in parts)
        return *heads, heads[0] * 2 + heads[1]

    fused = fusion.fuse(function, {"profile": False, "matrix_products": "library"})
    w = torch.randn(48, 16)
    with torch.no_grad():
        for batch, tokens in ((3, 1), (3, 1), (2, 1), (5, 1), (1, 1), (3, 6), (1, 6), (2, 6), (2, 1), (5, 1)):
            x = torch.randn(batch, tokens, 16)
            found, expected = fused(x, w), function(x, w)
            assert [t.stride() for t in found] == [t.stride() for t in expected]
            assert all(map(torch.equal, found, expected))
    scope = fused.report().scopes[0]
    assert scope.fused_calls > 2 and scope.state == "fused" and not scope.reason
