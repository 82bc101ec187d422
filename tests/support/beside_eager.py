"""A module whose forward a test writes, and a stack of layers with a cache: under fusion, beside eager equals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from tiny import close, no_grad, planned
from torch.utils import _pytree as pytree

import fusion


class Module(torch.nn.Module):
    """One parameter, a forward `step(module, x, extra)`, and the attributes that a test adds."""

    def __init__(self, step: Callable[..., Any], **attributes: Any) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.linspace(0.5, 2.0, 16))
        self.step = step
        for name, value in attributes.items():
            setattr(self, name, value)

    def forward(self, x: torch.Tensor, extra: Any = None) -> Any:
        return self.step(self, x, extra)


class Store:
    """A cache whose update is called natively."""

    def update(self, key: torch.Tensor, value: torch.Tensor, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        return key + 0, value + 0


fusion.register_island(Store, "update", grows=(-2,))


class Layer(torch.nn.Module):
    """A layer whose number its cache is asked with, and whose window decides what it computes."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.layer_idx = index
        self.window = index * 10
        self.linear = torch.nn.Linear(16, 16)

    def forward(self, x: torch.Tensor, cache: Store) -> torch.Tensor:
        key, _ = cache.update(x, x, self.layer_idx)
        y = F.silu(x) * x
        if x.shape[1] > self.window:
            y = y * 2
        return self.linear(y) + key


class Stack(torch.nn.Module):
    """Layers of one class."""

    def __init__(self, count: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList([Layer(i) for i in range(count)])

    def forward(self, x: torch.Tensor, cache: Store) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, cache)
        return x


def values(length: int = 10, width: int = 16, batch: int = 2) -> torch.Tensor:
    """Another tensor for every length, the same on every call."""
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(length * 31 + width))


def pair(config: fusion.FusionConfig, step: Callable[..., Any], **attributes: Any) -> tuple[Module, Module]:
    """A module under fusion and its equal without."""
    eager = Module(step, **attributes).eval()
    return fusion.enable(copy.deepcopy(eager), config), eager


def double(value: Any) -> Any:
    return value.double() if isinstance(value, torch.Tensor) else value


def same(module: torch.nn.Module, eager: torch.nn.Module, *args: Any, steps: int = 1) -> None:
    """A call of both gives one result, within the rounding of the kernels, and leaves equal arguments."""
    twin = copy.deepcopy(eager).double()
    exact = no_grad(twin, *pytree.tree_map(double, copy.deepcopy(args)))
    mine, theirs = copy.deepcopy(args), copy.deepcopy(args)
    found, wanted = no_grad(module, *mine), no_grad(eager, *theirs)
    close(found, wanted, exact.double(), steps)
    for a, b in zip(pytree.tree_leaves(mine), pytree.tree_leaves(theirs), strict=True):
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b or type(a) is Store


def trust(module: torch.nn.Module, eager: torch.nn.Module) -> None:
    """Calls until a plan answers at two lengths."""
    before = sum(planned(module).values())
    for length in (10, 10, 7, 7):
        same(module, eager, values(length))
    assert sum(planned(module).values()) - before >= 2, "no plan answered: the test would show nothing"
