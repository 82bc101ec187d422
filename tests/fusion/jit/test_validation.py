"""How plans come to be trusted, and what becomes of a scope whose plans fail."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import normal as rand

import fusion
from fusion.jit.cache_entry import CacheEntry, CheckedRun, PlanStopped
from fusion.jit.lifecycle import Phase
from fusion.jit.scope import Scope
from fusion.jit.validation import _MOST_EVICTIONS, _MOST_FAILURES, PlanValidator
from fusion.runtime.plan import MISS, Deoptimized, LoggedError
from fusion.runtime.rollback import UndoLog

pytestmark = pytest.mark.usefixtures("without_gradients")


def forward(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) * 2 + 1


class Checked:
    """A function under fusion whose results are compared with the function's."""

    def __init__(self, config: fusion.FusionConfig) -> None:
        self.fused = fusion.fuse(forward, config)

    def __call__(self, rows: int) -> None:
        x = rand(rows, 8)
        torch.testing.assert_close(self.fused(x), forward(x))

    @property
    def scope(self) -> Scope:
        return self.fused.scope

    @property
    def validator(self) -> PlanValidator:
        return self.scope._validator


@pytest.fixture
def checked(quick: fusion.FusionConfig) -> Checked:
    return Checked(quick)


Run = Callable[[CheckedRun], CheckedRun]


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Run], None]:
    """Makes runs of plans without kernels end otherwise."""
    original = CacheEntry.checked_run

    def end(change: Run) -> None:
        monkeypatch.setattr(CacheEntry, "checked_run", lambda self, *given: change(original(self, *given)))

    return end


def stop(error: Exception, *log: Any) -> Run:
    def stopped(run: CheckedRun) -> CheckedRun:
        raise PlanStopped(error, list(log))

    return stopped


# ---- sizes


def test_plans_are_pinned_to_checked_sizes_until_another_shape_was_checked(checked: Checked) -> None:
    checked(3)
    (entry,) = checked.scope.known
    assert entry.sizes.proved == {(3, 8)} and not entry.sizes.generalized and checked.scope.cache.plans
    checked(3)
    assert checked.scope.statistics.planned[0] == 1
    checked(5)
    assert entry.sizes.proved == {(3, 8), (5, 8)} and entry.sizes.generalized
    assert checked.scope.statistics.planned[0] == 1, "that call ran eagerly, beside the plan"
    checked(6)
    assert checked.scope.statistics.planned[0] == 2 and len(checked.scope.known) == 1


# ---- a new recording


def test_a_recording_whose_plan_gives_something_else_is_not_used(checked: Checked, runs: Any) -> None:
    runs(lambda run: run._replace(result=run.result + 1))
    checked(3)
    (entry,) = checked.scope.known
    assert entry.refusal is not None and entry.refusal.code == "plan_mismatch" and not entry.plans
    checked(3)
    assert not checked.scope.cache.plans and checked.scope.statistics.recordings == 1


def test_a_recording_that_does_not_hold_for_its_own_call_is_not_made_again(checked: Checked, runs: Any) -> None:
    runs(lambda run: run._replace(result=MISS))
    checked(3)
    (entry,) = checked.scope.known
    assert entry.refusal is not None and entry.refusal.code == "guard"
    assert entry.refusal in checked.scope.refused.values()


def test_a_plan_that_agrees_but_for_rounding_is_checked_once_more(checked: Checked, runs: Any) -> None:
    runs(lambda run: run._replace(result=run.result * (1 + 1e-6)))
    checked(3)
    (entry,) = checked.scope.known
    assert entry.refusal is None and not entry.sizes.any and not checked.scope.cache.plans


# ---- a plan that stops


def test_a_plan_that_fails_at_another_shape_hands_over_to_the_function(checked: Checked, runs: Any) -> None:
    checked(3)
    (entry,) = checked.scope.known
    runs(stop(ValueError("broken")))
    for count in range(1, _MOST_FAILURES + 1):
        assert entry.refusal is None
        checked(3 + count)
        assert (entry.failures.count, checked.scope.statistics.fallbacks) == (count, count)
    assert entry.refusal is not None and entry.refusal.code == "plan_error" and "broken" in entry.refusal.sentence


def test_an_error_of_the_users_own_is_no_failure_of_the_plan(checked: Checked, runs: Any) -> None:
    checked(3)
    error = ValueError("the user's")
    runs(stop(error, LoggedError(error)))
    checked(4)
    assert checked.scope.statistics.fallbacks == 0 and checked.scope.known[0].failures.count == 0


def test_recordings_whose_guards_do_not_hold_make_room_a_few_times(checked: Checked, runs: Any) -> None:
    for evicted in range(1, _MOST_EVICTIONS + 1):
        checked(3)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CacheEntry, "checked_run", lambda *_: stop(Deoptimized())(CheckedRun(MISS, [], [], {})))
            checked(4)
        assert not checked.scope.known and checked.validator.evictions == evicted
    checked(3)
    runs(stop(Deoptimized()))
    checked(4)
    (entry,) = checked.scope.known
    assert entry.failures.count == 1 and checked.validator.evictions == _MOST_EVICTIONS


def test_what_cannot_be_taken_back_is_not_run_again(checked: Checked) -> None:
    checked(3)
    fail, _ = checked.validator.on_failure(checked.scope.known[0])
    undo = UndoLog()
    undo.partial = True
    with pytest.raises(ValueError, match="broken"):
        fail(ValueError("broken"), [], (rand(3, 8),), undo)
    undo.partial = False
    x = rand(3, 8)
    assert torch.equal(fail(ValueError("broken"), [], (x,), undo), forward(x))


# ---- compiling


def _raise(error: Exception) -> Callable[[], None]:
    def step() -> None:
        raise error

    return step


def test_what_goes_wrong_while_compiling_is_noted_and_not_tried_again(checked: Checked) -> None:
    checked.validator.compile_safely("a structure", _raise(ValueError("broken")))
    refusal = checked.scope.refused["a structure"]
    assert refusal.code == "plan_error" and "ValueError: broken" in refusal.sentence
    assert checked.scope.statistics.last_reason is refusal


def test_it_is_raised_where_there_is_no_fallback(quick: fusion.FusionConfig) -> None:
    checked = Checked(quick.replace(fallback_on_error=False))
    with pytest.raises(ValueError, match="broken"):
        checked.validator.compile_safely("a structure", _raise(ValueError("broken")))


@pytest.mark.parametrize("error, phase", [(MemoryError(), Phase.PAUSED), (RecursionError(), Phase.RECORDING)])
def test_shortages_are_passing(checked: Checked, error: Exception, phase: Phase) -> None:
    checked.validator.compile_safely("a structure", _raise(error))
    assert not checked.scope.refused and checked.scope.lifecycle.phase is phase
