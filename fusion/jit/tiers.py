"""Small matrix products: torch computes them at first, kernels do once that has taken a while.

A compiler takes as long for the kernel of a product as torch does for thousands of small products. So the first plans
of a structure leave those to torch. What its calls spend in products is added up, by an estimate; once it comes to
`FusionConfig.product_seconds`, the kernels are compiled on the side, and then new plans take the place of the first.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Sequence
from typing import Any

from fusion import faults, stack
from fusion.choices.background import Build
from fusion.patterns.forks import Lock
from fusion.runtime.plan import MISS

LONG_US = 200.0  # products of one call that take so long are worth their kernels at once
_ASKS_AGAIN = 64  # calls from one question whether the compilers are done to the next


class Phase(enum.Enum):
    """What becomes of the first plans of a structure."""

    COUNTING = "what their calls spend in products is added up"
    COMPILING = "kernels of products are being compiled"
    OVER = "plans with kernels of products take their places"
    NEVER = "they stay, for such plans cannot be made"


class FirstTier:
    """What the calls of a structure spend in products that torch computes, and what follows from it.

    Scopes of one structure share it, and count together. Threads may lose some of what they count at the same time,
    which only makes the count longer.

    Args:
        seconds: what may be spent.
        succeed: makes the partition that new plans follow; whether there is one.
        begin: starts the compilers for it; gives what there is to wait for.

    Attributes:
        phase: where it is.
        left_us: estimated microseconds in products until the next step: starting the compilers, asking whether they
            are done, or making new plans. The first call that begins with none left takes it.
    """

    def __init__(self, seconds: float, succeed: Callable[[], bool], begin: Callable[[], tuple[Build, ...]]) -> None:
        self.phase = Phase.COUNTING
        self.left_us = seconds * 1e6
        self._succeed = succeed
        self._begin = begin
        self._builds: tuple[Build, ...] = ()
        self._pause_us = 0.0
        self._lock = Lock()

    def counted(
        self, plan: Callable[..., Any], products_us: float, upgrade: Callable[[Callable[..., Any], Sequence[Any]], Any]
    ) -> Callable[..., Any]:
        """A plan's function that adds up what its calls spend in products.

        Args:
            plan: the plan's function.
            products_us: what one call spends.
            upgrade: called instead of the plan, with it and a call's arguments, once another plan is to take its place.
        """

        def run(*arguments: Any) -> Any:
            if self.left_us <= 0 and self.is_over(products_us):
                return upgrade(plan, arguments)
            result = plan(*arguments)
            if result is not MISS:
                self.left_us -= products_us
            return result

        return run

    def is_over(self, products_us: float) -> bool:
        """Whether new plans are to be made now; starts the compilers where it is time for them.

        Args:
            products_us: what a call spends, which says when to ask again.
        """
        if self.left_us > 0 or stack.is_short() or not self._lock.acquire(blocking=False):
            return False
        try:
            self._pause_us = _ASKS_AGAIN * products_us
            self._advance()
        except Exception as error:
            if faults.is_passing(error):
                self.postpone()
            else:
                faults.noted(error, "kernels of matrix products")
                self._move(Phase.NEVER)
        finally:
            self._lock.release()
        return self.phase is Phase.OVER

    def _advance(self) -> None:
        if self.phase is Phase.COUNTING:
            if not self._succeed():
                self._move(Phase.NEVER)
                return
            self._builds = self._begin()
            self._move(Phase.COMPILING)
        if self.phase is Phase.COMPILING and all(build.done for build in self._builds):
            self._move(Phase.OVER)

    def _move(self, phase: Phase) -> None:
        self.phase = phase
        self.left_us = {Phase.COMPILING: self._pause_us, Phase.OVER: 0.0, Phase.NEVER: math.inf}[phase]

    def wait_for(self, builds: tuple[Build, ...]) -> None:
        """Further kernels are being compiled."""
        self._builds = builds
        self._move(Phase.COMPILING)

    def postpone(self) -> None:
        """New plans could not be made just now."""
        self.left_us = self._pause_us

    def hurry(self) -> None:
        """What is to be done next is to be done in the next call."""
        if self.phase is not Phase.NEVER:
            self.left_us = 0.0

    def skip(self) -> bool:
        """A call's products take long: plans with kernels of them are to be made at once. Whether they can be."""
        if self.phase is Phase.COUNTING and not self._succeed():
            self._move(Phase.NEVER)
        if self.phase is not Phase.NEVER:
            self._move(Phase.OVER)
        return self.phase is Phase.OVER
