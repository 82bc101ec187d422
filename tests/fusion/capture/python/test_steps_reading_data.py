"""Modules that read data in Python become steps, at once or late, and only in the calls that need it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from step_models import Block, agree, no_grad, rand, warmed
from tiny import planned, scopes

import fusion


class Picks(torch.nn.Module):
    """Routes rows by their data, in Python."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = [row * 2 if row > 0 else row for row in x.sum(-1).tolist()]
        return x * torch.tensor(kept).unsqueeze(-1)


def test_a_module_that_reads_data_becomes_a_step_of_its_block(quick: fusion.FusionConfig) -> None:
    fused, eager = warmed(quick, inner=Picks)
    before = planned(fused)
    agree(fused, eager, rand(7))
    agree(fused, eager, rand(7, seed=3))
    assert all(planned(fused)[f"layers.{i}"] > before[f"layers.{i}"] for i in range(3))
    rows = {s.name: s for s in fusion.report(fused).scopes}
    assert all(rows[f"layers.{i}"].state == "fused" for i in range(3))
    assert rows["layers.0.inner"].state == "eager" and "data_read: tolist" in rows["layers.0.inner"].reason


class Splits(torch.nn.Module):
    """Reads data in its own forward; its parts can be recorded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = Block(), Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.second(y * y[0].tolist()[0])


def test_a_forward_that_reads_data_leaves_its_parts_as_scopes(quick: fusion.FusionConfig) -> None:
    eager = Splits().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (3, 3, 5, 5, 4):
        agree(fused, eager, rand(rows))
    assert list(scopes(fused)) == ["Splits", "first", "second"]
    before = planned(fused)
    agree(fused, eager, rand(4))
    after = planned(fused)
    assert (after["Splits"], after["first"] - before["first"], after["second"] - before["second"]) == (0, 1, 1)
    assert "data_read" in fusion.report(fused).scopes[0].reason


class Reader(torch.nn.Module):
    """Reads data in Python when it is told to: then its scope cannot be recorded with it inside."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, through_numpy: bool = False) -> torch.Tensor:
        y = torch.tanh(self.linear(x)) * 2
        return torch.from_numpy(np.sort(y.numpy())) if through_numpy else y


class ReadsFirst(torch.nn.Module):
    """A module that becomes a step late, before blocks that were steps from the start."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reader = Reader()
        inner = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU()) for _ in range(2)]
        self.blocks = torch.nn.ModuleList(inner)

    def forward(self, x: torch.Tensor, through_numpy: bool = False) -> torch.Tensor:
        y = self.reader(x, through_numpy) + x
        for block in self.blocks:
            y = block(y) * 0.5 + y
        return y


def test_a_module_that_becomes_a_step_later_does_not_answer_in_older_logs(quick: fusion.FusionConfig) -> None:
    eager, model = ReadsFirst().eval(), fusion.enable(ReadsFirst().eval(), quick)
    calls = [(4, False)] * 3 + [(4, True)] * 3 + [(6, False)] * 2 + [(7, False)]
    for number, (rows, through_numpy) in enumerate(calls):
        x = torch.randn(2, rows, 8, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            torch.testing.assert_close(model(x, through_numpy), eager(x, through_numpy))
    root = next(scope for scope in fusion.report(model).scopes if scope.name == "ReadsFirst")
    assert root.fused_calls >= 3 and root.fallbacks == 0, root


class Experts(torch.nn.Module):
    """Rows go to the expert that data names, one expert at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(8))

    def forward(self, x: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for expert in torch.unique(choice).unbind():
            rows = (choice == expert).nonzero().squeeze(-1)
            out.index_add_(0, rows, torch.sigmoid(self.up[int(expert.item())](x[rows])) * 2)
        return out


class Routed(torch.nn.Module):
    """A block whose middle is led by data, and whose ends are not."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = Experts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(x * 2 + 1)
        return x + self.experts(y, (x[:, 0] * 4).long().clamp(-4, 3) + 4) * torch.sigmoid(y)


def test_experts_that_data_chooses_call_by_call_become_an_eager_step(quick: fusion.FusionConfig) -> None:
    eager = Routed().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for seed in range(12):
        agree(fused, eager, rand(5, seed=seed))
    report = {scope.name: scope for scope in fusion.report(fused).scopes}
    assert "data_read" in report["experts"].reason
    assert report["Routed"].fused_calls, "the ends run in a plan"
    assert sum(scope.recordings for scope in report.values()) <= 4, "not one recording for each choice"
    for linear in fused.experts.up:
        linear.weight = torch.nn.Parameter(linear.weight * 2)
    for linear in eager.experts.up:
        linear.weight = torch.nn.Parameter(linear.weight * 2)
    agree(fused, eager, rand(5, seed=3))


class Part(torch.nn.Module):
    """Reads data in calls of one structure only."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0

    def forward(self, x: torch.Tensor, listed: bool) -> torch.Tensor:
        return x * self.scale + (len(x.tolist()) if listed else 0)


class Whole(torch.nn.Module):
    """Around such a part."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Part()

    def forward(self, x: torch.Tensor, listed: bool = False) -> torch.Tensor:
        return torch.tanh(self.part(x, listed) + 1) * 2


@pytest.mark.parametrize("first", [False, True])
def test_a_module_is_a_step_only_in_calls_that_cannot_be_recorded_through_it(
    first: bool, quick: fusion.FusionConfig
) -> None:
    eager = Whole().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for listed in (first, not first):
        for _ in range(4):
            agree(fused, eager, rand(4), listed)
    assert "part" in {scope.name for scope in fusion.report(fused).scopes}
    fused_calls = sorted(c.coverage for k in scopes(fused)["Whole"].known for c, _ in k.plans.values())
    assert fused_calls == [(3, 3), (5, 5)], "one plan calls the part, one looks into it"
    before = planned(fused)["Whole"]
    agree(fused, eager, rand(4), False)
    agree(fused, eager, rand(4), True)
    assert planned(fused)["Whole"] == before + 2
    fused.part.scale = eager.part.scale = 3.0  # still watched, for the calls that look into it
    agree(fused, eager, rand(4), False)
    agree(fused, eager, rand(4), True)


class Counts(torch.nn.Module):
    """Tells in Python how many rows go first."""

    def forward(self, x: torch.Tensor) -> int:
        return int((x[:, 0] > 0).sum().tolist())


class Parts(torch.nn.Module):
    """Goes by what such a step tells."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ordered, first = torch.tanh(x + 1)[x[:, 0].argsort(descending=True)], self.counts(x)
        return torch.cat([ordered[:first] * 2, ordered[first:] * 3])


class AroundSplits(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.splits = Parts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.sin(x * 2)
        return torch.sigmoid(self.splits(y)) + y


def test_a_part_that_goes_by_numbers_of_a_step_becomes_a_step(quick: fusion.FusionConfig) -> None:
    eager = AroundSplits().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for seed in range(16):
        agree(fused, eager, rand(3, seed=seed))  # 0 to 3 rows each
    report = {scope.name: scope for scope in fusion.report(fused).scopes}
    assert "data_read" in report["splits"].reason
    assert report["AroundSplits"].fused_calls > 4
    assert report["AroundSplits"].recordings <= 6, "not one for each division of the rows"


class Sized:
    """Tells a forward a length."""

    def __init__(self, length: int) -> None:
        self.length = length

    def told(self) -> int:
        return self.length


fusion.register_island(Sized, "told", effect=False)


class Leading(torch.nn.Module):
    """As many columns as its data says."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, : max(2, int(x[0].tolist()[0]))] * 1


class FirstRow(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:1] * (2 if x[0].tolist()[0] > 0 else 3)


class Told(torch.nn.Module):
    """Its second step's result is as wide as the first one's, which is as long as a number says."""

    def __init__(self) -> None:
        super().__init__()
        self.leading, self.first = Leading(), FirstRow()

    def forward(self, x: torch.Tensor, sized: Sized) -> torch.Tensor:
        wide = self.leading(torch.exp(x.new_zeros(sized.told(), 8)) * x.mean())
        return self.first(wide.tanh() + wide).tanh() + 1


def test_a_size_of_a_tensor_whose_own_size_follows_a_number(quick: fusion.FusionConfig) -> None:
    fused, eager = fusion.enable(Told().eval(), quick), Told().eval()
    for length in (5, 5, 6, 7):
        for mean in (3.0, 4.0, 3.0):
            x = torch.full((2, 3), mean)
            torch.testing.assert_close(no_grad(fused, x, Sized(length)), no_grad(eager, x, Sized(length)))
    assert planned(fused)["Told"] >= 6, fusion.report(fused)
