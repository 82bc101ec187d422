"""How a scope comes to trust its plans, and what it does when one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fusion import stack
from fusion.capture.decompositions import decomposed
from fusion.capture.python.replay import Replay, replay
from fusion.capture.recorded_call import RecordedCall, unwrap_result
from fusion.capture.user_frame import line_of
from fusion.choices.background import Compiling, postponed
from fusion.jit.bound_call import BoundCall
from fusion.jit.cache_entry import CacheEntry, PlanStopped, Role
from fusion.jit.compiled import Compiled
from fusion.jit.same_results import same_results
from fusion.jit.scope_context import ScopeContext
from fusion.patterns.errors import StructureMismatch
from fusion.patterns.forks import Lock
from fusion.patterns.known_products import remembered
from fusion.patterns.shortage import is_shortage, without_frames
from fusion.refusal import Refusal
from fusion.runtime.call_log import LoggedWrite
from fusion.runtime.plan import MISS, Deoptimized, LoggedError
from fusion.runtime.rollback import UndoLog

MOST_ROUTES = 1  # recordings left because data differed, before the module that reads it is called natively
_MOST_FAILURES = 3  # a plan that failed this often is dropped
_MOST_EVICTIONS = 4  # recordings that may make room for others before a scope's failing plans are refused instead


@dataclass(frozen=True, slots=True)
class Agreed:
    """A plan without kernels did what the recorded run did.

    Attributes:
        tensors: values that kernels are proved on and the recorded run has let go of, by name.
        exact: whether the results agreed to the bit, not only but for rounding.
    """

    tensors: dict[str, torch.Tensor]
    exact: bool


class PlanValidator:
    """Runs a scope's plans beside what they stand for.

    A recording's plan without kernels has to agree with the recorded run, and with eager at every further range of
    sizes; then kernels take their places. A plan that stops on the way hands over to the original.

    Args:
        scope: whose plans.
        lock: held while the scope changes.

    Attributes:
        evictions: recordings whose guards did not hold for calls like theirs, and which made room for others.
    """

    def __init__(self, scope: ScopeContext, lock: Lock) -> None:
        self.evictions = 0
        self._scope = scope
        self._statistics = scope.original.statistics
        self._lock = lock

    # ---- a new recording

    def choose_kernels(
        self, entry: CacheEntry, tensors: Mapping[str, torch.Tensor], values: Mapping[str, int]
    ) -> Compiled | None:
        """Kernels for the sizes of `values`; None while some are compiled on the side: a later call chooses then."""
        try:
            return self._scope.stages.compile(entry.template, tensors, values)
        except Compiling:
            return None

    def agreed(self, entry: CacheEntry, recording: RecordedCall, call: BoundCall) -> Agreed | None:
        """Runs the plan without kernels on the recorded call, with opaque calls answering from the recording.

        Returns:
            what came of it; None where the entry is refused.
        """
        try:
            with (
                self.replaying(recording.run.log, call, recording),
                torch.no_grad(),
                recording.run.undo.rewound(),
                recording.run.given.rewound(),
            ):
                run = entry.checked_run(call.arguments, _let_go(entry, recording))
                did, recorded = (run.result, recording.run.undo.now()), (recording.outcome, recording.run.left)
                exact = same_results(did, recorded)  # never so for MISS, which no forward returns
                agrees = exact or same_results(did, recorded, exact=False)
        except PlanStopped as stopped:
            if is_shortage(stopped.error):
                self._scope.cache.entries.remove(entry)
                raise
            entry.refusal = self._plan_error(stopped.error)
            return None
        line = self._scope.original.line
        if run.result is MISS:  # then it holds for no call, and recording such calls again would end here again
            self._statistics.guards.add(run.miss)
            what = "an argument, or what the forward finds, is not equal to itself a moment later: no plan is valid"
            entry.refusal = self._scope.cache.refused[entry.structure] = Refusal("guard", what, line)
            return None
        if not agrees:
            entry.refusal = Refusal("plan_mismatch", "the plan's result differs from the recorded run's", line)
            return None
        return Agreed(run.tap, exact)

    # ---- kernels that are compiled on the side

    def take_up(self, entry: CacheEntry, call: BoundCall, values: Mapping[str, int]) -> bool:
        """Makes the plan of a call whose sizes are proved, where an equal module has chosen its kernels meanwhile.

        Returns:
            whether there is a new plan.
        """
        compiled = entry.chosen(values)
        if compiled is None or not entry.sizes.are_proved(values):
            return False

        def plan() -> None:
            entry.plan(compiled, *self.on_failure(entry))
            self._scope.cache.publish()

        self.compile_safely(None if entry.role is Role.SUCCESSOR else call.structure, plan)
        return entry.chosen(values) is None

    # ---- sizes that are new

    def check(self, entry: CacheEntry, call: BoundCall, values: dict[str, int]) -> Any:
        """A shape, or a range of sizes, that a recording's plan was not proved at: runs it beside eager, once.

        Returns:
            eager's result, or MISS where a read of an argument answered otherwise; nothing has happened then.
        """
        with remembered(), postponed():
            return self._beside_eager(entry, call, values)

    def _beside_eager(self, entry: CacheEntry, call: BoundCall, values: dict[str, int]) -> Any:
        regions = entry.template.partition.regions
        taps = frozenset(i for r in regions for i in r.subgraph.inputs) | {s.value for s in entry.graph.symbols}
        undo, given = UndoLog(), call.snapshot()
        try:
            result, log, seen, tap, miss = entry.checked_run(call.arguments, taps, undo)
        except PlanStopped as stopped:
            undo.rewind()
            users = _opaque_call_raised(stopped.log)
            if not users:
                self._statistics.guards.left(stopped.error)
                without_frames(stopped)
            result = self._replayed(call, stopped.log, entry)  # an error of the user's own comes again here
            if not users:
                self._count_failure(entry, stopped.error)
            return result
        if result is MISS:
            self._statistics.guards.add(miss)
            return MISS
        left = undo.now()
        undo.rewind()
        try:
            with self.replaying(log, call, entry) as answers:
                eager = unwrap_result(self._scope.original.eager(call))
        except Exception as error:
            if not is_shortage(error):
                raise
            self.ran_out_of_memory(error)
            del result, seen, tap, left
            undo.rewind()
            eager = MISS
        if eager is MISS:
            return self._replayed(call, log, entry)
        outcome = given.outcome(eager, entry.graph.items)
        same = same_results(result, outcome) and same_results(seen, answers.seen) and undo.agrees(left)
        if not same:
            what = "the plan's result differs from eager's at another shape"
            entry.refusal = Refusal("plan_mismatch", what, self._scope.original.line)
            self._scope.cache.publish()
            return eager
        full = {**values, **{s.symbol: _read(s, tap) for s in entry.graph.symbols}}
        structure = None if entry.role is Role.SUCCESSOR else call.structure
        self.compile_safely(structure, lambda: self._trust(entry, values, full, tap))
        return eager

    def _trust(self, entry: CacheEntry, values: dict[str, int], full: dict[str, int], tap: Mapping[str, Any]) -> None:
        """The unfused plan agreed with eager: makes the fused plan for these sizes."""
        entry.sizes.compare(full)
        entry.sizes.prove(values)
        compiled = self.choose_kernels(entry, {**entry.bound.tensors, **tap}, full)
        chosen = [held for held, _ in entry.plans.values()] + ([compiled] if compiled is not None else [])
        for one in chosen:
            entry.plan(one, *self.on_failure(entry))
        self._scope.cache.publish()

    # ---- running again

    def _replayed(self, call: BoundCall, log: list[Any], entry: CacheEntry) -> Any:
        """The original with the opaque calls that already ran answering from the log."""
        with stack.lent(), self.replaying(log, call, entry):
            return unwrap_result(self._scope.original.eager(call))

    @contextmanager
    def replaying(self, log: list[Any], call: BoundCall, of: RecordedCall | CacheEntry) -> Iterator[Replay]:
        """A session in which opaque calls answer from `log`, and operators are what they were recorded as.

        So do the modules that were opaque when `of` was recorded: one that came later is looked into.
        """
        opaque = [held for held in of.bound.objects.values() if isinstance(held, torch.nn.Module)]
        with replay(log, call.tree.leaves, opaque) as answers, decomposed():
            yield answers

    # ---- failures

    def compile_safely(self, structure: Any, step: Callable[[], object]) -> None:
        """Compiles after a call whose result is known already: what goes wrong is noted, the result stands.

        Args:
            structure: of the call, which is not recorded again then; None where another plan takes such calls.
            step: what may go wrong.
        """
        try:
            step()
        except Exception as error:
            if not self._scope.stages.config.fallback_on_error:
                raise
            if is_shortage(error):
                self.ran_out_of_memory(error)
                return
            refusal = self._plan_error(error)
            self._statistics.last_reason = refusal
            deep = isinstance(error, RecursionError) and self._scope.lifecycle.ran_out_of_stack()
            if structure is not None and not deep:
                self._scope.cache.refused[structure] = refusal

    def ran_out_of_memory(self, error: BaseException) -> None:
        """Memory ran out while something was proved: nothing is known from it, and it is tried again later."""
        without_frames(error)
        self._scope.lifecycle.ran_out_of_memory()
        reason = Refusal("out_of_memory", f"{type(error).__name__}: {error}")
        self._statistics.last_reason = self._statistics.last_failure = reason

    def on_failure(self, entry: CacheEntry) -> tuple[Callable[..., Any], Callable[[Exception], None]]:
        """What a plan does when it fails, and when a kernel of it does that eager operators then stand in for."""

        def note(error: Exception) -> None:
            if not self._scope.stages.config.fallback_on_error:
                raise error
            with self._lock:
                self._count_failure(entry, error)

        def fail(error: BaseException, log: list[Any], arguments: tuple[Any, ...], undo: UndoLog | None) -> Any:
            if undo is not None and undo.partial:
                raise error  # what it has written cannot be taken back, so it must not run again
            if undo is not None:
                undo.rewind()
            users = _opaque_call_raised(log)  # which the user's code may catch
            if not (users or self._scope.stages.config.fallback_on_error or isinstance(error, Deoptimized)):
                raise error
            if not users:
                self._statistics.guards.left(error)
                without_frames(error)
            call = self._scope.original.signature.bind(arguments)
            result = self._replayed(call, log, entry)  # an error of the user's own comes again here
            if not users:
                with self._lock:
                    self._count_failure(entry, error)
            self._statistics.planned[0] -= 1  # the entry is about to count what it takes for a planned call
            return result

        return fail, note

    def _plan_error(self, error: BaseException) -> Refusal:
        """What to say of an error in a plan, or of a guard that did not hold in the midst of it."""
        guard = isinstance(error, (Deoptimized, StructureMismatch))
        remedy = "nothing to do, unless it happens often: then let what calls depend on stay the same" if guard else ""
        origin = line_of(error) or (error.origin if isinstance(error, Deoptimized) else "") or self._scope.original.line
        return Refusal("plan_error", f"{type(error).__name__}: {error}", origin, remedy)

    def _count_failure(self, entry: CacheEntry, error: BaseException) -> None:
        """A plan stopped where the original does not. One whose guards do not hold for such calls makes room for a new
        recording, a few times; one that keeps failing is not tried again."""
        self._statistics.fallbacks += 1
        if is_shortage(error):
            self.ran_out_of_memory(error)
            return
        reason = self._plan_error(error)
        self._statistics.last_failure = reason
        if isinstance(error, RecursionError):
            return  # which says how deep the call was, and nothing of the plan
        entry.failures.add(self._statistics.planned[0])
        missed = isinstance(error, (Deoptimized, StructureMismatch))
        if missed and self.evictions >= MOST_ROUTES and self._scope.breaks.on_data_miss(entry, entry.structure):
            return
        if missed and entry in self._scope.cache.entries and self.evictions < _MOST_EVICTIONS:
            self.evictions += 1
            self._scope.cache.entries.remove(entry)
        elif entry.failures.count >= _MOST_FAILURES:
            entry.refusal = reason
        self._scope.cache.publish()


def _let_go(entry: CacheEntry, recording: RecordedCall) -> frozenset[str]:
    """What kernels are proved on that the recorded run has let go of."""
    inputs = {name for region in entry.template.partition.regions for name in region.subgraph.inputs}
    real = recording.run.real
    return frozenset(name for name in inputs if name in real and real[name].is_meta)


def _opaque_call_raised(log: Sequence[Any]) -> bool:
    last = log[-1] if log else None
    return isinstance(last.entry if isinstance(last, LoggedWrite) else last, LoggedError)


def _read(source: Any, tap: Mapping[str, Any]) -> int:
    if source.kind == "result":
        return int(tap[source.value])
    tensor = tap[source.value]
    return int(tensor.shape[source.dim] if source.kind == "shape" else tensor.stride(source.dim))
