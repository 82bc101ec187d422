"""Scopes of equal modules: one recording serves all 28 layers, as far as each does the same."""

from __future__ import annotations

from typing import Any

from fusion.capture.module_fingerprint import isomorphic
from fusion.capture.python.state_changes import PythonState
from fusion.capture.recorded_call import unwrap_result
from fusion.capture.retrace import follow
from fusion.jit.bound_call import BoundCall
from fusion.jit.cache_entry import CacheEntry
from fusion.jit.original import Original
from fusion.jit.pipeline import Pipeline
from fusion.jit.state_watch import StateWatch
from fusion.jit.validation import PlanValidator
from fusion.refusal import Refusal
from fusion.runtime.plan import MISS


class Twins:
    """Recordings of equal modules, which a scope follows rather than recording in full.

    Args:
        original: the scope's callable.
        pipeline: knows the recordings.
        watch: what the scope depends on.
        validator: proves what is followed.

    Attributes:
        diverged: whether the scope did something else than its twins; it is recorded in full then.
    """

    def __init__(self, original: Original, pipeline: Pipeline, watch: StateWatch, validator: PlanValidator) -> None:
        self.diverged = False
        self._original = original
        self._pipeline = pipeline
        self._watch = watch
        self._validator = validator

    def add(self, entry: CacheEntry) -> None:
        """Offers a recording to equal modules."""
        fingerprint = self._watch.fingerprint
        if fingerprint is not None and entry.refusal is None:
            entry.fingerprint = fingerprint
            self._pipeline.twins.setdefault(fingerprint.structure, []).append(entry)

    def find(self, call: BoundCall) -> tuple[CacheEntry, dict[str, int]] | None:
        """A recording of an equal module that applies to this call, and the input symbols' values in it."""
        fingerprint = self._watch.fingerprint
        if fingerprint is None or self.diverged:
            return None
        for entry in self._pipeline.twins.get(fingerprint.structure, ()):
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
        given, statistics = call.snapshot(), self._original.statistics
        found = {leaf.path: leaf.value for leaf in given.leaves}
        inputs = {i.name: found[i.path] for i in twin.graph.inputs}
        assert twin.recording.conditions is not None
        objects = {id(found[path]): path for path, _ in twin.recording.conditions.kinds}
        state = PythonState(self._watch.modules, outside=self._watch.outside)  # a scope with twins has no steps
        result, recording, why = follow(
            twin.recording, values, self._watch.modules[""], inputs, objects, lambda: self._original(call)
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
            statistics.last_reason = Refusal("guard", what, self._original.line, remedy)
            return result
        statistics.recordings += 1
        statistics.recording_seconds += recording.seconds
        entry = CacheEntry(recording, twin.template, self._pipeline, twin.reader)
        self._validator.compile_safely(call.structure, lambda: self._validator.prove(entry, recording, call))
        return result
