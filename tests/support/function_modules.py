"""Functions as modules, for tests of what a forward may do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F


class Module(torch.nn.Module):
    """A parameter, a norm-like chain that would fuse, and what a test adds to it."""

    def __init__(self, step: Callable[..., Any]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 2.0, 8))
        self.step = step
        self.count = 0
        self.seen: list[Any] = []
        self.last: Any = None
        self.register_buffer("total", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> Any:
        return self.step(self, F.silu(x) * self.weight)


class Function(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def input_of(value: float) -> torch.Tensor:
    """Values of one sign: their sign decides which way a branch goes."""
    return torch.linspace(0.1, 1.0, 24).reshape(3, 8) * value
