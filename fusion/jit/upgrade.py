"""Plans without kernels of matrix products make room for plans with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch._C._dynamo.eval_frame import get_eval_frame_callback

from fusion import stack
from fusion.capture.python import interception
from fusion.jit.bound_call import BoundCall
from fusion.jit.cache_entry import CacheEntry, Role
from fusion.jit.lifecycle import Phase
from fusion.jit.scope_context import ScopeContext
from fusion.jit.validation import PlanValidator
from fusion.patterns.forks import Lock
from fusion.runtime.plan import MISS


class Upgrades:
    """Puts second plans in the places of first ones. A first plan runs until a second one is there.

    Args:
        scope: whose plans.
        validator: makes plans.
        lock: held while the scope changes.
    """

    def __init__(self, scope: ScopeContext, validator: PlanValidator, lock: Lock) -> None:
        self._scope = scope
        self._validator = validator
        self._lock = lock

    def in_place_of(self, entry: CacheEntry, plan: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """A call that a first plan would take, at a time when a second one may be made.

        Args:
            entry: the plan's recording.
            plan: the first plan, which takes the call where this is no place to make another, or a thread is at it.
            arguments: of the call.
        """
        aside = stack.is_short() or interception.in_session() or get_eval_frame_callback()
        if aside or not self._lock.acquire(blocking=False):
            return plan(*arguments)
        try:
            values = entry.match(*arguments) if entry in self._scope.cache.entries else MISS
            if values is MISS:
                return plan(*arguments)
            call = self._scope.original.signature.bind(arguments)
            result = self.make(entry, call, values)
            if result is not MISS:
                self._scope.original.statistics.planned[0] -= 1  # it was eager, and the entry is going to count it
                return result
        finally:
            self._lock.release()
        return self._scope.cache.run(call)

    def make(self, entry: CacheEntry, call: BoundCall, values: dict[str, int]) -> Any:
        """Makes the second plan for a call; the first stays where that fails.

        Returns:
            eager's result, where the plan was checked beside it; else MISS: the call is still to be made.
        """
        successor = entry.successor()
        result = MISS
        if not self._validator.take_up(successor, call, values):
            result = self._validator.check(successor, call, values)
        if successor.plans:
            self._scope.cache.replace(entry, successor)
            self._scope.stages.small_products.store_worth(successor.graph)
        else:
            self._keep(entry, successor, values)
        return result

    def _keep(self, entry: CacheEntry, successor: CacheEntry, values: Mapping[str, int]) -> None:
        """There is no second plan: the first goes on, for good unless one may be made later."""
        first, builds = entry.first, successor.builds(values)
        if first is not None and builds:
            first.wait_for(builds)
        elif first is not None and self._scope.lifecycle.phase is Phase.PAUSED:
            first.postpone()  # memory ran out, which says nothing of the second plan
        else:
            entry.role = Role.STAYS
        self._scope.cache.publish()
