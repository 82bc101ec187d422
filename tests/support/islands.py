"""A model that makes opaque calls: a store among its arguments that grows."""

from __future__ import annotations

import torch

import fusion


class Memory:
    """A store that grows; `add` is registered as called natively."""

    def __init__(self) -> None:
        self.held: list[torch.Tensor] = []
        self.calls = 0

    def add(self, x: torch.Tensor, mark: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        if x.shape[-1] == 13:
            raise ValueError("an unlucky width")
        self.held.append(x.clone())
        return torch.cat(self.held), x * 2

    def length(self) -> int:
        return sum(h.shape[0] for h in self.held)


fusion.register_island(Memory, "add", effect=True, grows=(0,))
fusion.register_island(Memory, "length", effect=False)


class Remember(torch.nn.Module):
    def forward(self, x: torch.Tensor, memory: Memory) -> torch.Tensor:
        y = torch.exp(x) * 2 + memory.length()
        everything, double = memory.add(y, 5)
        return everything.mean(0) * torch.sigmoid(double) + 1
