"""Results have eager's strides, in dimensions of size 1 too: what follows may read them, or choose a layout by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fusion

FUNCTIONS: dict[str, Callable[[torch.Tensor], Any]] = {
    "pointwise": lambda x: torch.tanh(x) * 2 + 1,
    "cat": lambda x: torch.cat([torch.tanh(x), x * 2], 1),
    "stack": lambda x: torch.stack([x * 2, x + 1], 1),
    "pad": lambda x: F.pad(x * 2, (1, 1)) + 1,
    "group norm": lambda x: F.group_norm(torch.tanh(x), 1) * 2,
    "softmax": lambda x: torch.softmax(x * 2, -1) + 1,
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


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", FUNCTIONS)
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
