"""The recordings of a scope, and the plans that its entry tries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fusion.jit.bound_call import BoundCall
from fusion.jit.cache_entry import CacheEntry
from fusion.jit.state_watch import StateWatch
from fusion.refusal import Refusal
from fusion.runtime.plan import MISS


class PlanCache:
    """What calls were recorded, and which are not recorded again.

    Args:
        watch: what all plans depend on.

    Attributes:
        entries: recordings, oldest first.
        refused: why calls of a structure are not recorded.
        plans: what the entry tries in order, newest first. The entry holds this very list.
    """

    def __init__(self, watch: StateWatch) -> None:
        self.entries: list[CacheEntry] = []
        self.refused: dict[Any, Refusal] = {}
        self.plans: list[Callable[..., Any]] = []
        self._watch = watch

    def publish(self) -> None:
        """Makes the plans of all usable recordings those that the entry tries."""
        self._watch.arm()
        runs = [
            plan.run
            for entry in self.entries
            if entry.refusal is None and entry.sizes.any
            for _, plan in entry.plans.values()
        ]
        self.plans[:] = runs[::-1]

    def run(self, call: BoundCall) -> Any:
        """The result of the first plan that takes a call, or MISS."""
        for plan in list(self.plans):
            result = plan(*call.arguments)
            if result is not MISS:
                return result
        return MISS

    def drop(self, path: str, structure: Any) -> None:
        """Forgets recordings of calls of a structure in which the module at `path` read tensors' data."""
        self.entries = [one for one in self.entries if one.reader != path or one.structure != structure]
        self.publish()

    def forget(self) -> None:
        """Forgets every recording and refusal."""
        self.entries.clear()
        self.refused.clear()
        self.publish()
