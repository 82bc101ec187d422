"""A scope: one callable that is recorded on first calls and dispatched to plans afterwards."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._C._dynamo.eval_frame import get_eval_frame_callback

from fusion import stack
from fusion.capture.python import interception
from fusion.capture.python.state_guards import problems
from fusion.capture.recorded_call import RecordedCall
from fusion.integrations.compile import opaque, undisturbed
from fusion.jit.backoff import Backoff
from fusion.jit.bound_call import BoundCall
from fusion.jit.cache_entry import CacheEntry
from fusion.jit.call_differences import too_many_plans
from fusion.jit.call_recorder import CallRecorder
from fusion.jit.graph_breaks import GraphBreaks
from fusion.jit.lifecycle import Lifecycle, Phase
from fusion.jit.original import Original
from fusion.jit.plan_cache import PlanCache
from fusion.jit.plan_trial import PlanTrial
from fusion.jit.resting import RESTS
from fusion.jit.scope_context import ScopeContext
from fusion.jit.signature import Signature
from fusion.jit.specialization import Specialization
from fusion.jit.stages import Stages
from fusion.jit.state_watch import StateWatch, Surroundings
from fusion.jit.statistics import Statistics
from fusion.jit.upgrade import Upgrades
from fusion.jit.validation import MOST_ROUTES, PlanValidator
from fusion.patterns.forks import Lock
from fusion.refusal import Refusal
from fusion.runtime.plan import MISS

_DEEP = Refusal("stack", "recording takes more stack than is left")
_INSIDE = Refusal("active_mode", "a scope around this one is recorded or run again", remedy="nothing to do: it passes")
_WAITS = object()  # in the place of a result: the call runs eagerly, once the scope may be entered by others again
_COMPILING = Refusal("compiling", "kernels for such calls are being compiled on the side")
_OTHER_INPUTS = Refusal("guard", "the inputs do not have the recorded structure")


class Scope:
    """A callable under fusion. `entry` is a function with the callable's own signature.

    Args:
        name: for the report.
        call: the callable.
        stages: compiles its recordings.
        modules: modules whose tensors it may use, by path prefix.
        enabled: asked at every slow call; False runs eagerly.
        watch: objects whose plain attributes the callable depends on.
        records: whether a call that no recording applies to is recorded, rather than passed to `call`.
        steps: modules inside that are called natively, by path: scopes of their own, or parts that run eagerly. Calls
            of one structure may have further ones (`make_step`).
        divide: told of the structure of a call, its recording's refusal, the module in which it arose, and whether the
            run changed the modules' Python state; True when it took the scope, or its steps, apart, so that a later
            call may be recorded.
        surroundings: gives the modules, and further snapshot entries, where they are found rather than given.
        in_place: whether the modules are as calls will find them; without it, they are changed inside `placing`.
        bound: what `entry` is a method of, where the callable is one.
    """

    def __init__(
        self,
        name: str,
        call: Callable[..., Any],
        stages: Stages,
        modules: Mapping[str, torch.nn.Module] | None = None,
        enabled: Callable[[], bool] = lambda: True,
        watch: Sequence[Any] = (),
        records: bool = True,
        steps: Mapping[str, torch.nn.Module] | None = None,
        divide: Callable[[Scope, Any, Refusal, torch.nn.Module | None, bool], bool] = lambda *_: False,
        surroundings: Surroundings | None = None,
        in_place: bool = True,
        bound: Any = None,
    ) -> None:
        self.name = name
        self.enabled = enabled
        self.stages = stages
        self.records = records
        self._lock = Lock()
        self._original = original = Original(call)
        native = dict(steps or {})
        self.watch = StateWatch(modules or {}, watch, surroundings, native, lambda: original.line, self._install)
        self.breaks = GraphBreaks(native, self.watch, stages.routed, functools.partial(divide, self))
        self.cache = PlanCache(self.watch, original, self._lock, lambda *given: self._upgrades.in_place_of(*given))
        self.lifecycle = Lifecycle(self.watch, warms=bool(native))
        self._backoff = Backoff()
        context = ScopeContext(original, stages, self.cache, self.watch, self.breaks, self.lifecycle)
        self._validator = PlanValidator(context, self._lock)
        self._upgrades = Upgrades(context, self._validator, self._lock)
        self._recorder = CallRecorder(context, Specialization(self.watch, stages.lists), self._validator)
        self.entry = original.signature.entry(
            self.cache.rest, self.cache.plans, self.statistics.planned, self._slow, bound
        )
        if in_place:
            self.watch.refresh()

    def __repr__(self) -> str:
        counts = f"{len(self.known)} recordings, {len(self.cache.plans)} plans, {len(self.refused)} refusals"
        return f"<Scope {self.name!r}: {self.lifecycle}; {counts}>"

    # ---- what is known of it

    @property
    def statistics(self) -> Statistics:
        """What became of its calls."""
        return self._original.statistics

    @property
    def known(self) -> list[CacheEntry]:
        """Its recordings, oldest first."""
        return self.cache.entries

    @property
    def refused(self) -> dict[Any, Refusal]:
        """Why calls of a structure are not recorded."""
        return self.cache.refused

    @property
    def signature(self) -> Signature:
        """The callable's parameters."""
        return self._original.signature

    @property
    def line(self) -> str:
        """ "file:line" where the user has defined the callable, or calls it."""
        return self._original.line

    @property
    def progress(self) -> tuple[object, ...]:
        """Changes with each call that was recorded or checked, or got a plan: equal after two calls that only ran."""
        known = [(len(one.plans), len(one.sizes.proved), one.refusal is None, one.tier) for one in self.known]
        return (self.statistics.recordings, self.lifecycle.phase, len(self.refused), len(self.cache.plans), *known)

    @property
    def turns(self) -> int:
        """Calls so far that were to tell whether its plans are faster than the callable."""
        return sum(one.turns for one in self.known)

    def _install(self, unchanged: Callable[[], bool]) -> None:
        self.entry.__globals__["_f_unchanged"] = unchanged

    # ---- changes to the modules around

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Inside the block the entry is put into the modules; calls of other threads wait until they are watched."""
        with self._lock:
            yield
            self.watch.refresh()

    @contextmanager
    def preserve_entries(self) -> Iterator[None]:
        """Inside the block modules become scopes: what was recorded through them stands, if it stood before."""
        if not self.known or not self._lock.acquire(blocking=False):
            yield  # nothing to lose; or in use just now, so that the call after finds out
            return
        try:
            held = self.watch.holds()
            yield
            if held and not self.watch.holds():
                self.watch.refresh()
                if self.watch.refusal is None:
                    self.cache.publish()
                else:
                    self.forget()
        finally:
            self._lock.release()

    def make_step(self, path: str, module: torch.nn.Module, structure: Any, *, changing: bool) -> None:
        """Makes a module a step.

        Args:
            path: of the module inside the scope.
            module: the module.
            structure: of the calls; others still look into it, and so it stays watched.
            changing: its forward changes its Python state: nothing can be recorded through it, whatever the call.
        """
        if changing:
            self.breaks.modules[path] = module
        else:
            self.breaks.add(path, module, structure)
        self.watch.refresh()
        if changing:
            self.forget()
        else:
            self.cache.drop(path, structure)

    def forget(self) -> None:
        """Every recording is void."""
        self._recorder.sizes.forget()
        self._backoff.forget()
        self.cache.forget()

    # ---- a call that no plan has taken

    @opaque
    def _slow(self, *arguments: Any) -> Any:
        if get_eval_frame_callback():
            return undisturbed(self.signature.invoke, self.entry, arguments)
        call = self.signature.bind(arguments)
        if stack.is_short():
            with stack.lent():
                return self._original.eager(call, _DEEP)
        return self._dispatch(call)

    def _dispatch(self, call: BoundCall) -> Any:
        if not self.enabled():
            return self._original.passed(call, Refusal("disabled", "enable_fusion is False"))
        if self.lifecycle.phase is Phase.GIVEN_UP:
            return self._original.eager(call, self.lifecycle.refusal())
        if self._backoff.rests(call.kinds):
            return self._original.eager(call)
        if interception.in_session():
            return self._original.eager(call, _INSIDE)
        problem = problems(self.watch.modules, self.breaks.modules.values())
        if problem is not None:
            return self._original.passed(call, problem)
        with self._lock:
            result = self._advance(call)
        return self._original.eager(call, _COMPILING) if result is _WAITS else result

    def _advance(self, call: BoundCall) -> Any:
        """Plans as things are now, then recordings whose plans are not proved for the call, then a new recording."""
        if not self.watch.holds():
            before = self.watch.entries
            if self.watch.has_changed():
                self.statistics.guards.changed(before, self.watch.modules, self.line)
                self._void()
            else:
                self.cache.publish()
            if self.lifecycle.phase is not Phase.GIVEN_UP:
                result = self.cache.run(call)
                if result is not MISS:
                    self.statistics.planned[0] += 1
                    return result
        reason = self.lifecycle.refusal()
        if reason is not None:
            self.lifecycle.passed()
            return self._original.eager(call, reason)
        try:
            refusal = self.refused.get(call.structure) or self._recorder.sizes.refusal(call)
        except Exception as error:  # an argument that holds itself, or answers no question
            what = f"{type(error).__name__} where it is looked into"
            return self._original.eager(call, Refusal("opaque_argument", what))
        if refusal is not None:
            self._backoff.begin(call.kinds)
            return self._original.eager(call, refusal)
        result = self._checked(call)
        return self._recorded(call) if result is MISS else result

    def _void(self) -> None:
        """What the callable depends on has changed: what was recorded holds no longer."""
        self.lifecycle.changed()
        self._recorder.twins.diverged = False
        self.forget()

    def _checked(self, call: BoundCall) -> Any:
        """The result of a recording that applies to a call, whose plan is checked for it; MISS where none does.

        _WAITS while kernels for the call are compiled on the side.
        """
        routed = 0
        for entry in self.known:
            values = entry.match(*call.arguments)
            if values is MISS:
                continue
            self._backoff.end(call.kinds)
            if entry.refusal is not None:
                return self._original.eager(call, entry.refusal)
            if entry.lags(values):
                result = self._upgrades.make(entry, call, values)
                if result is not MISS:
                    return result
                result = self.cache.run(call)
                if result is not MISS:
                    self.statistics.planned[0] += 1
                    return result
            if entry.waits(values):
                return _WAITS
            trial = entry.trial(values)
            if trial is not None and trial.refusal is not None:
                return self._dropped(call, entry, values, trial)
            result = self.cache.run(call) if self._validator.take_up(entry, call, values) else MISS
            if result is not MISS:
                self.statistics.planned[0] += 1
                return result
            result = self._validator.check(entry, call, values)
            if result is not MISS:  # else a read of an argument answered otherwise; nothing has happened yet
                return result
            routed += entry.reader is not None
            if routed >= MOST_ROUTES and self.breaks.on_data_miss(entry, call.structure):
                return self._original.eager(call)
        return MISS

    def _dropped(self, call: BoundCall, entry: CacheEntry, values: Mapping[str, int], trial: PlanTrial) -> Any:
        """The result of a call whose plan is slower than the callable; now and then the plan is tried again."""
        reason = trial.refusal
        if entry.first is not None:
            entry.first.left_us -= entry.products_us(values) * (RESTS if self.cache.rests else 1)
        if trial.ask_again():
            self.cache.publish()
        else:
            self.cache.lay_to_rest(call)
        return self._original.eager(call, reason)

    def _recorded(self, call: BoundCall) -> Any:
        """The result of a call that no recording applies to; it is recorded, where there is room for one more."""
        if self.known:
            self.statistics.guard_misses += 1
            owner = "self" if "" in self.watch.modules else ""
            self.statistics.guards.call(self.known, call.arguments, owner, self.line)
        if not self.records:
            self._backoff.end(call.kinds)
            return self._original.passed(call, _OTHER_INPUTS)
        if len(self.known) >= self.stages.config.max_plans:
            full = self.statistics.passing.get("too_many_plans")  # which takes longer to tell than a call may
            self._backoff.begin(call.kinds)
            return self._original.passed(call, full or too_many_plans(self.known, call.tree))
        self._backoff.end(call.kinds)
        if self.lifecycle.warmed():
            return self._original.eager(call)
        return self._recorder.record(call)

    def adopt(self, recording: RecordedCall, arguments: Sequence[Any]) -> None:
        """Compiles a recording that was made elsewhere.

        Args:
            recording: one that was not refused.
            arguments: the recorded call's, in signature order.
        """
        self._recorder.adopt(recording, self.signature.bind(arguments))
