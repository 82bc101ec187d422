"""Scopes of equal modules: one recording serves all 28 layers, as far as each does the same."""

from __future__ import annotations

from typing import Any

from fusion.capture.module_fingerprint import isomorphic
from fusion.capture.python.state_changes import PythonState
from fusion.capture.recorded_call import unwrap_result
from fusion.capture.retrace import follow
from fusion.jit.bound_call import BoundCall
from fusion.jit.cache_entry import CacheEntry
from fusion.jit.pipeline import Pipeline
from fusion.jit.scope_context import ScopeContext
from fusion.jit.validation import PlanValidator
from fusion.refusal import Refusal
from fusion.runtime.plan import MISS


class Twins:
    """Recordings of equal modules, which a scope follows rather than recording in full.

    Args:
        scope: what follows.
        validator: notes what goes wrong.
        pipeline: makes plans of what was followed.

    Attributes:
        diverged: whether the scope did something else than its twins; it is recorded in full then.
    """

    def __init__(self, scope: ScopeContext, validator: PlanValidator, pipeline: Pipeline) -> None:
        self.diverged = False
        self._scope = scope
        self._validator = validator
        self._pipeline = pipeline

    def add(self, entry: CacheEntry) -> None:
        """Offers a recording to equal modules."""
        fingerprint = self._scope.watch.fingerprint
        if fingerprint is not None and entry.refusal is None:
            entry.fingerprint = fingerprint
            self._scope.stages.twins.setdefault(fingerprint.structure, []).append(entry)

    def find(self, call: BoundCall) -> tuple[CacheEntry, dict[str, int]] | None:
        """A recording of an equal module that applies to this call, and the input symbols' values in it."""
        fingerprint = self._scope.watch.fingerprint
        if fingerprint is None or self.diverged:
            return None
        for entry in self._scope.stages.twins.get(fingerprint.structure, ()):
            if not entry.graph.items and isomorphic(entry.fingerprint, fingerprint, entry.graph):
                values = entry.match(*call.arguments)
                if values is not MISS:
                    return entry, values
        return None

    def follow(self, twin: CacheEntry, values: dict[str, int], call: BoundCall) -> Any:
        """Records a call by following an equal module's recording; if they part, the next call is recorded.

        Returns:
            the call's result.
        """
        given, statistics = call.snapshot(), self._scope.original.statistics
        found = {leaf.path: leaf.value for leaf in given.leaves}
        inputs = {i.name: found[i.path] for i in twin.graph.inputs}
        assert twin.recording.conditions is not None
        objects = {id(found[path]): path for path, _ in twin.recording.conditions.kinds}
        # A scope that has twins has no opaque modules inside.
        state = PythonState(self._scope.watch.modules, outside=self._scope.watch.outside)
        result, recording, why = follow(
            twin.recording, values, self._scope.watch.modules[""], inputs, objects, lambda: self._scope.original(call)
        )
        result = unwrap_result(result)
        statistics.eager += 1
        change = state.change()
        if change is None and given.set_items() != ():
            change = "changes a list or dict it was given"
        if recording is None or change is not None:
            self.diverged = True
            what = f"it does something else than an equal module: {why or change}"
            remedy = "nothing to do: it is recorded by itself"
            statistics.last_reason = Refusal("guard", what, self._scope.original.line, remedy)
            return result
        statistics.recordings += 1
        statistics.recording_seconds += recording.seconds
        self._validator.compile_safely(call.structure, lambda: self._pipeline.adopt(recording, call, twin))
        return result
