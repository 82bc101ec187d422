"""What the tests of steps share: blocks with something put in, and how fused and eager are compared."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from tiny import no_grad, planned

import fusion


class Block(torch.nn.Module):
    """A projection and a gate, with something that a test puts in."""

    def __init__(self, inner: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(16, 16)
        self.inner = inner if inner is not None else torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(F.silu(self.linear(x)) * x) + x


class Model(torch.nn.Module):
    """Arithmetic around blocks."""

    def __init__(self, count: int = 3, inner: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(Block(inner() if inner else None) for _ in range(count))
        self.scale = 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x * self.scale).tanh() + 1
        for layer in self.layers:
            x = layer(x)
        return F.softplus(x) * self.scale


def rand(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed + rows))


def agree(fused: torch.nn.Module, eager: torch.nn.Module, *args: Any) -> Any:
    """Some ten float32 roundings apart at most: kernels round where eager does, exp and tanh within 2 ulp of it."""
    found, expected = no_grad(fused, *args), no_grad(eager, *args)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    return found


def warmed(quick: fusion.FusionConfig, **options: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model whose scopes all have trusted plans, and its eager twin."""
    eager = Model(**options).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (3, 3, 5, 5, 4, 4):
        agree(fused, eager, rand(rows))
    assert all(planned(fused)[name] for name in ("Model", "layers.0", "layers.1")), "plans answer by now"
    return fused, eager


class Counted(torch.nn.Module):
    """Counts its calls in Python, and reads data so that it is a step."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * 2 if x[0].tolist()[0] > 0 else x
