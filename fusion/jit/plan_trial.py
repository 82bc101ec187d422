"""Plans measured as a whole, in use: the first calls run the plan and the original by turns, and the slower one goes.

Kernels are measured one by one before there is a plan. What a plan does around them is not: guards, copies that let a
write be undone, the steps between kernels. For small tensors that may cost more than the kernels save. Both ways give
the call's result, so that nothing is computed for the sake of measuring, and nothing has to be copied.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from typing import Any

from fusion import stack
from fusion.refusal import Refusal
from fusion.runtime.plan import MISS

_SAMPLES = 16  # of each way
_FEW_SAMPLES = 6  # of each way, of calls that are long, or where no plan's was as slow as any of the original's
_LONG_S = 2e-3  # a plan that takes longer is long: only copies for undoing writes can count in it
_PLANS_FIRST = 3  # turns: one warms the plan up, two tell whether it is long, so that nothing is left to find out
_TOLERATED = 1.02  # of the original's time: a plan that is not noticeably slower stays
_AGAIN_AFTER = 8  # calls that ask for a dropped plan, before it is tried again; then four times as many
_numbers = itertools.count()

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
        self.taken = 0
        self.refusal: Refusal | None = None
        self._copies = copies
        self._seconds: tuple[list[float], list[float]] = ([], [])
        self._asked, self._again = 0, _AGAIN_AFTER
        # Chance has no period that the sizes of calls, or the turns of a scope inside, could have, too.
        self._chance = random.Random(next(_numbers))
        self._second_of_pair: bool | None = None

    def original_is_next(self) -> bool:
        """Whose turn a call is; of two calls, one each."""
        self.taken += 1
        if self.taken <= _PLANS_FIRST:
            return False
        turn, self._second_of_pair = self._second_of_pair, None
        if turn is None:
            turn = self._chance.random() < 0.5
            self._second_of_pair = not turn
        return turn

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
        is_long = len(planned) > 1 and planned[0] > _LONG_S
        if is_long and not self._copies:
            self.done = True
        samples = min(len(planned), len(eager))
        if samples >= _FEW_SAMPLES and planned[-1] < eager[0]:
            self.done = True  # the slowest of the plan's is faster than the fastest of the original's
        if self.done or samples < (_FEW_SAMPLES if is_long else _SAMPLES):
            return
        self.done = True
        # What a busy machine adds to calls, it adds to the slow ones; a plan goes where its fast ones are slower, too.
        plan, forward = (one[len(one) // 4] for one in (planned, eager))
        if plan > _TOLERATED * forward and planned[0] > _TOLERATED * eager[0]:
            times = f"a call takes {plan * 1e6:.1f} us by the plan and {forward * 1e6:.1f} us without"
            self.refusal = Refusal("slower_plan", times, line())

    def ask_again(self) -> bool:
        """A call would take the plan, which was dropped; whether it is on trial again."""
        self._asked += 1
        if self._asked < self._again:
            return False
        self._asked, self._again = 0, 4 * self._again
        self.done, self.taken, self.refusal = False, 0, None
        for one in self._seconds:
            one.clear()
        return True


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
        if stack.is_short() or not applies(arguments):
            return MISS
        eagerly = trial.original_is_next()
        start = clock()
        result = original(arguments) if eagerly else plan(*arguments)
        seconds = clock() - start
        if result is not MISS:
            trial.add(eagerly, seconds, line)
        return result

    return run
