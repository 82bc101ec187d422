"""A SubGraph of several parts, for tests of every backend."""

from __future__ import annotations

from dataclasses import replace

import torch
from graphs import LENGTH, normal, trace

from fusion.patterns.graph import SubGraph


def three(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor, n: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Pointwise, a softmax over other rows that reads a tensor of the first part too, and integers."""
    return x * 2 + w, torch.softmax(y * w, -1), (n + 3).clamp(max=9), y.sum(-1)


def inputs(length: int = LENGTH, width: int = 16) -> tuple[torch.Tensor, ...]:
    integers = torch.arange(length * 3).reshape(length, 3)
    return normal(length, width), normal(2, length, width, seed=1).bfloat16(), normal(width, seed=2), integers


def graph_of(length: int = LENGTH) -> SubGraph:
    """The calls of `three` in three parts; the last one's outputs are of different dtype and rank."""
    whole = trace(three, *inputs(length), dynamic={LENGTH: "s0"})
    first, second, third, last = whole.outputs
    return replace(whole, outputs=(first, second, last, third), bundle=(1, 2, 1))
