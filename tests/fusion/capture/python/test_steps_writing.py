"""Steps that write to what they are given in some calls only: in whichever call that is, nobody misses the write."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import planned, scopes

import fusion

WIDTH = 8


class Outliers(torch.nn.Module):
    """Overwrites rows with large elements in place; how many there are is data. Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = [0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls[0] += 1
        for row in (x.abs().amax(-1) > 3).nonzero()[:, 0].tolist():
            x[row] = 0.25
        total = torch.sigmoid(x.sum(-1, keepdim=True))
        return total.double() if float(x[-1, 0]) > 1 else total


class Start(torch.nn.Module):
    """Makes a tensor in a step."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(x) * x * 1.5
        return y if y[0, 0].tolist() > -1e9 else -y


class Residual(torch.nn.Module):
    """Adds to what it is given in place, and returns it, as residual blocks do."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += 0.01 if x[0, 0].tolist() > -1e9 else 1.0
        return x


class Model(torch.nn.Module):
    """Calls a function of (module, x)."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.step = Outliers()
        self.start = Start()
        self.residual = Residual()
        self.inner = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        with torch.no_grad():
            self.inner.weight.copy_(1.2 * torch.eye(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def computed(module: Any, x: torch.Tensor) -> torch.Tensor:
    y = torch.tanh(x) * x * 1.5
    total = module.step(y)
    return torch.exp(y * 0.1) * 2 + total.float()


def used_before_too(module: Any, x: torch.Tensor) -> torch.Tensor:
    y = torch.tanh(x) * x * 1.5
    before = torch.exp(y * 0.1)
    total = module.step(y)
    return before + y * 2 + total.float()


def of_a_library(module: Any, x: torch.Tensor) -> torch.Tensor:
    y = module.inner(x)
    total = module.step(y)
    return torch.tanh(y) * 2 + total.float()


def a_view(module: Any, x: torch.Tensor) -> torch.Tensor:
    y = torch.tanh(x) * x * 1.5
    before = torch.exp(x.view(-1, WIDTH) * 0.1)
    total = module.step(y.view(-1, WIDTH))
    return torch.sigmoid(y) * 2 + total.float() + before


def a_view_of_what_it_was_given(module: Any, x: torch.Tensor) -> torch.Tensor:
    before = torch.exp(x * 0.1)
    total = module.step(x.view(-1, WIDTH))
    return torch.sigmoid(x) * 2 + total.float() + before


def what_it_was_given(module: Any, x: torch.Tensor) -> torch.Tensor:
    before = torch.exp(x * 0.1)
    total = module.step(x)
    return torch.sigmoid(x) * 2 + total.float() + before


def of_a_step(module: Any, x: torch.Tensor) -> torch.Tensor:
    y = module.start(x)
    before = torch.exp(y * 0.1)
    total = module.step(y)
    return before + y * 2 + total.float()


def a_view_of_a_step(module: Any, x: torch.Tensor) -> torch.Tensor:
    y = module.start(x)
    before = torch.exp(y * 0.1)
    total = module.step(y[1:])
    return before + y * 2 + total.float().sum()


def of_residual_steps(module: Any, x: torch.Tensor) -> torch.Tensor:
    first = torch.tanh(x) * x * 1.5
    y = module.residual(first)
    before = torch.exp(y * 0.1)
    y = module.residual(y)
    total = module.step(y)
    return before + first * 2 + total.float()


def of_a_residual_step_of_a_step(module: Any, x: torch.Tensor) -> torch.Tensor:
    first = module.start(x)
    before = torch.exp(first * 0.1)
    y = module.residual(first.view(-1, WIDTH))
    total = module.step(y)
    return before + first * 2 + y + total.float()


STEPS = [of_a_step, a_view_of_a_step, of_residual_steps, of_a_residual_step_of_a_step]
FUNCTIONS = [computed, used_before_too, of_a_library, a_view, what_it_was_given, a_view_of_what_it_was_given, *STEPS]
# (rows, whether the step writes) of each call: the first call to write is one of a plan that is trusted, is the one
# that a plan is checked in at another size, or the one after the recording.
LATE = ((3, 0), (3, 0), (3, 0), (4, 0), (4, 0), (5, 0), (3, 1), (4, 1), (3, 0))
CHECKED = ((3, 0), (3, 0), (3, 0), (5, 1), (5, 0), (4, 1), (3, 1), (4, 0), (3, 0))
EARLY = ((3, 0), (3, 0), (3, 1), (4, 1), (3, 0), (5, 1), (3, 0), (5, 1), (3, 1))


def rows_like(rows: int, writes: int, turn: int) -> torch.Tensor:
    x = torch.rand(rows, WIDTH, generator=torch.Generator().manual_seed(turn)) * 0.8
    if writes:
        x[0] = 10.0
    return x


def check(fused: Any, eager: Any, x: torch.Tensor) -> None:
    """One call of both: equal results, equal arguments afterwards, and as many calls of the step."""
    mine, theirs = x.clone(), x.clone()
    torch.testing.assert_close(fused(mine), eager(theirs), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine, theirs, rtol=0, atol=0)
    assert fused.step.calls == eager.step.calls


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
@pytest.mark.parametrize("calls", [LATE, CHECKED, EARLY], ids=["late", "checked", "early"])
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_a_step_that_writes_now_and_then(function: Any, calls: Any, mode: Any, quick: fusion.FusionConfig) -> None:
    eager = Model(function).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    with mode():
        for turn, (rows, writes) in enumerate(calls):
            check(fused, eager, rows_like(rows, writes, turn))
    assert planned(fused)["Model"] >= 4, scopes(fused)["Model"].statistics
    assert all(known.refusal is None for known in scopes(fused)["Model"].known)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
@pytest.mark.parametrize("function", [*FUNCTIONS[:4], *STEPS], ids=lambda f: f.__name__)
def test_a_step_that_writes_in_a_call_whose_plan_ends_half_way(
    function: Any, mode: Any, quick: fusion.FusionConfig
) -> None:
    eager = Model(function).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    with mode():
        for turn in range(9):
            check(fused, eager, rows_like((3, 4, 5)[turn % 3], 0, turn))
        assert planned(fused)["Model"] >= 3
        x = rows_like(4, 1, 9)
        x[-1] = 1.4  # between 1 and 3 when the step gets it, in every function
        check(fused, eager, x)
    assert scopes(fused)["Model"].statistics.fallbacks == 1, "the step gave another dtype than it did"


class Scales:
    """Doubles what it is given in place, every time or after some calls."""

    def __init__(self, after: int) -> None:
        self.after, self.calls = after, 0

    def double(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls > self.after:
            x.mul_(2.0)
        return x.sum()


fusion.register_island(Scales, "double")


class Doubled(torch.nn.Module):
    """Has a temporary, or its own argument, doubled between two uses."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.own = own

    def forward(self, x: torch.Tensor, scales: Scales) -> torch.Tensor:
        y = x if self.own else torch.tanh(x) * 3
        before = torch.exp(y * 0.1)
        total = scales.double(y)
        return before + torch.sigmoid(y) * 2 + total


@pytest.mark.parametrize("after", [0, 3, 6])
@pytest.mark.parametrize("own", [False, True], ids=["a temporary", "its argument"])
def test_a_method_that_writes_to_what_it_is_given(own: bool, after: int, quick: fusion.FusionConfig) -> None:
    eager = Doubled(own).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    mine, theirs = Scales(after), Scales(after)
    for turn, rows in enumerate((3, 3, 3, 4, 4, 5, 3, 4, 5, 6)):
        x, y = rows_like(rows, 0, turn), rows_like(rows, 0, turn)
        with torch.no_grad():
            torch.testing.assert_close(fused(x, mine), eager(y, theirs), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(x, y, rtol=0, atol=0)
        assert mine.calls == theirs.calls
    if own and after == 0:
        assert "used before" in fusion.report(fused).scopes[0].reason and planned(fused)["Doubled"] == 0
    else:
        assert planned(fused)["Doubled"] >= 4, scopes(fused)["Doubled"].statistics


class Watches:
    """`look` never writes; once it `goes`, `late` and `raises` do, and `ends` gives another dtype."""

    def __init__(self) -> None:
        self.goes = False

    def look(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum()

    def late(self, x: torch.Tensor) -> torch.Tensor:
        return x.mul_(3.0).sum() if self.goes else x.sum()

    def ends(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum().double() if self.goes else x.sum()

    def raises(self, x: torch.Tensor) -> torch.Tensor:
        total = self.late(x)
        if self.goes:
            raise ValueError("after it wrote")
        return total


for _name in ("look", "late", "ends", "raises"):
    fusion.register_island(Watches, _name)


class LooksFirst(torch.nn.Module):
    """Two calls are given one temporary, and only the second writes to it."""

    def forward(self, x: torch.Tensor, watches: Watches) -> torch.Tensor:
        y = torch.tanh(x) * 2 + 1
        total = watches.look(y)
        before = torch.exp(y * 0.1)
        total = total + watches.late(y)
        return before + torch.sigmoid(y) * 2 + total + watches.ends(x).float()


class Catches(torch.nn.Module):
    """Goes on with what was written to by a call that raised."""

    def forward(self, x: torch.Tensor, watches: Watches) -> torch.Tensor:
        y = torch.tanh(x) * 2 + 1
        try:
            total = watches.raises(y)
        except ValueError:
            return y * 2
        return torch.exp(y * 0.1) + total


@pytest.mark.parametrize("kind", [LooksFirst, Catches])
def test_a_write_is_the_call_s_that_made_it(kind: type[torch.nn.Module], quick: fusion.FusionConfig) -> None:
    eager, fused = kind().eval(), fusion.enable(kind().eval(), quick)
    mine, theirs = Watches(), Watches()
    with torch.no_grad():
        for turn in range(8):
            mine.goes = theirs.goes = turn == 7
            x = rows_like((3, 4, 5)[turn % 3], 0, turn)
            if turn == 7:
                assert planned(fused)[kind.__name__] >= 3
            torch.testing.assert_close(fused(x, mine), eager(x, theirs), rtol=1e-5, atol=1e-5)


class Counts(torch.nn.Module):
    """Reads data, and counts how many of the tensors it was ever given are alive."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[weakref.ref[torch.Tensor]] = []
        self.most = [0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.given.append(weakref.ref(x))
        self.most[0] = max(self.most[0], sum(held() is not None for held in self.given))
        return x * 2 if x[0].tolist()[0] > 30 else x * 1


class Deep(torch.nn.Module):
    """Gives one step many temporaries, each of which it uses once more."""

    def __init__(self) -> None:
        super().__init__()
        self.step = Counts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(10):
            h = torch.tanh(x) * 2
            x = self.step(h) + h * 1.5
        return x


def test_a_plan_keeps_no_tensor_for_a_write_that_did_not_happen(quick: fusion.FusionConfig) -> None:
    fused = fusion.enable(Deep().eval(), quick)
    with torch.no_grad():
        for _ in range(4):
            fused(rows_like(3, 0, 1))
        fused.step.most[0], fused.step.given[:] = 0, []
        before = planned(fused)["Deep"]
        fused(rows_like(3, 0, 1))
    assert planned(fused)["Deep"] == before + 1
    assert 1 <= fused.step.most[0] <= 2


class Keeps:
    """A library's object that keeps what it is given."""

    def __init__(self) -> None:
        self.given: list[torch.Tensor] = []

    def update(self, x: torch.Tensor) -> torch.Tensor:
        self.given.append(x)
        return x + 1


fusion.register_island(Keeps, "update")


class Later(torch.nn.Module):
    """Gives an object a constant of its own, and writes to that through a view afterwards."""

    def forward(self, x: torch.Tensor, keeps: Keeps) -> torch.Tensor:
        y = torch.tensor([1.0, 2.0])
        keeps.update(y)
        y[::3][torch.zeros(1, dtype=torch.int64)] = -1.0
        return torch.exp(x) * 0.5


def test_a_tensor_is_written_to_after_an_object_was_given_it(quick: fusion.FusionConfig) -> None:
    eager = Later().eval()
    fused = fusion.enable(Later().eval(), quick)
    for rows in (3, 3, 4, 4, 5, 3):
        mine, theirs, x = Keeps(), Keeps(), rows_like(rows, 0, 1)
        with torch.no_grad():
            torch.testing.assert_close(fused(x, mine), eager(x, theirs))
        torch.testing.assert_close(mine.given, theirs.given)
    (row,) = fusion.report(fused).scopes
    assert row.state == "fused" and not row.reason
    assert planned(fused)["Later"] == 4
