"""A small block beside its fused copy, for tests of what happens around a scope."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from graphs import normal as rand
from tiny import assert_fused, assert_untouched, bits, close, no_grad, planned, scopes

import fusion


class Norm(torch.nn.Module):
    """An RMSNorm, as a submodule that tests replace."""

    def __init__(self, width: int = 16, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 1.5, width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class Block(torch.nn.Module):
    """Norm, two projections and a gate."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm = Norm(width)
        self.gate = torch.nn.Linear(width, width, bias=False)
        self.up = torch.nn.Linear(width, width, bias=False)
        self.scale = 1.5
        self.register_buffer("shift", torch.linspace(-1, 1, width))

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None = None, *, twice: bool = False) -> torch.Tensor:
        y = self.norm(x)
        y = F.silu(self.gate(y)) * self.up(y) * self.scale + self.shift
        if bias is not None:
            y = y + bias
        return y * 2 if twice else y


class Pair:
    """A block under fusion and its eager twin; both go through the same changes."""

    def __init__(self, config: Any, make: Callable[[], torch.nn.Module] = Block) -> None:
        self.eager = make().eval()
        self.fused = fusion.enable(make().eval(), config)

    def __call__(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The fused result, checked."""
        exact = no_grad(
            copy.deepcopy(self.eager).double(), *map(double, args), **{k: double(v) for k, v in kwargs.items()}
        )
        eager = no_grad(self.eager, *args, **kwargs)
        before = [(a, bits(a)) for a in (*args, *kwargs.values()) if isinstance(a, torch.Tensor)]
        found = no_grad(self.fused, *args, **kwargs)
        close(found, eager, exact, 2)
        for tensor, was in before:
            assert_untouched(tensor, was)
        assert not any(found.data_ptr() == a.data_ptr() for a, _ in before if a.numel())
        return found

    def change(self, what: Callable[[torch.nn.Module], Any]) -> None:
        """The same change to both."""
        what(self.eager)
        what(self.fused)

    def warm(self, *sizes: int) -> None:
        """Recorded and trusted."""
        for rows in (3, 5, 3):
            self(rand(rows, 16))
        before = planned(self.fused)
        self(rand(4, 16))
        assert_fused(self.fused, before)

    @property
    def scope(self) -> Any:
        (scope,) = scopes(self.fused).values()
        return scope


def double(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


class Stack(torch.nn.Module):
    def __init__(self, depth: int = 3) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Block() for _ in range(depth))
        for i, layer in enumerate(self.layers):
            layer.scale = 1.0
            with torch.no_grad():
                layer.shift.add_(i)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x
