"""The phases of a scope, and what leads from one to another."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fusion
from fusion.jit.lifecycle import _MOST_DEEP, _MOST_RESETS, _PAUSE, Lifecycle, Phase
from fusion.refusal import Refusal


def life(*, warms: bool = False) -> tuple[Lifecycle, Any]:
    """A life, and the stand-in for what the scope depends on."""
    watch = SimpleNamespace(refusal=None)
    return Lifecycle(watch, warms=warms), watch  # type: ignore[arg-type]


def test_a_scope_with_scopes_inside_warms_up_in_one_call() -> None:
    one, _ = life(warms=True)
    assert one.phase is Phase.WARMING and one.refusal() is None
    assert [one.warmed(), one.warmed()] == [True, False]
    assert one.phase is Phase.RECORDING


def test_memory_that_ran_out_pauses_for_some_calls() -> None:
    one, _ = life()
    one.ran_out_of_memory()
    codes = []
    while one.phase is Phase.PAUSED:
        codes.append(one.refusal().code)  # type: ignore[union-attr]
        one.passed()
    assert codes == ["out_of_memory"] * _PAUSE
    assert one.phase is Phase.RECORDING and one.refusal() is None


def test_state_that_cannot_be_looked_at_comes_before_a_pause_and_does_not_use_it_up() -> None:
    one, watch = life()
    one.ran_out_of_memory()
    watch.refusal = Refusal("hook", "a hook is there")
    for _ in range(_PAUSE + 1):
        assert one.refusal() is watch.refusal
        one.passed()
    watch.refusal = None
    assert one.phase is Phase.PAUSED


def test_state_that_changes_too_often_is_given_up() -> None:
    one, _ = life()
    for _ in range(_MOST_RESETS):
        one.changed()
        assert one.phase is Phase.RECORDING
    one.changed()
    assert one.phase is Phase.GIVEN_UP and "changed more than" in str(one.refusal())


def test_a_stack_that_ran_out_counts_in_the_end() -> None:
    one, _ = life()
    assert [one.ran_out_of_stack() for _ in range(_MOST_DEEP + 1)] == [True] * _MOST_DEEP + [False]


@pytest.mark.parametrize("phase", Phase)
def test_phases_print(phase: Phase) -> None:
    one, watch = life(warms=phase is Phase.WARMING)
    if phase is Phase.PAUSED:
        one.ran_out_of_memory()
    elif phase is Phase.UNWATCHED:
        watch.refusal = Refusal("hook", "a hook is there")
    elif phase is Phase.GIVEN_UP:
        one.resets = _MOST_RESETS + 1
    assert one.phase is phase and str(one).startswith(phase.value)
    assert ("a hook is there" in str(one)) == (phase is Phase.UNWATCHED)


def test_a_scope_prints_its_phase(quick: fusion.FusionConfig) -> None:
    class Gate(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x) * 2

    eager = Gate().eval()
    fused = fusion.fuse(copy.deepcopy(eager).forward, quick)
    assert "recording: a call that no plan takes is recorded; 0 recordings, 0 plans" in repr(fused.scope)
    with torch.no_grad():
        for rows in (2, 3, 4):
            x = torch.rand(rows, 8)
            torch.testing.assert_close(fused(x), eager(x))
    assert "1 recordings, 1 plans, 0 refusals" in repr(fused.scope)
