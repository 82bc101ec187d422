"""Plans that are measured as a whole, in use, by a clock that the test turns."""

from __future__ import annotations

import functools
import inspect
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_examples import needs_compiler

import fusion
from fusion.jit import plan_trial
from fusion.jit.original import Original
from fusion.jit.plan_trial import PlanTrial
from fusion.jit.resting import Resting
from fusion.jit.signature import Signature
from fusion.jit.statistics import Statistics

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
    instead = Original.instead

    def noted(self: Original, arguments: Any) -> Any:
        made.by_forward = True
        return instead(self, arguments)

    monkeypatch.setattr(Original, "instead", noted)
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
    assert fast.done and fast.refusal is None and abs(2 * sum(turns) - len(turns)) <= 3
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
    assert take(plain, plan, forward) == [False] * 3 and plain.refusal is None  # its kernels were measured before
    assert len(take(copying, plan, forward)) <= 15
    assert (copying.refusal is not None) is (longer == "plan")


@pytest.mark.parametrize("period", [1, 2, 4, 8])
def test_calls_whose_sizes_alternate_are_compared_with_their_like(period: int) -> None:
    for _ in range(50):
        one, number = trial(), 0
        while not one.done:
            large = 10 if number // period % 2 else 1
            original = one.original_is_next()
            one.add(original, large * (20e-6 if original else 10e-6), lambda: "")
            number += 1
        assert one.refusal is None


def test_turns_have_no_period_and_no_other_trials_turns() -> None:
    turns = [[one.original_is_next() for _ in range(67)][3:] for one in (trial(), trial(), trial())]
    assert all(sum(taken) == 32 for taken in turns) and len(set(map(tuple, turns))) == 3
    assert all(taken[:-period] != taken[period:] for taken in turns for period in range(1, 33))


def test_a_dropped_plan_is_tried_again_now_and_then() -> None:
    one = trial()
    take(one, 20e-6, 10e-6)
    asked = [one.ask_again() for _ in range(8)]
    assert asked == [False] * 7 + [True] and not one.done and one.refusal is None
    take(one, 20e-6, 10e-6)
    assert one.refusal is not None and [one.ask_again() for _ in range(32)].count(True) == 1
    take(one, 5e-6, 10e-6)
    assert one.done and one.refusal is None


def test_a_slower_plan_goes_and_calls_are_eager(clock: Clock, quick: fusion.FusionConfig) -> None:
    clock.plan = 50e-6
    fused = fusion.fuse(forward, quick)
    x = torch.randn(40, 50)
    for _ in range(2 * MANY):
        torch.testing.assert_close(fused(x), forward(x))
    scope = fused.report().scopes[0]
    assert scope.state == "eager" and scope.calls == 2 * MANY and 0 < scope.fused_calls < MANY
    assert scope.reason.startswith("slower_plan: a call takes 50.0 us by the plan and 20.0 us without (")
    assert [(r.decision, r.code, r.backend) for r in scope.regions] == [("refused", "slower_plan", "eager")]
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
    assert before.eager_calls >= plan_trial._FEW_SAMPLES


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
    statistics, x = Statistics(), torch.zeros(5, 8)
    resting = Resting(statistics)
    resting.add((x, 2))
    results = [resting.takes(x, 2) for _ in range(5000)]
    let_through = [k for k, rests in enumerate(results) if not rests]
    assert all(b - a <= 127 for a, b in itertools.pairwise([0, *let_through])) and statistics.eager == sum(results)
    for period in (2, 3, 4, 8, 31, 32):  # each place of it is let through
        assert {k % period for k in let_through} == set(range(period))


def test_only_calls_as_large_as_those_that_were_dropped_rest() -> None:
    resting = Resting(Statistics())
    for rows in (4, 6, 500):
        resting.add((torch.zeros(rows, 8),))
    sizes = [torch.zeros(rows, 8) for rows in (1, 4, 5, 6, 7, 100, 499, 500, 5000)]
    for size in 8 * [sizes[-1]]:  # one of them is looked at, and then all
        resting.takes(size)
    rested = [len(size) for size in sizes if resting.takes(size)]
    assert rested == [4, 5, 6, 500]
    resting.forget()
    assert not any(resting.takes(size) for size in sizes)


def test_a_rare_large_call_is_met_soon() -> None:
    """One prefill, then 31 steps that rest."""
    resting, step, prefill = Resting(Statistics()), torch.zeros(1, 8), torch.zeros(200, 8)
    resting.add((step,))
    met = []
    for request in range(40):
        met += [request] * (not resting.takes(prefill))
        for _ in range(31):
            resting.takes(step)
    assert met[0] < 10 and len(met) > 10


def test_a_module_that_changes_while_its_plan_rests_is_seen(clock: Clock, quick: fusion.FusionConfig) -> None:
    clock.plan = 50e-6
    block = Block().eval()
    fusion.enable(block, quick)
    x = torch.randn(40, 50)
    for _ in range(2 * MANY):
        block(x)
    assert fusion.report(block).scopes[0].reason.startswith("slower_plan")
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


def test_calls_that_raise_count_once(clock: Clock, quick: fusion.FusionConfig) -> None:
    """In whatever turn: the error is the user's own, and an eager call's."""

    def looked_up(table: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return table[index] * 2 + 1

    fused = fusion.fuse(looked_up, quick)
    table, index = torch.randn(40, 50), torch.arange(40)
    calls = 0
    for number in range(2 * MANY):
        calls += 1
        if number > 2 and number % 3 == 0:
            with pytest.raises(IndexError):
                fused(table, index + 1)
        else:
            torch.testing.assert_close(fused(table, index), looked_up(table, index))
    scope = fused.report().scopes[0]
    assert scope.fused_calls >= 0 and scope.eager_calls >= 0 and scope.calls <= calls


def test_sizes_that_stopped_coming_do_not_keep_warmup_going(clock: Clock, quick: fusion.FusionConfig) -> None:
    fused = fusion.fuse(forward, quick)
    small, large = torch.randn(4, 50), torch.randn(4000, 50)
    fusion.warmup(fused, small)
    for _ in range(3):
        fused(large)
    before = fused.report().scopes[0].calls
    fusion.warmup(fused, small)
    assert fused.report().scopes[0].calls <= before + 2


def test_what_data_decides_has_no_trial(quick: fusion.FusionConfig, tmp_path: Path) -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * 2 + 1 if float(x[0, 0]) > 0 else x + 1

    fused = fusion.fuse(function, quick.replace(profile=True, cache_dir=tmp_path))
    for _ in range(3):
        fused(torch.ones(40, 50))
    assert [c.trial.done for known in fused.scope.known for c, _ in known.plans.values()] == [True]


def with_defaults(
    x: torch.Tensor, scale: float = 2.0, /, flag: bool | None = None, *, bias: float = 1.0, **more: float
) -> torch.Tensor:
    return torch.tanh(x) * scale + bias + (0 if flag is None else 1) + sum(more.values())


@pytest.mark.parametrize("named", [{}, {"flag": True}, {"bias": 3.0, "other": 4.0}, {"flag": None, "other": 1.0}])
def test_the_written_caller_calls_as_invoke_does(named: dict[str, Any]) -> None:
    seen: list[Any] = []

    @functools.wraps(with_defaults)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        seen.append((args, kwargs))

    signature = Signature(with_defaults)
    bound = inspect.signature(with_defaults).bind(torch.ones(2), 5.0, **named)
    bound.apply_defaults()
    arguments = tuple(bound.arguments.values())
    signature.invoke(wrapped, arguments)
    signature.caller()(wrapped, *arguments)
    assert seen[0] == seen[1]


def test_a_call_near_the_stacks_end_gets_as_far_as_eagers(clock: Clock, quick: fusion.FusionConfig) -> None:
    clock.plan = 50e-6
    fused, x = fusion.fuse(forward, quick), torch.randn(40, 50)

    def deep(call: Any, frames: int) -> Any:
        return call(x) if frames == 0 else deep(call, frames - 1)

    def deepest(call: Any) -> int:
        return next(n for n in range(sys.getrecursionlimit(), 0, -1) if not _raises(deep, call, n))

    for _ in range(2 * MANY):
        fused(x)
    eager = deepest(forward)
    assert deepest(fused) >= eager - 5  # what a FusedFunction takes by itself, as it did with a plan


def _raises(function: Any, *arguments: Any) -> bool:
    try:
        function(*arguments)
    except RecursionError:
        return True
    return False
