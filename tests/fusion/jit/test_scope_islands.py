"""Calls that a plan makes natively: once a call, in order, and their errors passed on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from graphs import normal as rand
from islands import Memory, Remember
from tiny import no_grad, planned, scopes

import fusion


def remember_twins(quick: fusion.FusionConfig) -> tuple[Any, Any]:
    return fusion.enable(Remember().eval(), quick), Remember().eval()


def test_an_island_runs_once_a_call(quick: fusion.FusionConfig) -> None:
    model, eager = remember_twins(quick)
    for start in range(3):
        mine, theirs = Memory(), Memory()
        for rows in (3, 4, 2, 5, 1, 1, 3, 4):
            x = rand(rows, 8, seed=start)
            found, expected = no_grad(model, x, mine), no_grad(eager, x, theirs)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            assert mine.calls == theirs.calls and mine.length() == theirs.length()
    for a, b in zip(mine.held, theirs.held, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    assert planned(model)["Remember"] >= 6, scopes(model)["Remember"].statistics


def test_an_island_that_raises(quick: fusion.FusionConfig) -> None:
    model, eager = remember_twins(quick)
    for _ in range(2):
        mine, theirs = Memory(), Memory()
        for shape in ((3, 8), (2, 13), (4, 8), (2, 13), (5, 8)):
            x = rand(*shape)
            if shape[1] == 13:
                with pytest.raises(ValueError, match="unlucky"):
                    no_grad(eager, x, theirs)
                with pytest.raises(ValueError, match="unlucky"):
                    no_grad(model, x, mine)
            else:
                torch.testing.assert_close(no_grad(model, x, mine), no_grad(eager, x, theirs), rtol=1e-5, atol=1e-5)
            assert len(mine.held) == len(theirs.held)


class Catches(torch.nn.Module):
    def forward(self, x: torch.Tensor, memory: Memory) -> torch.Tensor:
        y = torch.exp(x) * 2 + 1
        try:
            _, double = memory.add(y)
        except ValueError:
            double = y * 3
        return torch.sigmoid(double) + y


class Moody(Memory):
    """Raises on its sixth call, after its effect."""

    def add(self, x: torch.Tensor, mark: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        self.held.append(x.clone())
        if self.calls in (2, 6, 7, 11):
            raise ValueError("not now")
        return torch.cat(self.held), x * 2


fusion.register_island(Moody, "add", effect=True, grows=(0,))


@pytest.mark.parametrize("make", [Catches, Remember], ids=["caught", "passed on"])
def test_an_island_that_raises_after_its_effect(make: Any, quick: fusion.FusionConfig) -> None:
    model, eager = fusion.enable(make().eval(), quick), make().eval()
    mine, theirs = Moody(), Moody()
    raised = 0
    for rows in (3, 4, 2, 5, 3, 3, 3, 4, 2, 3, 4, 5, 3):
        x = rand(rows, 8)
        outcomes = []
        for module, memory in ((model, mine), (eager, theirs)):
            try:
                outcomes.append(no_grad(module, x, memory))
            except ValueError as error:
                outcomes.append(str(error))
        found, expected = outcomes
        assert type(found) is type(expected)
        if isinstance(expected, str):
            raised += 1
            assert found == expected
        else:
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert mine.calls == theirs.calls and len(mine.held) == len(theirs.held)
    assert raised == (0 if make is Catches else 4)
    (scope,) = scopes(model).values()
    assert scope.statistics.planned[0] >= 2 and scope.statistics.fallbacks == 0, scope.statistics


def test_an_attribute_read_before_an_effect(quick: fusion.FusionConfig) -> None:
    class Reads(torch.nn.Module):
        def forward(self, x: torch.Tensor, memory: Memory) -> torch.Tensor:
            y = torch.exp(x) * (2 if memory.calls % 2 else 3)
            return memory.add(y)[1] + 1

    model, eager = fusion.enable(Reads().eval(), quick), Reads().eval()
    mine, theirs = Memory(), Memory()
    for rows in (3, 4, 5, 3, 4):
        x = rand(rows, 8)
        assert torch.equal(no_grad(model, x, mine), no_grad(eager, x, theirs))
        assert mine.calls == theirs.calls
    (scope,) = scopes(model).values()
    assert scope.statistics.recordings > 1, "each value that was read has a recording of its own"


class Ages(Memory):
    """Has a second number, which equals the first as long as nothing was dropped."""

    dropped = 0

    def seen(self) -> int:
        return self.length() + self.dropped


fusion.register_island(Ages, "seen", effect=False)


class Pins(torch.nn.Module):
    def forward(self, x: torch.Tensor, memory: Ages) -> torch.Tensor:
        return (torch.exp(x) * torch.full((1, 1), float(int(memory.length())))).tanh() + 1


class Compares(torch.nn.Module):
    def forward(self, x: torch.Tensor, memory: Ages) -> torch.Tensor:
        return (torch.exp(x) * 0.1).tanh() + 1 if memory.length() == memory.seen() else x.exp().sin() * 3


@pytest.mark.parametrize("make", [Pins, Compares])
def test_a_number_that_a_read_gave_and_the_forward_settled(make: Any, quick: fusion.FusionConfig) -> None:
    model, eager = fusion.enable(make().eval(), quick), make().eval()
    for length, dropped in ((5, 0), (5, 0), (6, 0), (7, 0), (6, 0), (6, 2), (5, 2), (5, 0), (5, 2), (6, 0), (7, 0)):
        memory = Ages()
        memory.held, memory.dropped = [rand(length, 8)], dropped
        x = rand(3 + length % 2, 8)
        torch.testing.assert_close(no_grad(model, x, memory), no_grad(eager, x, memory), rtol=1e-5, atol=1e-6)
    (scope,) = scopes(model).values()
    assert scope.statistics.planned[0] >= 2 and scope.statistics.fallbacks == 0, scope.statistics


class Fickle(Memory):
    """Returns a result of another kind once in a while, after its effect."""

    def add(self, x: torch.Tensor, mark: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        self.calls += 1
        self.held.append(x.clone())
        everything = torch.cat(self.held)
        return (everything.double() if self.calls % 4 == 0 else everything), x * 2


fusion.register_island(Fickle, "add", effect=True, grows=(0,))


def test_a_guard_that_fails_after_an_effect(quick: fusion.FusionConfig) -> None:
    model, eager = remember_twins(quick)
    mine, theirs = Fickle(), Fickle()
    for rows in (3, 4, 2, 5, 3, 3, 3, 4):
        x = rand(rows, 8)
        found, expected = no_grad(model, x, mine), no_grad(eager, x, theirs)
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
        assert mine.calls == theirs.calls and len(mine.held) == len(theirs.held)
    assert scopes(model)["Remember"].statistics.fallbacks >= 1


def test_a_kernel_that_raises_after_an_effect(quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    model, eager = remember_twins(quick)
    mine, theirs = Memory(), Memory()
    for rows in (3, 4, 2, 5, 3):
        no_grad(model, rand(rows, 8), mine), no_grad(eager, rand(rows, 8), theirs)
    plans = [pair for known in scopes(model)["Remember"].known for pair in known.plans.values()]

    def broken(*args: Any) -> Any:
        raise RuntimeError("launch failed")

    for compiled, plan in plans:  # the last kernel, which runs after the opaque call
        monkeypatch.setitem(plan.run.__globals__, f"kernel{len(compiled.calls) - 1}", broken)
    for rows in (3, 4, 5, 3):
        x = rand(rows, 8)
        torch.testing.assert_close(no_grad(model, x, mine), no_grad(eager, x, theirs), rtol=1e-5, atol=1e-5)
        assert mine.calls == theirs.calls and len(mine.held) == len(theirs.held)
    assert scopes(model)["Remember"].statistics.fallbacks >= 1


class Stumbles(torch.nn.Module):
    """Cannot be recorded (it reads a list of data), then makes opaque calls, and fails where a size is a symbol."""

    def forward(self, x: torch.Tensor, memory: Memory) -> torch.Tensor:
        rows = x.shape[0]
        first = x.tolist()[0][0]
        kept, _ = memory.add(x * first)
        if type(rows) is not int:
            raise TypeError("sizes are numbers here")
        return kept.sum(0) + memory.add(x + 1)[0].sum(0) * len(memory.held)


def test_islands_called_after_a_refusal_run_once_though_the_forward_fails(quick: fusion.FusionConfig) -> None:
    fused, eager = fusion.enable(Stumbles().eval(), quick), Stumbles().eval()
    for rows in (3, 3, 4, 2):
        x, mine, theirs = rand(rows, 8), Memory(), Memory()
        torch.testing.assert_close(no_grad(fused, x, mine), no_grad(eager, x, theirs), rtol=0, atol=0)
        assert mine.calls == theirs.calls == 2 and len(mine.held) == len(theirs.held)
    assert "data_read" in fusion.report(fused).scopes[0].reason or "list" in fusion.report(fused).scopes[0].reason
