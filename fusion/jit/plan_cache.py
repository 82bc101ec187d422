"""The recordings of a scope, and the plans that its entry tries."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from fusion.jit.bound_call import BoundCall
from fusion.jit.cache_entry import CacheEntry, Role
from fusion.jit.compiled import Compiled
from fusion.jit.original import Original
from fusion.jit.plan_trial import by_turns
from fusion.jit.resting import Resting
from fusion.jit.signature import Rest
from fusion.jit.state_watch import StateWatch
from fusion.patterns.forks import Lock
from fusion.refusal import Refusal
from fusion.runtime.plan import MISS, Plan


class PlanCache:
    """What calls were recorded, and which are not recorded again.

    Args:
        watch: what all plans depend on.
        original: what the plans stand for.
        lock: held while the scope changes.
        upgrade: makes a call that a plan would take, when another is to take its place: of the recording, the plan and
            the arguments.

    Attributes:
        entries: recordings, oldest first.
        refused: why calls of a structure are not recorded.
        plans: what the entry tries in order, newest first. The entry holds this very list.
        rest: one function once every plan was dropped for being slower; else empty. The entry asks it before any guard
            whether a call is the original's. The entry holds this very list.
    """

    def __init__(
        self, watch: StateWatch, original: Original, lock: Lock, upgrade: Callable[..., Any] = lambda *_: MISS
    ) -> None:
        self.entries: list[CacheEntry] = []
        self.refused: dict[Any, Refusal] = {}
        self.plans: list[Callable[..., Any]] = []
        self._watch = watch
        self._original = original
        self._lock = lock
        self._upgrade = upgrade
        self.rest: list[Rest] = []
        self._resting = Resting(original.statistics)

    def publish(self) -> None:
        """Makes the plans of all usable recordings those that the entry tries."""
        self._watch.arm()
        self._list()

    def _list(self) -> None:
        usable = [entry for entry in self.entries if entry.refusal is None and entry.sizes.any]
        plans = [(entry, *known) for entry in usable for known in entry.plans.values()]
        kept = [one for one in reversed(plans) if one[1].trial.refusal is None]
        kept.sort(key=lambda one: not one[1].trial.done)  # telling whether one on trial takes a call takes longer
        dropped = len(kept) < len(plans)
        self.plans[:] = [self._run_of(*one) for one in kept] + ([self._pass_by] if dropped and kept else [])
        rest = (self._resting.takes, self._original.as_written, self._original.call)
        self.rest[:] = [rest] if dropped and not kept else []

    def lay_to_rest(self, call: BoundCall) -> None:
        """A call would have taken a plan that was dropped: others like it rest."""
        self._resting.add(call.arguments)

    def _pass_by(self, *arguments: Any) -> Any:
        """Behind the plans: the original's result for a call that rests; MISS for another one."""
        if not self._resting.takes(*arguments):
            return MISS
        result = self._original.as_written(self._original.call, *arguments)
        self._original.statistics.planned[0] -= 1  # the entry is going to count it
        return result

    def _run_of(self, entry: CacheEntry, compiled: Compiled, plan: Plan) -> Callable[..., Any]:
        if compiled.trial.done:
            if entry.first is None:
                return plan.run
            return entry.first.counted(plan.run, compiled.products_us, functools.partial(self._upgrade, entry))
        applies = functools.partial(entry.is_in, compiled.bucket)
        line = functools.partial(getattr, self._original, "line")
        return by_turns(plan.run, compiled.trial, self._original.instead, applies, self._settle, line)

    def _settle(self) -> None:
        """A plan's trial is over; where another thread changes the scope just now, a later call settles it."""
        if self._lock.acquire(blocking=False):
            try:
                self._list()
            finally:
                self._lock.release()

    def run(self, call: BoundCall) -> Any:
        """The result of the first plan that takes a call, or MISS."""
        for plan in list(self.plans):
            result = plan(*call.arguments)
            if result is not MISS:
                return result
        return MISS

    def replace(self, entry: CacheEntry, successor: CacheEntry) -> None:
        """Puts a recording's second plans in the place of its first ones."""
        self.entries[self.entries.index(entry)] = successor
        successor.role, entry.plans = Role.ALONE, {}  # equal modules still follow the entry
        self.publish()

    def hurry(self) -> None:
        """Where products are left to torch for now, the next call does what is to be done about it."""
        for entry in self.entries:
            if entry.first is not None:
                entry.first.hurry()

    @property
    def rests(self) -> bool:
        """Whether some calls pass by the plans."""
        return self._resting.any

    def drop(self, path: str, structure: Any) -> None:
        """Forgets recordings of calls of a structure in which the module at `path` read tensors' data."""
        self.entries = [one for one in self.entries if one.reader != path or one.structure != structure]
        self.publish()

    def forget(self) -> None:
        """Forgets every recording and refusal."""
        self.entries.clear()
        self.refused.clear()
        self._resting.forget()
        self.publish()
