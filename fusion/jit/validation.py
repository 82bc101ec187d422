"""How a scope comes to trust its plans, and what it does when one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from fusion import stack
from fusion.capture.decompositions import decomposed
from fusion.capture.python.argument_snapshot import ArgumentSnapshot
from fusion.capture.python.replay import Replay, replay
from fusion.capture.record import RecordedCall, unwrap_result
from fusion.capture.user_frame import line_of
from fusion.jit.cache_entry import CacheEntry, PlanStopped, same_results
from fusion.jit.pipeline import Pipeline
from fusion.jit.signature import Signature
from fusion.patterns.errors import StructureMismatch
from fusion.patterns.forks import Lock
from fusion.patterns.shortage import is_shortage, without_frames
from fusion.refusal import Refusal
from fusion.runtime.call_log import LoggedWrite
from fusion.runtime.plan import MISS, Deoptimized, LoggedError
from fusion.runtime.rollback import UndoLog

if TYPE_CHECKING:
    from fusion.jit.statistics import Statistics

MOST_ROUTES = 1  # recordings that data led elsewhere before the module that reads it becomes an eager step
_MOST_FAILURES = 3  # a plan that failed this often is dropped
_FORGIVEN_AFTER = 1000  # planned calls of the scope after which a failure no longer counts
_MOST_OUTGROWN = 4  # recordings that may make room for others before a scope's failing plans are refused instead


class PlanValidator:
    """The part of a scope that runs plans beside what they stand for.

    A recording's plan without kernels has to agree with the recorded run, and with eager at every further range of
    sizes; then kernels take their places. A plan that stops on the way hands over to the original.

    Attributes:
        outgrown: recordings whose guards did not hold for calls like theirs, and which made room for others.
    """

    if TYPE_CHECKING:
        pipeline: Pipeline
        signature: Signature
        statistics: Statistics
        known: list[CacheEntry]
        refused: dict[Any, Refusal]
        evictions: int
        _lock: Lock

        @property
        def line(self) -> str: ...
        def _publish(self) -> None: ...
        def _eager(self, arguments: Sequence[Any], reason: Refusal | None = None) -> Any: ...
        def _short_of_memory(self, error: BaseException) -> None: ...
        def compile_safely(self, key: Any, step: Callable[[], None]) -> None: ...
        def on_data_miss(self, known: CacheEntry, key: Any) -> bool: ...
        def _watch_further(self, modules: Sequence[torch.nn.Module]) -> None: ...

    def _prove(self, known: CacheEntry, recording: RecordedCall, arguments: Sequence[Any]) -> None:
        """Runs the unfused plan on the recorded call, then makes the fused one."""
        self._watch_further(recording.functions)
        self.known.append(known)
        values = dict(recording.values)
        try:
            with (
                self._replay(recording.log, arguments, recording),
                torch.no_grad(),
                recording.undo.rewound(),
                recording.given.rewound(),
            ):
                result, _, _, tap = known.checked_run(arguments, _let_go(known, recording))
                did, recorded = (result, recording.undo.now()), (recording.outcome, recording.left)
                exact = same_results(did, recorded)  # never so for MISS, which no forward returns
                agrees = exact or same_results(did, recorded, exact=False)
        except PlanStopped as stopped:
            if is_shortage(stopped.error):
                self.known.remove(known)
                raise
            known.refusal = self._plan_error(stopped.error)
            return
        if result is MISS:  # then it holds for no call, and recording such calls again would end here again
            self.statistics.guards.add(known.missed)
            what = "an argument, or what the forward finds, is not equal to itself a moment later: no plan is valid"
            known.refusal = self.refused[known.structure] = Refusal("guard", what, self.line)
            return
        if not agrees:
            known.refusal = Refusal("plan_mismatch", "the plan's result differs from the recorded run's", self.line)
            return
        del result, did, recorded
        try:
            compiled = self.pipeline.compile(known.template, {**recording.real, **tap}, values)
        finally:
            known.release(recording)
        del tap
        known.proved.add(known.key(values))
        if known.unbacked_symbols or not exact:
            known.proved.clear()  # a size that only an island tells, or another rounding: the next call is checked
        known.plan(compiled, *self._failed(known))
        self._publish()

    def _check(self, known: CacheEntry, arguments: Sequence[Any], values: dict[str, int]) -> Any:
        """A shape, or a range of sizes, that a recording's plan was not proved at: runs it beside eager, once."""
        regions = known.template.partition.regions
        taps = frozenset(i for r in regions for i in r.subgraph.inputs) | {s.value for s in known.graph.symbols}
        undo, given = UndoLog(), ArgumentSnapshot(dict(zip(self.signature.names, arguments, strict=True)))
        try:
            result, log, seen, tap = known.checked_run(arguments, taps, undo)
        except PlanStopped as stopped:
            undo.rewind()
            users = _island_raised(stopped.log)
            if not users:
                self.statistics.guards.left(stopped.error)
                without_frames(stopped)
            result = self._replayed(arguments, stopped.log, known)  # an error of the user's own comes again here
            if not users:
                self._count_failure(known, stopped.error)
            return result
        if result is MISS:
            self.statistics.guards.add(known.missed)
            return MISS
        left = undo.now()
        undo.rewind()
        try:
            with self._replay(log, arguments, known) as answers:
                eager = unwrap_result(self._eager(arguments))
        except Exception as error:
            if not is_shortage(error):
                raise
            self._short_of_memory(error)
            del result, seen, tap, left
            undo.rewind()
            eager = MISS
        if eager is MISS:
            return self._replayed(arguments, log, known)
        outcome = given.outcome(eager, known.graph.items)
        same = same_results(result, outcome) and same_results(seen, answers.seen) and undo.agrees(left)
        if not same:
            known.refusal = Refusal(
                "plan_mismatch", "the plan's result differs from eager's at another shape", self.line
            )
            self._publish()
            return eager
        full = {**values, **{s.symbol: _read(s, tap) for s in known.graph.symbols}}
        self.compile_safely(self.signature.structure(arguments), lambda: self._trust(known, values, full, tap))
        return eager

    def _trust(self, known: CacheEntry, values: dict[str, int], full: dict[str, int], tap: Mapping[str, Any]) -> None:
        """The unfused plan agreed with eager: makes the fused plan for these sizes."""
        if any(full[s] != v for s, v in known.recorded_values.items() if s in full):
            known.generalized = True
        known.proved.add(known.key(values))
        compiled = self.pipeline.compile(known.template, {**known.tensors, **tap}, full)
        for held, _ in list(known.plans.values()):
            known.plan(held, *self._failed(known))
        known.plan(compiled, *self._failed(known))
        self._publish()

    def _replayed(self, arguments: Sequence[Any], log: list[Any], known: CacheEntry) -> Any:
        """The original with the islands that already ran answering from the log."""
        with stack.lent(), self._replay(log, arguments, known):
            return unwrap_result(self._eager(arguments))

    @contextmanager
    def _replay(self, log: list[Any], arguments: Sequence[Any], of: RecordedCall | CacheEntry) -> Iterator[Replay]:
        """A session in which islands answer from `log`, and operators are what they were recorded as.

        So do the modules that were steps when `of` was recorded: a step that came later is looked into.
        """
        named = dict(zip(self.signature.names, arguments, strict=True))
        steps = [held for held in of.objects.values() if isinstance(held, torch.nn.Module)]
        with replay(log, named, steps) as answers, decomposed():
            yield answers

    def _failed(self, known: CacheEntry) -> tuple[Callable[..., Any], Callable[[Exception], None]]:
        """What a plan does when it fails, and when a kernel of it does that eager operators then stand in for."""

        def note(error: Exception) -> None:
            if not self.pipeline.config.fallback_on_error:
                raise error
            with self._lock:
                self._count_failure(known, error)

        def fail(error: BaseException, log: list[Any], arguments: tuple[Any, ...], undo: UndoLog | None) -> Any:
            if undo is not None and undo.partial:
                raise error  # what it has written cannot be taken back, so it must not run again
            if undo is not None:
                undo.rewind()
            users = _island_raised(log)  # which the user's code may catch
            if not (users or self.pipeline.config.fallback_on_error or isinstance(error, Deoptimized)):
                raise error
            if not users:
                self.statistics.guards.left(error)
                without_frames(error)
            result = self._replayed(arguments, log, known)  # an error of the user's own comes again here
            if not users:
                with self._lock:
                    self._count_failure(known, error)
            self.statistics.planned[0] -= 1  # the entry is about to count what it takes for a planned call
            return result

        return fail, note

    def _plan_error(self, error: BaseException) -> Refusal:
        """What to say of an error in a plan, or of a guard that did not hold in the midst of it."""
        guard = isinstance(error, (Deoptimized, StructureMismatch))
        remedy = "nothing to do, unless it happens often: then let what calls depend on stay the same" if guard else ""
        line = line_of(error) or (error.origin if isinstance(error, Deoptimized) else "") or self.line
        return Refusal("plan_error", f"{type(error).__name__}: {error}", line, remedy)

    def _count_failure(self, known: CacheEntry, error: BaseException) -> None:
        """A plan stopped where the original does not. One whose guards do not hold for such calls makes room for a new
        recording, a few times; one that keeps failing is not tried again."""
        self.statistics.fallbacks += 1
        if is_shortage(error):
            self._short_of_memory(error)
            return
        reason = self._plan_error(error)
        self.statistics.last_failure = reason
        if isinstance(error, RecursionError):
            return  # which says how deep the call was, and nothing of the plan
        done = self.statistics.planned[0]
        known.failures = 1 if done - known.failed_at > _FORGIVEN_AFTER else known.failures + 1
        known.failed_at = done
        evictions = isinstance(error, (Deoptimized, StructureMismatch))
        if evictions and self.evictions >= MOST_ROUTES and self.on_data_miss(known, known.structure):
            return
        if evictions and known in self.known and self.evictions < _MOST_OUTGROWN:
            self.evictions += 1
            self.known.remove(known)
        elif known.failures >= _MOST_FAILURES:
            known.refusal = reason
        self._publish()


def _let_go(known: CacheEntry, recording: RecordedCall) -> frozenset[str]:
    """What kernels are proved on that the recorded run has let go of."""
    inputs = {name for region in known.template.partition.regions for name in region.subgraph.inputs}
    return frozenset(name for name in inputs if name in recording.real and recording.real[name].is_meta)


def _island_raised(log: Sequence[Any]) -> bool:
    last = log[-1] if log else None
    return isinstance(last.entry if isinstance(last, LoggedWrite) else last, LoggedError)


def _read(source: Any, tap: Mapping[str, Any]) -> int:
    if source.kind == "result":
        return int(tap[source.value])
    tensor = tap[source.value]
    return int(tensor.shape[source.dim] if source.kind == "shape" else tensor.stride(source.dim))
