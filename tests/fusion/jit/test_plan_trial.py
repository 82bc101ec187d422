"""Plans that are measured as a whole, in use, by a clock that the test turns."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_examples import needs_compiler

import fusion
from fusion.jit import plan_trial
from fusion.jit.original import Original
from fusion.jit.plan_trial import PlanTrial, Resting
from fusion.runtime.plan import MISS

pytestmark = [needs_compiler, pytest.mark.usefixtures("without_gradients")]
MANY = 3 * plan_trial._SAMPLES


class Clock:
    """Tells what the forward, while the trial calls it, and the plan are to have taken."""

    def __init__(self) -> None:
        self.now, self.plan, self.forward = 0.0, 10e-6, 20e-6
        self.started, self.by_forward = False, False

    def __call__(self) -> float:
        if self.started:
            self.now += self.forward if self.by_forward else self.plan
        self.started, self.by_forward = not self.started, False
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[Clock]:
    """The trial's clock; measuring kernels is left out, so that every kernel is used."""
    made = Clock()
    unplanned = Original.unplanned

    def noted(self: Original, arguments: Any) -> Any:
        made.by_forward = True
        return unplanned(self, arguments)

    monkeypatch.setattr(Original, "unplanned", noted)
    monkeypatch.setattr(plan_trial, "clock", made)
    made_trial = PlanTrial.__init__
    monkeypatch.setattr(
        PlanTrial, "__init__", lambda self, *, measured, copies: made_trial(self, measured=True, copies=copies)
    )
    yield made


def forward(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x) * 2 + 1


def trial(*, copies: bool = False) -> PlanTrial:
    return PlanTrial(measured=True, copies=copies)


def take(one: PlanTrial, plan: float, forward: float, calls: int = MANY) -> list[bool]:
    """Calls that take so long; whose turns they were."""
    turns = []
    for _ in range(calls):
        if one.done:
            break
        turns.append(one.original_is_next())
        one.add(turns[-1], forward if turns[-1] else plan, lambda: "model.py:3")
    return turns


def test_the_faster_way_stays_and_both_take_their_turns() -> None:
    fast, slow = trial(), trial()
    turns = take(fast, 10e-6, 20e-6)
    assert fast.done and fast.refusal is None and abs(2 * sum(turns) - len(turns)) <= 1
    take(slow, 20e-6, 10e-6)
    assert slow.done and slow.refusal is not None
    assert str(slow.refusal).startswith(
        "slower_plan: a call takes 20.0 us by the plan and 10.0 us without (model.py:3)"
    )


def test_a_plan_that_is_as_fast_stays() -> None:
    one = trial()
    take(one, 10.1e-6, 10e-6)
    assert one.done and one.refusal is None


def test_noise_on_some_calls_decides_nothing() -> None:
    one, number = trial(), 0
    while not one.done:
        original = one.original_is_next()
        number += 1
        one.add(original, 20e-6 if original else 10e-6 * (30 if number % 3 == 0 else 1), lambda: "")
    assert one.refusal is None


@pytest.mark.parametrize("longer", ["plan", "forward"])
def test_of_long_calls_few_or_none_are_measured(longer: str) -> None:
    plan, forward = (9e-3, 5e-3) if longer == "plan" else (5e-3, 9e-3)
    plain, copying = trial(), trial(copies=True)
    assert len(take(plain, plan, forward)) <= 4 and plain.refusal is None  # what its kernels do was measured before
    assert len(take(copying, plan, forward)) <= 6
    assert (copying.refusal is not None) is (longer == "plan")


@pytest.mark.parametrize("period", [1, 2, 4])
def test_calls_whose_sizes_alternate_are_compared_with_their_like(period: int) -> None:
    one, number = trial(), 0
    while not one.done:
        large = 10 if number // period % 2 else 1
        original = one.original_is_next()
        one.add(original, large * (20e-6 if original else 10e-6), lambda: "")
        number += 1
    assert one.refusal is None


def test_a_slower_plan_goes_and_calls_are_eager(clock: Clock, quick: fusion.FusionConfig) -> None:
    clock.plan = 50e-6
    fused = fusion.fuse(forward, quick)
    x = torch.randn(40, 50)
    for _ in range(2 * MANY):
        torch.testing.assert_close(fused(x), forward(x))
    scope = fused.report().scopes[0]
    assert scope.state == "eager" and scope.calls == 2 * MANY and 0 < scope.fused_calls < MANY
    assert scope.reason.startswith("slower_plan: a call takes 50.0 us by the plan and 20.0 us without (")
    assert "test_plan_trial.py:" in scope.reason and not fusion.kernels_in_use(fused)


def test_a_faster_plan_takes_every_call_after_its_trial(clock: Clock, quick: fusion.FusionConfig) -> None:
    fused = fusion.fuse(forward, quick)
    x = torch.randn(40, 50)
    fusion.warmup(fused, x)
    before = fused.report().scopes[0]
    for _ in range(5):
        fused(x)
    after = fused.report().scopes[0]
    assert after.state == "fused" and after.fused_calls == before.fused_calls + 5
    assert before.eager_calls >= plan_trial._SAMPLES


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.activation = torch.nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(x) * 2 + x


def test_equal_scopes_share_a_trial(quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    start = PlanTrial.__init__

    def noted(self: PlanTrial, **keywords: Any) -> None:
        made.append(self)
        start(self, **{**keywords, "measured": True})

    monkeypatch.setattr(PlanTrial, "__init__", noted)
    model = torch.nn.Sequential(*(Block() for _ in range(4))).eval()
    fusion.enable(model, quick)
    x = torch.randn(40, 50)
    for _ in range(6):
        model(x)
    blocks = [s for s in fusion.report(model).scopes if s.name.isdecimal()]
    assert len(blocks) == 4 and len(made) <= 2 and made[0].taken > 6  # one for the blocks, one around them


def test_sizes_of_another_range_get_a_plan_while_the_dropped_one_rests(
    clock: Clock, quick: fusion.FusionConfig
) -> None:
    clock.plan = 50e-6
    fused = fusion.fuse(forward, quick)
    small, large = torch.randn(4, 50), torch.randn(4000, 50)
    for _ in range(2 * MANY):
        fused(small)
    assert fused.report().scopes[0].state == "eager"
    clock.plan = 5e-6
    for _ in range(200):
        fused(large)
    scope = fused.report().scopes[0]
    assert scope.state == "fused" and scope.fused_calls > 50
    before = scope.fused_calls
    for _ in range(10):
        torch.testing.assert_close(fused(small), torch.nn.functional.silu(small) * 2 + 1)
    assert fused.report().scopes[0].fused_calls == before


def test_rest_lets_a_call_in_many_through() -> None:
    resting = Resting(len)
    results = [resting.run(1, 2) for _ in range(5000)]
    let_through = [k for k, result in enumerate(results) if result is MISS]
    assert set(results) == {2, MISS} and let_through[0] == Resting._FIRST - 1
    assert all(b - a <= Resting._MOST for a, b in itertools.pairwise(let_through))


def test_a_module_that_changes_while_its_plan_rests_is_seen(clock: Clock, quick: fusion.FusionConfig) -> None:
    clock.plan = 50e-6
    block = Block().eval()
    fusion.enable(block, quick)
    x = torch.randn(40, 50)
    for _ in range(2 * MANY):
        block(x)
    block.activation = torch.nn.ReLU()
    for _ in range(100):
        assert torch.equal(block(x), torch.relu(x) * 2 + x)


def test_a_trial_is_made_only_where_times_decide(quick: fusion.FusionConfig, tmp_path: Path) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * 2 + 1

    for profile in (False, True):
        fused = fusion.fuse(function, quick.replace(profile=profile, cache_dir=tmp_path))
        fused(torch.randn(40, 50))
        trials = [c.trial for known in fused.scope.known for c, _ in known.plans.values()]
        assert [one.done for one in trials] == [not profile]
