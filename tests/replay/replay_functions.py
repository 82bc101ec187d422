"""Plain functions and small modules that are replayed: each shows one thing that models have in the midst of others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

import fusion


class Memory:
    """A store that grows, as a cache does; its methods are registered."""

    def __init__(self, *held: Tensor) -> None:
        self.held = list(held)

    def add(self, x: Tensor) -> Tensor:
        self.held.append(x.clone())
        return torch.cat(self.held)

    def length(self) -> int:
        return sum(held.shape[0] for held in self.held)


fusion.register_island(Memory, "add", grows=(0,))
fusion.register_island(Memory, "length", effect=False)


class Pair(NamedTuple):
    """A nested result."""

    first: Tensor
    second: dict[str, Tensor]


class ReadsData(torch.nn.Module):
    """Goes by the numbers in a tensor, so that a plan calls it as it is."""

    def forward(self, x: Tensor) -> Tensor:
        rows = [row for row, chosen in enumerate((x.sum(-1) > 0).tolist()) if chosen]
        return x[rows].sum(0, keepdim=True) + x


class Blocks(torch.nn.Module):
    """Equal blocks around a module that reads data."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(2))
        self.reads = ReadsData()

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = functional.silu(block(self.reads(x.tanh()))) * x
        return x.softmax(-1)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    return functional.silu(gate) * up


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    total = x + residual
    wide = total.float()
    scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * (wide * scale).to(x.dtype), total


def rotary(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    def turned(x: Tensor) -> Tensor:
        half = x.shape[-1] // 2
        return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin

    return turned(query), turned(key)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    return (torch.tanh(scores / 30.0) * 30.0).masked_fill(mask, float("-inf")).softmax(-1)


def writes(x: Tensor, held: Tensor) -> Tensor:
    """Writes to what it made and to what it was given."""
    made = x * 2
    made.add_(1)
    made[:, 0] = 0.5
    held[:, 1:] = made[:, 1:].exp()
    held.mul_(0.5)
    return made.tanh() + held


def draws(x: Tensor) -> Tensor:
    return functional.dropout(x.sigmoid(), 0.25, training=True) + torch.rand_like(x) * x


def conditions(x: Tensor, mask: Tensor) -> Tensor:
    """Python asks a tensor for a value."""
    y = x.exp() - 1
    return y * 2 if mask.all() else torch.where(mask, y, x) + int(mask.sum())


def joins(x: Tensor, y: Tensor) -> Tensor:
    """Parts of tensors put together and taken apart."""
    wide = functional.pad(torch.cat((x, y * 2), 1), (1, 0))
    first, second = wide.chunk(2, -1)
    return torch.stack((first.relu(), second[:, : first.shape[1]].abs()), 1).flatten(1)


def nested(parts: list[Tensor], options: dict[str, Any]) -> Pair:
    """Containers in and out, and an item that is set in one it was given."""
    total = functional.gelu(parts[0] + parts[1]) if options["scale"] is None else parts[0] * options["scale"]
    options["seen"] = total.abs()
    return Pair(total.cumsum(-1), {"mean": total.mean(-1), "same": parts[1]})


def remembers(x: Tensor, memory: Memory) -> Tensor:
    y = torch.exp(x) * 2 + memory.length()
    return memory.add(y).mean(0) * torch.sigmoid(y) + 1


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Written(NamedTuple):
    """What is replayed of a function or module: `inputs(rows)` are its arguments."""

    subject: Callable[[], Any]
    inputs: Callable[[int], tuple[Any, ...]]
    config: tuple[tuple[str, Any], ...] = ()


def _norm_inputs(dtype: torch.dtype) -> Callable[[int], tuple[Any, ...]]:
    return lambda n: (normal(n, 64, dtype=dtype), normal(n, 64, seed=1, dtype=dtype), normal(64, seed=2, dtype=dtype))


def _scaled(value: float | None) -> Callable[[int], tuple[Any, ...]]:
    return lambda n: ([normal(n, 12), normal(n, 12, seed=1)], {"scale": value})


FUNCTIONS: dict[str, Written] = {
    "swiglu": Written(lambda: swiglu, lambda n: (normal(n, 96), normal(n, 96, seed=1))),
    "swiglu_long_rows": Written(lambda: swiglu, lambda n: (normal(n, 4096), normal(n, 4096, seed=1))),
    "add_rms_norm": Written(lambda: add_rms_norm, _norm_inputs(torch.bfloat16)),
    "add_rms_norm_in_fp32": Written(lambda: add_rms_norm, _norm_inputs(torch.bfloat16), (("numerics", "fp32"),)),
    "rotary": Written(
        lambda: rotary,
        lambda n: (normal(2, 4, n, 16), normal(2, 2, n, 16, seed=1), normal(n, 16, seed=2), normal(n, 16, seed=3)),
    ),
    "masked_softmax": Written(lambda: masked_softmax, lambda n: (normal(2, n, 24), normal(n, 24, seed=1) > 0.5)),
    "writes": Written(lambda: writes, lambda n: (normal(n, 8), normal(n, 8, seed=1))),
    "draws": Written(lambda: draws, lambda n: (normal(n, 8),)),
    "conditions": Written(lambda: conditions, lambda n: (normal(n, 8), normal(n, 8) < 9.0)),
    "joins": Written(lambda: joins, lambda n: (normal(n, 9), normal(n, 8, seed=1))),
    "nested": Written(lambda: nested, _scaled(None)),
    "nested_with_a_number": Written(lambda: nested, _scaled(0.5)),
    "remembers": Written(lambda: remembers, lambda n: (normal(n, 8), Memory(normal(n + 1, 8)))),
    "blocks_reading_data": Written(lambda: Blocks().eval(), lambda n: (normal(n, 16).abs(),)),
}
