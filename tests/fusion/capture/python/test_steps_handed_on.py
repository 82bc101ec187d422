"""What steps hand on to each other: given up, lent, written to, or read again after a later step failed."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from step_models import Counted, agree, rand
from tiny import no_grad, planned, scopes

import fusion


class Widens(Counted):
    """Returns another dtype for large values, after its effect."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y.double() if y.max().tolist() > 60 else y


class Chain(torch.nn.Module):
    """Steps in a row, then perhaps a condition on data, which leads to where the first one's result is read."""

    def __init__(self, look: bool = False) -> None:
        super().__init__()
        self.steps = torch.nn.ModuleList([Counted(), Counted(), Counted(), Widens()])
        self.look = look

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = first = self.steps[0](torch.exp(x) + 1)
        if not self.look:
            del first
        for step in self.steps[1:]:
            y = step(y)
        if self.look and y.sum() > 1500:
            return y * 2 + first
        return y + 3


@pytest.mark.parametrize("look", [False, True])
def test_what_steps_hand_on_is_not_kept(look: bool, quick: fusion.FusionConfig) -> None:
    fused, eager = fusion.enable(Chain(look).eval(), quick), Chain(look).eval()
    for value in (1.0, 1.0, 1.0, 1.0, 1.0):
        agree(fused, eager, torch.full((2, 16), value))
    (known,) = scopes(fused)["Chain"].known
    ((_, plan),) = known.plans.values()
    let_go = re.findall(r"gone\d+", plan.source)
    assert len(let_go) == (1 if look else 2), "the forward holds what it may still read"
    for k, value in enumerate((3.0, 1.0, 1.0, 3.0, 1.0, 1.0, 1.0), start=6):
        agree(fused, eager, torch.full((2, 16), value))
        assert [step.calls for step in fused.steps] == [k] * 4
    assert scopes(fused)["Chain"].statistics.fallbacks > 0


class Hands(Counted):
    """Returns what it was given, or something new, by its data."""

    def __init__(self, above: bool) -> None:
        super().__init__()
        self.above = above

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if (x.max().tolist() > 10) == self.above else x.clone()


def writes_to_the_result(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) + 1
    z = m.step(y)
    w = y.sin() * 3
    z.add_(1)
    return z * 2 + y.tanh() * w


def writes_to_a_view_of_the_result(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) + 1
    m.step(y)[0].mul_(3)
    return y.tanh() * 2


def writes_to_the_argument(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) + 1
    z = m.step(y)
    y.add_(1)
    return z.tanh() * 2


def writes_to_the_callers(m: Any, x: torch.Tensor) -> Any:
    m.step(x).mul_(0.5)
    return x.exp() + 1


def reads_both(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) + 1
    z = m.step(y)
    return (z.tanh() * 2, y.sin() + 1), z


class Lends(torch.nn.Module):
    """Gives a step a tensor and goes on with it, and with what came back."""

    def __init__(self, function: Any, above: bool) -> None:
        super().__init__()
        self.step = Hands(above)
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


@pytest.mark.parametrize("above", [False, True], ids=["recorded as its argument", "recorded as another"])
@pytest.mark.parametrize(
    "function",
    [writes_to_the_result, writes_to_a_view_of_the_result, writes_to_the_argument, writes_to_the_callers, reads_both],
)
def test_a_step_that_hands_its_argument_back_now_and_then(
    function: Any, above: bool, quick: fusion.FusionConfig
) -> None:
    fused, eager = fusion.enable(Lends(function, above).eval(), quick), Lends(function, above).eval()
    for k, value in enumerate((1.0, 1.0, 1.0, 1.0, 3.0, 30.0, 1.0, 3.0, 30.0, 1.0)):
        mine, theirs = torch.full((2 + k % 3, 16), value), torch.full((2 + k % 3, 16), value)
        found, expected = no_grad(fused, mine), no_grad(eager, theirs)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine, theirs)
    if function is reads_both:
        assert planned(fused)["Lends"] >= 4
    else:
        assert "outer_write" in fusion.report(fused).scopes[0].reason


class Balks(Counted):
    """Raises for large values, after its effect."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if y.max().tolist() > 100:
            raise ValueError("too large")
        return y


def hands_out_the_first(m: Any, x: torch.Tensor) -> Any:
    first = m.steps[0](torch.exp(x) + 1)
    try:
        last = m.steps[2](m.steps[1](first))
    except ValueError:
        return first
    return last.tanh() * 2


def reads_what_it_has(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) + 1
    try:
        for step in m.steps:
            y = step(y)
    except ValueError:
        return (y * 2).tanh()
    return y.tanh() * 2


def keeps_all(m: Any, x: torch.Tensor) -> Any:
    every = [torch.exp(x) + 1]
    try:
        for step in m.steps:
            every.append(step(every[-1]))
    except ValueError:
        return [y * 2 for y in every]
    return [every[-1].tanh() * 2]


def catches_around_each(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) + 1
    for step in m.steps:
        before = y
        try:
            y = step(y)
        except ValueError:
            y = before - 1
    return y.tanh() * 2


def looks_at_the_last(m: Any, x: torch.Tensor) -> Any:
    first = m.steps[0](torch.exp(x) + 1)
    last = m.steps[2](m.steps[1](first))
    return first * 2 if last.dtype is torch.float64 else last.tanh() * 2


class Careful(torch.nn.Module):
    """A way of going on after steps that may fail, or return something else."""

    def __init__(self, function: Any, last: Any) -> None:
        super().__init__()
        self.steps = torch.nn.ModuleList([Counted(), Counted(), last()])
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


@pytest.mark.parametrize(
    ("function", "last"),
    [
        (hands_out_the_first, Balks),
        (reads_what_it_has, Balks),
        (keeps_all, Balks),
        (catches_around_each, Balks),
        (looks_at_the_last, Widens),
    ],
)
def test_a_forward_that_goes_on_with_what_earlier_steps_gave(
    function: Any, last: Any, quick: fusion.FusionConfig
) -> None:
    fused, eager = fusion.enable(Careful(function, last).eval(), quick), Careful(function, last).eval()
    for value in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        agree(fused, eager, torch.full((2, 16), value))
    assert planned(fused)["Careful"] >= 1
    for value in (3.0, 3.0, 1.0, 3.0, 1.0, 1.0, 3.0):
        agree(fused, eager, torch.full((2, 16), value))
        assert [step.calls for step in fused.steps] == [step.calls for step in eager.steps]


class Fills(Counted):
    """Writes to a buffer of another module's."""

    def forward(self, x: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        buffer.copy_(x.sum(0))
        return super().forward(x)


class Filled(torch.nn.Module):
    """Reads its buffer only after a step has written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.step = Fills()
        self.register_buffer("total", torch.zeros(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.step(torch.exp(x) + 1, self.total)
        return (self.total * 2).tanh() + y


def test_a_buffer_that_a_step_writes_to_is_read_afterwards(quick: fusion.FusionConfig) -> None:
    fused, eager = fusion.enable(Filled().eval(), quick), Filled().eval()
    for seed, rows in enumerate((3, 3, 4, 4, 5, 5, 3, 4)):
        agree(fused, eager, rand(rows, seed))
        torch.testing.assert_close(fused.total, eager.total)
