"""Modules that data leads: what is recorded around them stands, and no list of numbers has recordings of its own."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pair import Stack
from tiny import no_grad, planned, scopes

import fusion
from fusion.jit import call_recorder


def rand(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(100 * seed + rows))


def agree(fused: torch.nn.Module, eager: torch.nn.Module, *args: Any) -> None:
    """Within rounding: a kernel sums in another order."""
    torch.testing.assert_close(no_grad(fused, *args), no_grad(eager, *args), rtol=1e-5, atol=1e-6)


class Leaf(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x * 2 + 1) * 3


class Inner(torch.nn.Module):
    """Reads data in Python when it is told to, around a part that does not."""

    def __init__(self, part: torch.nn.Module) -> None:
        super().__init__()
        self.part = part
        self.scale = 2.0

    def forward(self, x: torch.Tensor, listed: bool) -> torch.Tensor:
        rows = len(x.tolist()) if listed else 1
        more = (listed,) if isinstance(self.part, Inner) else ()
        return self.part(x * rows, *more) * self.scale


class Outer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.middle = Inner(Inner(Leaf()))

    def forward(self, x: torch.Tensor, listed: bool = False) -> torch.Tensor:
        return torch.sigmoid(self.middle(x * 0.5, listed)) + x


def test_recordings_outlast_the_taking_apart_of_what_is_inside(quick: fusion.FusionConfig) -> None:
    eager = Outer().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (3, 4, 3):
        agree(fused, eager, rand(rows))
    for _ in range(8):
        agree(fused, eager, rand(4), True)
    found = scopes(fused)
    assert {"middle.part", "middle.part.part"} <= found.keys(), "the step was taken apart, and so was its part"
    assert found["middle.part.part"].statistics.planned[0], "which runs in a plan"
    before, recordings = planned(fused)["Outer"], found["Outer"].statistics.recordings
    agree(fused, eager, rand(5))
    agree(fused, eager, rand(4), True)
    assert planned(fused)["Outer"] == before + 2 and found["Outer"].statistics.recordings == recordings
    assert found["Outer"].lifecycle.resets == 0
    for model in (fused, eager):
        model.middle.part.scale = 5.0  # still watched
    for rows in (3, 4, 3, 5):
        agree(fused, eager, rand(rows))
    assert found["Outer"].lifecycle.resets == 1


class Counts(torch.nn.Module):
    """Tells in Python how many rows are above a threshold."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.register_buffer("least", torch.tensor(least))

    def forward(self, x: torch.Tensor) -> int:
        return int((x[:, 0] > self.least).sum().tolist())


class Parts(torch.nn.Module):
    """Goes by what such a step tells."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.counts = Counts(least)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.counts(x)
        return torch.cat([torch.tanh(x[:first] * 2) + 1, torch.sigmoid(x[first:]) * 3])


class Layer(torch.nn.Module):
    def __init__(self, least: float = 0.0) -> None:
        super().__init__()
        self.parts = Parts(least)

    def forward(self, x: torch.Tensor, negative: bool = False) -> torch.Tensor:
        y = x + 0.01 * torch.sin(self.parts(x))
        return -y if negative else y


class Layers(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([Layer(10.0), Layer(0.0)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


def ordered(low: int, middle: int, high: int, seed: int = 0) -> torch.Tensor:
    """Rows whose first numbers are below 0, between 0 and 10, and above 10."""
    x = rand(low + middle + high, seed)
    x[:, 0] = torch.tensor([20.0] * high + [5.0] * middle + [-5.0] * low)
    return x


def test_data_that_leads_calls_of_one_structure_leaves_recordings_of_others(quick: fusion.FusionConfig) -> None:
    eager = Layer().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for seed, middle in enumerate((3, 4, 3, 4, 3)):
        agree(fused, eager, ordered(4, middle, 0, seed), True)
    kept = list(scopes(fused)["Layer"].known)
    assert [known.reader for known in kept] == ["parts"]
    for middle in (3, 3, 3, 1, 1, 1, 0, 0, 0, 3, 3):
        agree(fused, eager, ordered(4, middle, 0), False)
    assert "data_read" in {s.name: s for s in fusion.report(fused).scopes}["parts"].reason, "it became a step"
    assert kept[0] in scopes(fused)["Layer"].known
    before = planned(fused)["Layer"]
    agree(fused, eager, ordered(4, 3, 0, 9), True)
    assert planned(fused)["Layer"] == before + 1


def test_a_layer_takes_over_from_its_equals_what_data_leads(quick: fusion.FusionConfig) -> None:
    eager = Layers().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    found = scopes(fused)
    calls = [(4, 3, 3)] * 4 + [(5, 2, 4), (6, 3, 2)]  # recorded and trusted
    for seed, rows in enumerate([*calls, (4, 3, 0), (4, 3, 2), (4, 3, 3), (4, 3, 1), (4, 3, 3), (4, 3, 3)]):
        agree(fused, eager, ordered(*rows, seed))
    assert [found[f"layers.{i}"].statistics.fallbacks for i in range(2)] == [2, 0]
    for seed, rows in enumerate([(4, 1, 0), (4, 1, 1), (4, 0, 0), (4, 2, 1), (4, 1, 0), (3, 0, 1), (4, 0, 0)]):
        agree(fused, eager, ordered(*rows, 20 + seed))
    assert [found[f"layers.{i}"].statistics.fallbacks for i in range(2)] == [2, 1], "one was enough"
    before = planned(fused)
    agree(fused, eager, ordered(3, 3, 1, 40))
    after = planned(fused)
    assert all(after[f"layers.{i}"] == before[f"layers.{i}"] + 1 for i in range(2))


class Bins(torch.nn.Module):
    """Rows in bins, how many in each is told in a list."""

    def forward(self, x: torch.Tensor, sizes: list[int]) -> torch.Tensor:
        return torch.cat([torch.tanh(piece * (i + 1)) + i for i, piece in enumerate(x.split(sizes))])


def test_lists_of_numbers_that_vary_are_not_recorded_for_ever(quick: fusion.FusionConfig) -> None:
    eager = Bins().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    lists = [[4, 4], [3, 5], [2, 6], [5, 3], [6, 2], [0, 8]]
    for sizes in (*lists, *lists):
        agree(fused, eager, rand(8), sizes)
    (scope,) = scopes(fused).values()
    assert scope.statistics.recordings == 2
    before = planned(fused)["Bins"]
    for sizes in lists:
        agree(fused, eager, rand(8, seed=3), sizes)
    assert planned(fused)["Bins"] == before + 2, "the lists that were recorded have plans, the others none"
    assert "vary from call to call" in str(scope.statistics.last_reason)


def test_a_size_that_varying_numbers_fix_is_recorded_once(quick: fusion.FusionConfig) -> None:
    eager = Bins().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    lists = [[4, 4], [3, 6], [2, 5], [5, 6], [6, 7]]
    for sizes in (*lists, *lists):
        agree(fused, eager, rand(sum(sizes)), sizes)
    (scope,) = scopes(fused).values()
    assert len(scope.known) == 1 and scope.statistics.recordings == 2
    before = planned(fused)["Bins"]
    agree(fused, eager, rand(8, seed=3), [4, 4])
    assert planned(fused)["Bins"] == before + 1


class Rows(torch.nn.Module):
    """Needs a size as a number; the list it is given is always the same."""

    def forward(self, x: torch.Tensor, scales: list[int]) -> torch.Tensor:
        return torch.tanh(x * scales[0] + float(int(x.shape[0]))) * scales[1]


def test_a_list_that_stays_the_same_is_no_reason_to_stay_eager(quick: fusion.FusionConfig) -> None:
    eager = Rows().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (3, 4, 5, 6, 3, 4, 5, 6):
        agree(fused, eager, rand(rows), [2, 3])
    before = planned(fused)["Rows"]
    for rows in (3, 4, 5, 6):
        agree(fused, eager, rand(rows), [2, 3])
    assert planned(fused)["Rows"] == before + 4, "a plan for each size"


def test_equal_layers_are_recorded_by_following_the_first(
    quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded: list[Any] = []
    record = call_recorder.record

    def noted(call: Any, *args: Any, **kwargs: Any) -> Any:
        recorded.append(call.module)
        return record(call, *args, **kwargs)

    monkeypatch.setattr(call_recorder, "record", noted)
    eager = Stack().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (3, 3, 4, 4, 5):
        agree(fused, eager, rand(rows))
    assert [module for module in recorded if module is not fused] == [fused.layers[0]]
    assert all(planned(fused)[f"layers.{i}"] for i in range(3))
