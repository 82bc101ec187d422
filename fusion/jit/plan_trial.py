"""Plans measured as a whole, in use: the first calls run the plan and the original by turns, and the slower one goes.

Kernels are measured one by one before there is a plan. What a plan does around them is not: guards, copies that let a
write be undone, the steps between kernels. For small tensors that may cost more than the kernels save. Both ways give
the call's result, so that nothing is computed for the sake of measuring, and nothing has to be copied.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from fusion.refusal import Refusal
from fusion.runtime.plan import MISS

_SAMPLES = 16  # of each way
_FEW_SAMPLES = 2  # of each way, of calls that are long
_LONG_S = 2e-3  # a call that takes longer than this is long: only copies for undoing writes can count in it
_TOLERATED = 1.02  # of the original's time: a plan that is not noticeably slower stays
_TURNS = (0, 1, 1, 0, 1, 0, 0, 1)  # plan, original, ...: no period that calls of alternating sizes could have, too

clock = time.perf_counter


class PlanTrial:
    """What is known of how long a plan takes. Scopes that share a plan's code share its trial.

    Args:
        measured: whether there is a trial at all.
        copies: whether the plan copies what it writes to.

    Attributes:
        done: whether the calls need not take turns any more.
        taken: how many turns there were.
        refusal: why the plan is not used, or None.
    """

    def __init__(self, *, measured: bool, copies: bool) -> None:
        self.done = not measured
        self.refusal: Refusal | None = None
        self._copies = copies
        self.taken = 0
        self._seconds: tuple[list[float], list[float]] = ([], [])

    def original_is_next(self) -> bool:
        """Whose turn a call is."""
        self.taken += 1
        return bool(_TURNS[(self.taken - 2) % len(_TURNS)]) and self.taken > 1  # the first call warms the plan up

    def add(self, original: bool, seconds: float, line: Callable[[], str]) -> None:
        """A call has taken so long.

        Args:
            original: whether it was the original's turn, rather than the plan's.
            seconds: how long.
            line: "file:line" of the user's code, for the refusal.
        """
        if self.taken < 2 or self.done:
            return
        self._seconds[original].append(seconds)
        planned, eager = (sorted(one) for one in self._seconds)
        if planned and planned[0] > _LONG_S:
            if not self._copies:
                self.done = True
            needed = _FEW_SAMPLES
        else:
            needed = _SAMPLES
        if min(len(planned), len(eager)) < needed:
            return
        self.done = True
        # What a busy machine adds to calls, it adds to the slow ones; a plan goes where its fast ones are slower, too.
        plan, forward = (one[len(one) // 4] for one in (planned, eager))
        if plan > _TOLERATED * forward and planned[0] > _TOLERATED * eager[0]:
            times = f"a call takes {plan * 1e6:.1f} us by the plan and {forward * 1e6:.1f} us without"
            self.refusal = Refusal("slower_plan", times, line())


def by_turns(
    plan: Callable[..., Any],
    trial: PlanTrial,
    original: Callable[[Sequence[Any]], Any],
    applies: Callable[[Sequence[Any]], bool],
    settle: Callable[[], None],
    line: Callable[[], str],
) -> Callable[..., Any]:
    """What the entry calls while a plan is on trial: the plan or the original, timed.

    Args:
        plan: the plan's function.
        trial: its trial.
        original: makes a call without the plan, which counts as eager.
        applies: whether the plan would take a call.
        settle: called once the trial is over; from then on the entry calls the plan itself, or no plan.
        line: where the user has defined what is called.
    """

    def run(*arguments: Any) -> Any:
        if trial.done:
            settle()
            return plan(*arguments) if trial.refusal is None else MISS
        eagerly = trial.original_is_next() and applies(arguments)
        start = clock()
        result = original(arguments) if eagerly else plan(*arguments)
        seconds = clock() - start
        if result is not MISS:
            trial.add(eagerly, seconds, line)
        return result

    return run


class Resting:
    """Passes calls on to the original once a scope's plan was dropped, and lets one in many through, for which a
    recording or a plan is looked for.

    Args:
        original: makes a call without a plan.
    """

    _FIRST, _MOST = 64, 512  # calls that it passes on before it lets one through

    def __init__(self, original: Callable[[Sequence[Any]], Any]) -> None:
        self._original = original
        self._span = self._left = self._FIRST

    def run(self, *arguments: Any) -> Any:
        """The original's result; MISS for one call in many."""
        self._left -= 1
        if self._left > 0:
            return self._original(arguments)
        self._span = min(2 * self._span, self._MOST)
        self._left = self._span
        return MISS
