"""Steps that return what they are given, or a view of it: a call that is made again has one memory for both."""

from __future__ import annotations

import copy
from typing import Any

import torch
from tiny import planned

import fusion


class Block(torch.nn.Module):
    """The second one overwrites what the first one returned."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.inner = number, torch.nn.Identity()

    def forward(self, x: torch.Tensor, held: torch.Tensor | None = None) -> torch.Tensor:
        if held is not None:
            held.add_(100)
        return x * (2 + self.number)


class Rows(torch.nn.Module):
    """Returns a view of what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[1:] if x[0, 0].tolist() > -1e9 else x[:1]


class SizesAsNumbers(torch.nn.Module):
    """Cannot be recorded with symbols for sizes, which turns out when its steps have run."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Block(0), Block(1)])

    def forward(self, x: torch.Tensor) -> Any:
        y = self.blocks[0](x)
        before = y + 1
        z = before * self.blocks[1](x, y)
        return z + torch.as_tensor(list(range(z.shape[0]))).sum() * hash(z.shape[0]), y, before


class Every(torch.nn.Module):
    """Writes to what it is given, and returns a view of it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x[::2].add_(3)
        return x[1:]


class Twice(torch.nn.Module):
    """Gives the same tensor to two such blocks, and returns what the second one returns."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList([Every(), Every()])
        self.weight = torch.nn.Parameter(torch.ones(4, 8), requires_grad=False)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = -self.weight
        for block in self.blocks:
            view = block(y)
        return view, torch.ones_like(x, dtype=torch.float16), torch.stack((x, x), 0).tanh()


class FirstRow(torch.nn.Module):
    """Overwrites the first row of what it is given."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x[0] = 7.0
        return x.sum() if x[0, 0].tolist() > -1e9 else x


class OfOneRow(torch.nn.Module):
    """Hands its argument on to such a step."""

    def __init__(self) -> None:
        super().__init__()
        self.first_row = FirstRow()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        total = self.first_row(x)
        return x, torch.tanh(total) * 2


class Viewed(torch.nn.Module):
    """Returns a tensor and a step's view of it."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = Rows()

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = torch.tanh(x) * x
        return y, self.rows(y)


def rows_of(count: int, turn: int) -> torch.Tensor:
    return torch.rand(count, 8, generator=torch.Generator().manual_seed(turn))


def test_a_recorded_call_that_is_made_again_after_a_step_has_written(quick: fusion.FusionConfig) -> None:
    eager = SizesAsNumbers().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for turn, rows in enumerate((3, 3, 4, 4, 5)):
        with torch.no_grad():
            found, wanted = fused(rows_of(rows, turn)), eager(rows_of(rows, turn))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), f"call {turn}"


def test_steps_that_write_to_one_tensor_and_return_views_of_it(quick: fusion.FusionConfig) -> None:
    eager = Twice().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for turn, rows in enumerate((5, 5, 5, 6, 6, 7, 5)):
        with torch.no_grad():
            found, wanted = fused(rows_of(rows, turn))[0], eager(rows_of(rows, turn))[0]
        assert torch.equal(found, wanted), f"call {turn}"


def test_a_step_that_writes_to_an_argument_whose_rows_are_one(quick: fusion.FusionConfig) -> None:
    eager = OfOneRow().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for turn, rows in enumerate((3, 3, 4, 4, 5, 5, 3)):
        with torch.no_grad():
            found, wanted = (m(rows_of(1, turn).expand(rows, 8)) for m in (fused, eager))
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True)), f"call {turn}"


def test_a_steps_view_shares_memory_with_what_the_step_was_given(quick: fusion.FusionConfig) -> None:
    fused = fusion.enable(Viewed().eval(), quick)
    for turn, rows in enumerate((3, 3, 3, 4, 4, 5, 3)):
        with torch.no_grad():
            whole, view = fused(rows_of(rows, turn))
        view.fill_(7.0)
        assert torch.equal(whole[1:], view), f"call {turn}"
    assert planned(fused)["Viewed"] >= 3
