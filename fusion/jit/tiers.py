"""Small matrix products: torch computes them at first, kernels do once there were many calls.

To compile a kernel of a product takes as long as thousands of small products. So the first plans of a structure leave
those to torch, and its calls are counted. Once torch has spent as long in them as a kernel is worth, the compilers work
on the side while calls go on, and plans with such kernels take the place of the first ones.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from typing import Any

from fusion import faults, stack
from fusion.choices.background import Build
from fusion.partition import cost_model
from fusion.patterns.forks import Lock
from fusion.patterns.recorded import RecordedGraph
from fusion.runtime.plan import MISS

_LONG_US = 200.0  # from which on the products of one call are worth their kernels at once
_ASKS_AGAIN = 64  # calls from one that asks whether the compilers are done to the next


def calls_before(graph: RecordedGraph, values: Mapping[str, int], seconds: float) -> int:
    """Calls of a structure that leave its products to torch; 0 where it has none, or long ones.

    Args:
        graph: a recording.
        values: size symbols' values in it.
        seconds: how long torch may spend in the products of all these calls, by an estimate.
    """
    expected = cost_model.products_us(graph, values)
    return math.ceil(seconds * 1e6 / expected) if 0 < expected < _LONG_US else 0


class FirstTier:
    """Counts the calls of a structure until kernels of its products are worth compiling, and are compiled.

    Args:
        calls: how many calls that takes.
        begin: starts the compilers and gives what there is to wait for; None where plans are to stay as they are.

    Attributes:
        over: whether plans with kernels of products are to be made.
    """

    def __init__(self, calls: int, begin: Callable[[], tuple[Build, ...] | None]) -> None:
        self.over = False
        self._left = calls
        self._begin = begin
        self._builds: tuple[Build, ...] | None = None
        self._lock = Lock()

    def counted(self, plan: Callable[..., Any]) -> Callable[..., Any]:
        """A plan's function that counts its calls, and takes none once the tier is over."""

        def run(*arguments: Any) -> Any:
            self._left -= 1
            if self._left > 0 or not self._ends():
                return plan(*arguments)
            return MISS

        return run

    def passed(self, calls: int) -> None:
        """So many calls were made without a plan."""
        self._left -= calls
        if self._left <= 0:
            self._ends()

    def hurry(self) -> None:
        """The next call starts the compilers, if none has."""
        self._left = 0

    def _ends(self) -> bool:
        """Whether the compilers are done; the first to ask starts them."""
        if self.over or stack.is_short() or not self._lock.acquire(blocking=False):
            return self.over
        try:
            self._left = _ASKS_AGAIN
            if self._builds is None:
                self._builds = self._begin()
            if self._builds is None:
                self._left = sys.maxsize
            elif all(build.done for build in self._builds):
                self.over, self._left = True, 0
        except Exception as error:
            if not faults.is_passing(error):
                faults.noted(error, "kernels of matrix products")
                self._left = sys.maxsize
        finally:
            self._lock.release()
        return self.over
