"""A call that no plan takes: recorded, made once more, and compiled; or found to be like an equal module's."""

from __future__ import annotations

import itertools
from typing import Any

from fusion.capture.record import record
from fusion.capture.recorded_call import RecordedCall
from fusion.choices.background import postponed
from fusion.jit.bound_call import BoundCall
from fusion.jit.call_differences import differed
from fusion.jit.compiled import Lists
from fusion.jit.pipeline import Pipeline
from fusion.jit.same_results import same_results
from fusion.jit.scope_context import ScopeContext
from fusion.jit.specialization import Specialization
from fusion.jit.twins import Twins
from fusion.jit.validation import PlanValidator
from fusion.patterns.known_products import remembered
from fusion.patterns.shortage import is_shortage
from fusion.refusal import Refusal
from fusion.runtime.plan import MISS


class CallRecorder:
    """Records calls of a scope.

    Args:
        scope: whose calls.
        sizes: which numbers of a call its recording is made for.
        validator: proves what was recorded.

    Attributes:
        sizes: as given.
        twins: recordings of equal modules.
    """

    def __init__(self, scope: ScopeContext, sizes: Specialization, validator: PlanValidator) -> None:
        pipeline = Pipeline(scope, validator)
        self.twins = Twins(scope, validator, pipeline)
        self._scope = scope
        self.sizes = sizes
        self._validator = validator
        self._pipeline = pipeline

    def record(self, call: BoundCall) -> Any:
        """Records a call, or follows an equal module's recording, and compiles what came of it."""
        # A large product is computed once for all the runs that this takes.
        with remembered(), postponed():
            return self._recorded(call)

    def _recorded(self, call: BoundCall) -> Any:
        lists = self.sizes.lists(call)
        if lists is not None:
            lists.keys.add(call.structure)  # also what is refused in the end: asking costs a recording each time
        self._scope.breaks.break_where_data_led(call.structure)
        steps = self._scope.breaks.of(call.structure)
        twin = None if steps else self.twins.find(call)
        if twin is not None:
            return self.twins.follow(*twin, call)
        runs = itertools.count()
        try:
            recording = record(
                self._scope.original.call,
                call.snapshot(),
                lambda: (next(runs), self._scope.original(call))[1],
                self._scope.watch.modules,
                steps=steps,
                max_ops=self._scope.stages.config.max_graph_size,
                varying=self.sizes.varying(call, self._scope.cache.entries),
                outside=self._scope.watch.outside,
                numbers=call.structure in self.sizes.numbers,
            )
        except Exception as error:
            if next(runs):
                raise  # the forward's own
            refusal = Refusal("recorder_error", f"{type(error).__name__} before the forward ran: {error}")
            self._scope.cache.refused[call.structure] = refusal
            return self._scope.original.eager(call, refusal)
        self._scope.original.statistics.recordings += 1
        self._scope.original.statistics.recording_seconds += recording.seconds
        if recording.refusal is not None:
            self._refuse(call, recording, recording.refusal, lists)
            return recording.result
        return self._compared(call, recording, has_steps=bool(steps))

    def _refuse(self, call: BoundCall, recording: RecordedCall, refusal: Refusal, lists: Lists | None) -> None:
        """What becomes of a call's structure that could not be recorded."""
        self._scope.original.statistics.eager += 1
        self._scope.original.statistics.last_reason = refusal
        if refusal.code == "out_of_memory":
            self._scope.lifecycle.ran_out_of_memory()
        elif refusal.code == "stack" and self._scope.lifecycle.ran_out_of_stack():
            pass  # a call that is less deep may be recorded
        elif recording.failure.symbolic and recording.failure.module in (None, self._scope.watch.modules.get("")):
            self.sizes.numbers.add(call.structure)  # a plan for each size then, up to `max_plans`
        elif not self._scope.breaks.divide(
            call.structure, refusal, recording.failure.module, recording.failure.changes_state
        ):
            if refusal.code == "fixed_size" and lists is not None and len(lists.keys) > 1:
                lists.keys.discard(call.structure)
                lists.full = True  # the numbers fix a size, and vary as it does
            elif refusal.code == "fixed_size" and not self._scope.breaks.divided:
                self.sizes.every_size = True
            else:
                self._scope.cache.refused[call.structure] = refusal

    def _compared(self, call: BoundCall, recording: RecordedCall, *, has_steps: bool) -> Any:
        """Makes the recorded call once more without symbols, which is what the caller gets; then compiles it."""
        try:
            plain = self._again(call, recording)
        except Exception as error:
            if not is_shortage(error):
                raise
            self._validator.ran_out_of_memory(error)
            recording, plain = recording.bare(), MISS
        if plain is MISS:
            return self._again(call, recording)
        assert recording.graph is not None
        outcome = recording.run.given.outcome(plain, recording.graph.items)
        alike = same_results(outcome, recording.outcome, exact=False)
        if not (alike and same_results(recording.run.undo.now(), recording.run.left, exact=False)):
            self._use_numbers(call, differed(outcome, recording.outcome, self._scope.original.line))
            return recording.result if has_steps else plain  # only the recorded run ran the steps
        del outcome
        if same_results(plain, recording.result):
            recording.share(plain)
        self._validator.compile_safely(call.structure, lambda: self.adopt(recording, call))
        return plain

    def _again(self, call: BoundCall, recording: RecordedCall) -> Any:
        """The recorded call without symbols."""
        recording.run.undo.rewind()
        recording.run.given.rewind()
        with self._validator.replaying(recording.run.log, call, recording):
            return self._scope.original.eager(call)

    def _use_numbers(self, call: BoundCall, refusal: Refusal) -> None:
        """A forward did something else with symbols for sizes: the next call like it is recorded with numbers."""
        self._scope.original.statistics.last_reason = refusal
        if call.structure in self.sizes.numbers:
            self._scope.cache.refused[call.structure] = refusal
        self.sizes.numbers.add(call.structure)

    def adopt(self, recording: RecordedCall, call: BoundCall) -> None:
        entry = self._pipeline.adopt(recording, call)
        if not self._scope.breaks.of(call.structure):
            self.twins.add(entry)
