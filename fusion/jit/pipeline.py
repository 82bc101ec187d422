"""From a recording to plans: one function, a comment for each stage."""

from __future__ import annotations

import torch

from fusion.capture.recorded_call import RecordedCall
from fusion.jit.bound_call import BoundCall
from fusion.jit.cache_entry import CacheEntry
from fusion.jit.scope_context import ScopeContext
from fusion.jit.validation import PlanValidator


class Pipeline:
    """Makes the plans of a scope's recordings.

    Args:
        scope: whose recordings.
        validator: proves plans.
    """

    def __init__(self, scope: ScopeContext, validator: PlanValidator) -> None:
        self._scope = scope
        self._validator = validator

    def adopt(self, recording: RecordedCall, call: BoundCall, twin: CacheEntry | None = None) -> CacheEntry:
        """From a recording to plans that the scope's entry tries.

        `call_recorder.py` has made the recording. A stage that refuses leaves its reason in the entry.

        Args:
            recording: one that was not refused.
            call: the recorded call.
            twin: the recording of an equal module that this one has followed; it was partitioned already.

        Returns:
            the recording with its plans.
        """
        scope, validator, values = self._scope, self._validator, dict(recording.values)
        # Partition the graph, and name the regions.
        template = twin.template.latest if twin else scope.stages.template(recording, scope.original.signature.names)
        # Write the function that tells whether a call is like the recorded one, and watch what else it depends on.
        entry = CacheEntry(recording, template, scope.stages, twin.reader if twin else self._reader(recording))
        entry.structure = call.structure
        if scope.watch.add(recording.functions):
            scope.cache.publish()
        scope.cache.entries.append(entry)
        # Run the plan without kernels on the recorded call: it has to do what the recorded run did.
        agreed = validator.agreed(entry, recording, call)
        if agreed is None:
            return entry
        # Choose kernels: by rule, then each is lowered, compiled, proved and timed. Put the steps in order.
        try:
            compiled = validator.choose_kernels(entry, {**recording.run.real, **agreed.tensors}, values)
        finally:
            entry.release()
        exact = agreed.exact
        del agreed  # its tensors are as large as activations
        if exact and not entry.sizes.unbacked:  # else the next call is checked, before a plan takes any
            entry.sizes.prove(values)
        # Write the plan, and bind this scope's tensors.
        if compiled is not None:
            entry.plan(compiled, *validator.on_failure(entry))
            scope.cache.publish()
        return entry

    def _reader(self, recording: RecordedCall) -> str | None:
        """The path of the module that read data in a recording, if one did."""
        module: torch.nn.Module | None = recording.reader
        if module is None:
            return None
        return next((path for path, held in self._scope.watch.modules[""].named_modules() if held is module), None)
