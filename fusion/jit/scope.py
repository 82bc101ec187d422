"""A scope: one callable that is recorded on first calls and dispatched to plans afterwards."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch._C._dynamo.eval_frame import get_eval_frame_callback

from fusion import stack
from fusion.capture.module_fingerprint import ModuleFingerprint, fingerprint, isomorphic
from fusion.capture.python import interception
from fusion.capture.python.argument_snapshot import ArgumentSnapshot
from fusion.capture.python.argument_tree import flatten
from fusion.capture.python.state_changes import PythonState
from fusion.capture.python.state_guards import problems, unchanged, watched
from fusion.capture.record import RecordedCall, call_line, record, unwrap_result
from fusion.capture.retrace import follow
from fusion.capture.user_frame import user_line
from fusion.integrations.compile import opaque, undisturbed
from fusion.jit.cache_entry import CacheEntry, same_results
from fusion.jit.call_differences import differed, too_many_plans
from fusion.jit.compiled import Lists
from fusion.jit.pipeline import Pipeline
from fusion.jit.signature import Signature
from fusion.jit.statistics import Statistics
from fusion.jit.validation import MOST_ROUTES, PlanValidator
from fusion.patterns.forks import Lock
from fusion.patterns.leaves import Path
from fusion.patterns.shortage import is_shortage, without_frames
from fusion.refusal import Refusal, Refused
from fusion.runtime.native import make_snapshot
from fusion.runtime.plan import MISS

_Seen = TypeVar("_Seen")

_MOST_LISTS = 2  # of numbers that calls of one form are recorded with
_MOST_PASSING = 4  # times that a scope ran out of stack while it was compiled, before it stays eager
_MOST_RESETS = 8  # a scope whose modules changed this often stays eager
_RESTS_AFTER = 8  # calls of one kind that no plan takes, after which only every `_LOOKS_UP`th is asked what it is
_LOOKS_UP = 64
_LOOKS = 8  # times that state is looked at before another thread's changes are too many
_DEEP = Refusal("stack", "recording takes more stack than is left")
_RESTLESS = Refusal(
    "python_state",
    f"what the modules hold has changed more than {_MOST_RESETS} times, and each change made the plans void",
    remedy="pass what changes as an argument, or enable the model once it is set up",
)
_INSIDE = Refusal("active_mode", "a scope around this one is recorded or run again", remedy="nothing to do: it passes")
_WAITS_AFTER_SHORTAGE = 64  # slow calls that are not recorded or proved after memory ran out while one was
_SHORT = Refusal("out_of_memory", "memory ran out a few calls ago; they run eagerly for a while")


class Scope(PlanValidator):
    """A callable under fusion. `entry` is a function with the callable's own signature.

    Args:
        name: for the report.
        call: the callable.
        pipeline: compiles its recordings.
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
        pipeline: Pipeline,
        modules: Mapping[str, torch.nn.Module] | None = None,
        enabled: Callable[[], bool] = lambda: True,
        watch: Sequence[Any] = (),
        records: bool = True,
        steps: Mapping[str, torch.nn.Module] | None = None,
        divide: Callable[[Scope, Any, Refusal, torch.nn.Module | None, bool], bool] = lambda *_: False,
        surroundings: Callable[[], tuple[dict[str, torch.nn.Module], list[tuple[Any, ...]]]] | None = None,
        in_place: bool = True,
        bound: Any = None,
    ) -> None:
        self.name = name
        self.call = call
        self.pipeline = pipeline
        self.modules = dict(modules or {})
        self.enabled = enabled
        self.watch = tuple(watch)
        self.records = records
        self.steps = dict(steps or {})
        self.further: dict[Any, dict[str, torch.nn.Module]] = {}  # by the structure of the calls
        self.divide = divide
        self.surroundings = surroundings
        self._numbers: set[Any] = set()  # structures of calls that are recorded without symbols for their sizes
        self._passing = 0  # times that compiling ran out of stack
        self._backoff: dict[Any, int] = {}  # calls that no plan takes, by kinds of arguments
        self._own_lists: dict[Any, Lists] = {}  # by the form of the calls, where no scope is like this one
        self._short = 0  # calls to wait before memory is asked for again
        self._waits = bool(self.steps)  # steps record themselves in the first call
        self.statistics = Statistics()
        self.known: list[CacheEntry] = []
        self.refused: dict[Any, Refusal] = {}
        self.resets = 0
        self.snapshot: Callable[[], bool] | None = None
        self.blocked: Refusal | None = None  # why this scope cannot be watched
        self.evictions = 0
        self.divided = False  # its parts became scopes
        self.whole = False  # a size that varies is needed as a number, and there is nothing to take apart
        self.twin_diverged = False  # differed from its twins: recorded in full
        self.fingerprint: ModuleFingerprint | None = None
        self._lock = Lock()
        self.signature = Signature(call)
        self._plans: list[Callable[..., Any]] = []
        self.entry = self.signature.entry(self._plans, self.statistics.planned, self._slow, bound)
        if in_place:
            self.refresh()

    # ---- the fast path

    def refresh(self) -> None:
        """Takes the modules as they are now as what plans are valid for."""
        try:
            self.watching = self._watched()
            only = list(self.modules) == [""] and not self.steps
            self.fingerprint = _settled(lambda: fingerprint(self.modules[""])) if only else None
            self.blocked = None
        except Refused as refused:
            refusal = refused.refusal
            self.watching, self.blocked = [], replace(refusal, origin=refusal.origin or self.line)
            self.fingerprint = None
        self.snapshot = None
        self.entry.__globals__["_f_unchanged"] = _unwatched

    @contextmanager
    def placing(self) -> Iterator[None]:
        """Inside the block the entry is put into the modules; calls of other threads wait until they are watched."""
        with self._lock:
            yield
            self.refresh()

    def steps_of(self, key: Any) -> dict[str, torch.nn.Module]:
        """The steps of calls of one structure, by path."""
        return {**self.steps, **self.further.get(key, {})}

    def make_step(self, path: str, module: torch.nn.Module, key: Any, *, changing: bool) -> None:
        """Makes a module a step.

        Args:
            path: of the module inside the scope.
            module: the module.
            key: of what structure the calls are; calls of others still look into it, and so it stays watched.
            changing: its forward changes its Python state: nothing can be recorded through it, whatever the call.
        """
        if changing:
            self.steps[path] = module
        else:
            self.further.setdefault(key, {})[path] = module
        self.refresh()
        if changing:
            self.forget()
            return
        self.known = [known for known in self.known if known.reader != path or known.structure != key]
        self._publish()

    def forget(self) -> None:
        """Every recording is void."""
        self.known.clear()
        self.refused.clear()
        self._numbers.clear()
        self._backoff.clear()
        self._lists_met().clear()
        self._publish()

    @contextmanager
    def preserve_entries(self) -> Iterator[None]:
        """Inside the block modules become scopes: what was recorded through them stands, if it stood before."""
        if not self.known or not self._lock.acquire(blocking=False):
            yield  # nothing to lose; or in use just now, so that the call after finds out
            return
        try:
            held = self._holds()
            yield
            if held and not self._holds():
                self.refresh()
                if self.blocked is None:
                    self._publish()
                else:
                    self.forget()
        finally:
            self._lock.release()

    def _watched(self) -> list[tuple[Any, ...]]:
        """Snapshot entries for everything the callable depends on beside its arguments."""
        return _settled(self._looked_at)

    def _looked_at(self) -> list[tuple[Any, ...]]:
        entries: list[tuple[Any, ...]] = []
        if self.surroundings is not None:
            self.modules, entries = self.surroundings()
        return entries + watched(self.modules, self.watch, self.steps.values())

    def _outside(self) -> list[tuple[Any, ...]]:
        return [] if self.surroundings is None else self.surroundings()[1]

    def _publish(self) -> None:
        """Makes the plans of all usable recordings the ones that `entry` tries; newest first."""
        if self.snapshot is None:  # not before it is needed: the C runtime may still be compiling
            self.snapshot = make_snapshot(self.watching)
            self.entry.__globals__["_f_unchanged"] = self.snapshot
        runs = [
            plan.run
            for known in self.known
            if known.refusal is None and (known.generalized or known.proved)
            for _, plan in known.plans.values()
        ]
        self._plans[:] = runs[::-1]

    @property
    def line(self) -> str:
        """ "file:line" where the user has defined the callable, or calls it."""
        return call_line(self.call)

    # ---- the slow path

    def original(self, arguments: Sequence[Any]) -> Any:
        """The callable itself."""
        return self.signature.invoke(self.call, arguments)

    def _named(self, arguments: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self.signature.names, arguments, strict=True))

    def _eager(self, arguments: Sequence[Any], reason: Refusal | None = None) -> Any:
        self.statistics.eager += 1
        if reason is not None:
            self.statistics.last_reason = reason
        return self.original(arguments)

    def _passed(self, arguments: Sequence[Any], reason: Refusal) -> Any:
        """Runs a call eagerly for what is about this call alone; the report says so, and where it was called."""
        known = self.statistics.passing.get(reason.code)
        if known is None or known.sentence != reason.sentence:
            known = reason if reason.origin else replace(reason, origin=user_line())
        self.statistics.passing[reason.code] = known
        return self._eager(arguments, known)

    @opaque
    def _slow(self, *arguments: Any) -> Any:
        if get_eval_frame_callback():
            return undisturbed(self.signature.invoke, self.entry, arguments)
        if stack.is_short():
            with stack.lent():
                return self._eager(arguments, _DEEP)
        return self._dispatch(arguments)

    def _dispatch(self, arguments: tuple[Any, ...]) -> Any:
        if not self.enabled():
            return self._passed(arguments, Refusal("disabled", "enable_fusion is False"))
        if self.resets > _MOST_RESETS:
            return self._eager(arguments, _RESTLESS)
        kinds = tuple([a if a is None or a is True or a is False else type(a) for a in arguments])
        refused = self._backoff.get(kinds, 0)
        if refused:
            self._backoff[kinds] = refused + 1
            if refused > _RESTS_AFTER and refused % _LOOKS_UP:
                return self._eager(arguments)
        if interception.in_session():
            return self._eager(arguments, _INSIDE)
        problem = problems(self.modules, self.steps.values())
        if problem is not None:
            return self._passed(arguments, problem)
        with self._lock:
            return self._advance(arguments, kinds)

    def _advance(self, arguments: Sequence[Any], kinds: Any) -> Any:
        if not self._holds():
            if not self._reset():
                return self._eager(arguments, _RESTLESS)
            for plan in list(self._plans):
                result = plan(*arguments)
                if result is not MISS:
                    self.statistics.planned[0] += 1
                    return result
        if self.blocked is not None:
            return self._eager(arguments, self.blocked)
        if self._short:
            self._short -= 1
            return self._eager(arguments, _SHORT)
        try:
            key = self.signature.structure(arguments)
            refusal = self.refused.get(key) or self._listed(arguments, key)
        except Exception as error:  # an argument that holds itself, or answers no question
            return self._eager(arguments, Refusal("opaque_argument", f"{type(error).__name__} where it is looked into"))
        if refusal is not None:
            self._backoff.setdefault(kinds, 1)
            return self._eager(arguments, refusal)
        untaken = self._backoff.pop(kinds, 1)
        routed = 0
        for known in self.known:
            values = known.match(*arguments)
            if values is MISS:
                continue
            if known.refusal is not None:
                return self._eager(arguments, known.refusal)
            result = self._check(known, arguments, values)
            if result is not MISS:  # else a read of an argument answered otherwise; nothing has happened yet
                return result
            routed += known.reader is not None
            if routed >= MOST_ROUTES and self.on_data_miss(known, key):
                return self._eager(arguments)
        if self.known:
            self.statistics.guard_misses += 1
            self.statistics.guards.call(self.known, arguments, "self" if "" in self.modules else "", self.line)
        if not self.records:
            return self._passed(arguments, Refusal("guard", "the inputs do not have the recorded structure"))
        if len(self.known) >= self.pipeline.config.max_plans:
            full = self.statistics.passing.get("too_many_plans")  # which takes longer to tell than a call may
            self._backoff[kinds] = untaken
            return self._passed(arguments, full or too_many_plans(self.known, self._named(arguments)))
        if self._waits:
            self._waits = False
            return self._eager(arguments)
        return self._record(arguments, key)

    def _lists(self, arguments: Sequence[Any]) -> Lists | None:
        """What is known of the lists of numbers in calls like this one, of equal scopes too; None where it has none."""
        form = self.signature.form(arguments)
        return None if form is None else self._lists_met().setdefault(form, Lists())

    def _lists_met(self) -> dict[Any, Lists]:
        if self.fingerprint is None:
            return self._own_lists
        return self.pipeline.lists.setdefault(self.fingerprint.structure, {})

    def _listed(self, arguments: Sequence[Any], key: Any) -> Refusal | None:
        """Why a call is not recorded that is given other numbers in a list than those before it.

        How many rows each expert gets, say, is data: every list would want a recording, and kernels, of its own.
        """
        met = self._lists(arguments)
        if met is None or key in met.keys or not (met.full or len(met.keys) >= _MOST_LISTS):
            return None
        return Refusal(
            "data_read",
            "the numbers in a list that it is given vary from call to call",
            user_line(),
            "pass the list as a tensor",
        )

    def _holds(self) -> bool:
        """Whether the modules are as they were when they were last looked at."""
        if self.snapshot is not None:
            return self.snapshot()
        try:
            return unchanged(self.watching, self._watched())
        except Refused:
            return self.blocked is not None

    def _reset(self) -> bool:
        """The snapshot does not hold: if the modules really changed, what was recorded is void."""
        before = self.watching
        self.refresh()
        if unchanged(before, self.watching):
            self._publish()
            return True
        self.statistics.guards.changed(before, self.modules, self.line)
        self.resets += 1
        self.twin_diverged = False
        self.forget()
        return self.resets <= _MOST_RESETS

    def _record(self, arguments: Sequence[Any], key: Any) -> Any:
        config = self.pipeline.config
        lists = self._lists(arguments)
        if lists is not None:
            lists.keys.add(key)  # also what is refused in the end: asking costs a recording each time
        for path in sorted(self._routed() - self.steps_of(key).keys()):
            self.break_at(path, key)
        steps = self.steps_of(key)
        twin = None if steps else self._twin(arguments)
        if twin is not None:
            return self._follow(*twin, arguments)
        runs = itertools.count()
        try:
            recording = record(
                self.call,
                self._named(arguments),
                lambda: (next(runs), self.original(arguments))[1],
                self.modules,
                steps=steps,
                max_ops=config.max_graph_size,
                varying=() if self.whole else self._varying(arguments),
                outside=self._outside,
                numbers=key in self._numbers,
            )
        except Exception as error:
            if next(runs):
                raise  # the forward's own
            self.refused[key] = Refusal("recorder_error", f"{type(error).__name__} before the forward ran: {error}")
            return self._eager(arguments, self.refused[key])
        self.statistics.recordings += 1
        self.statistics.recording_seconds += recording.seconds
        if recording.refusal is not None:
            self.statistics.eager += 1
            self.statistics.last_reason = recording.refusal
            if recording.refusal.code == "out_of_memory":
                self._short = _WAITS_AFTER_SHORTAGE
            elif recording.refusal.code == "stack" and self._passing < _MOST_PASSING:
                self._passing += 1  # a call that is less deep may be recorded
            elif recording.unsuited and recording.culprit in (None, self.modules.get("")):
                self._numbers.add(key)  # a plan for each size then, up to `max_plans`
            elif not self.divide(self, key, recording.refusal, recording.culprit, recording.changes):
                if recording.refusal.code == "fixed_size" and lists is not None and len(lists.keys) > 1:
                    lists.keys.discard(key)
                    lists.full = True  # the numbers fix a size, and vary as it does
                elif recording.refusal.code == "fixed_size" and not self.divided:
                    self.whole = True  # a plan for each size then, up to `max_plans`
                else:
                    self.refused[key] = recording.refusal
            return recording.result
        try:
            plain = self._again(recording, arguments)
        except Exception as error:
            if not is_shortage(error):
                raise
            self._short_of_memory(error)
            recording, plain = recording.bare(), MISS
        if plain is MISS:
            return self._again(recording, arguments)
        assert recording.graph is not None
        outcome = recording.given.outcome(plain, recording.graph.items)
        alike = same_results(outcome, recording.outcome, exact=False)
        if not (alike and same_results(recording.undo.now(), recording.left, exact=False)):
            self._refuse_symbols(key, differed(outcome, recording.outcome, self.line))
            return recording.result if steps else plain  # only the recorded run ran the steps
        del outcome
        if same_results(plain, recording.result):
            recording.share(plain)
        self.compile_safely(key, lambda: self.adopt(recording, arguments))
        return plain

    def _refuse_symbols(self, key: Any, refusal: Refusal) -> None:
        """A forward did something else with symbols for sizes: the next call like it is recorded with numbers."""
        self.statistics.last_reason = refusal
        if key in self._numbers:
            self.refused[key] = refusal
        self._numbers.add(key)

    def _again(self, recording: RecordedCall, arguments: Sequence[Any]) -> Any:
        """The recorded call without symbols: what the caller gets."""
        recording.undo.rewind()
        recording.given.rewind()
        with self._replay(recording.log, arguments, recording):
            return self._eager(arguments)

    def on_data_miss(self, known: CacheEntry, key: Any) -> bool:
        """Data led a call another way than was recorded: who reads it becomes an eager step.

        Returns:
            whether it did; recordings that went through it are void then.
        """
        if known.reader is None or not self.break_at(known.reader, key):
            return False
        if self.fingerprint is not None:
            self.pipeline.routed.setdefault(self.fingerprint.structure, set()).add(known.reader)
        return True

    def break_at(self, path: str, key: Any) -> bool:
        """Makes a module that data leads an eager step, unless steps that go on their own are inside."""
        reader = self.modules[""].get_submodule(path)
        if any(part is step for part in reader.modules() for step in self.steps.values()):
            return False
        refusal = Refusal(
            "data_read", "values of tensors decide, call by call, what it does", call_line(type(reader).forward)
        )
        return self.divide(self, key, refusal, reader, False)

    def _routed(self) -> set[str]:
        """Paths of modules that data led elsewhere in this scope, or in an equal one."""
        return set() if self.fingerprint is None else self.pipeline.routed.get(self.fingerprint.structure, set())

    def _varying(self, arguments: Sequence[Any]) -> set[tuple[Path, int]]:
        """(path, dimension) of tensor arguments' sizes that earlier recordings fixed to other numbers."""
        given = {leaf.path: leaf.value for leaf in flatten(self._named(arguments))[0]}
        found: set[tuple[Path, int]] = set()
        for known in self.known:
            for entered in known.graph.inputs:
                tensor, dims = given.get(entered.path), known.graph.spec[entered.name].shape
                if isinstance(tensor, torch.Tensor) and tensor.ndim == len(dims) and not tensor.is_nested:
                    pairs = enumerate(zip(dims, tensor.shape, strict=True))
                    found |= {(entered.path, d) for d, (was, now) in pairs if type(was) is int and 1 < was != now > 1}
        return found

    def compile_safely(self, key: Any, step: Callable[[], None]) -> None:
        """Compiles after a call whose result is known already: what goes wrong is noted, the result stands."""
        try:
            step()
        except Exception as error:
            if not self.pipeline.config.fallback_on_error:
                raise
            if is_shortage(error):
                self._short_of_memory(error)
                return
            refusal = self._plan_error(error)
            self.statistics.last_reason = refusal
            deep = isinstance(error, RecursionError)
            self._passing += deep
            if not deep or self._passing > _MOST_PASSING:
                self.refused[key] = refusal

    def _short_of_memory(self, error: BaseException) -> None:
        """Memory ran out while something was proved: nothing is known from it, and it is tried again later."""
        without_frames(error)
        self._short = _WAITS_AFTER_SHORTAGE
        reason = Refusal("out_of_memory", f"{type(error).__name__}: {error}")
        self.statistics.last_reason = self.statistics.last_failure = reason

    def _twin(self, arguments: Sequence[Any]) -> tuple[CacheEntry, dict[str, int]] | None:
        """A recording of an equal module that applies to this call, and the input symbols' values in it."""
        if self.fingerprint is None or self.twin_diverged:
            return None
        for known in self.pipeline.twins.get(self.fingerprint.structure, ()):
            if not known.graph.items and isomorphic(known.fingerprint, self.fingerprint, known.graph):
                values = known.match(*arguments)
                if values is not MISS:
                    return known, values
        return None

    def _follow(self, twin: CacheEntry, values: dict[str, int], arguments: Sequence[Any]) -> Any:
        """Records this call by following an equal module's recording; if they part, the next call is recorded."""
        named = self._named(arguments)
        given = ArgumentSnapshot(named)
        found = {leaf.path: leaf.value for leaf in given.leaves}
        inputs = {i.name: found[i.path] for i in twin.graph.inputs}
        assert twin.recording.conditions is not None
        objects = {id(found[path]): path for path, _ in twin.recording.conditions.kinds}
        module = self.modules[""]
        state = PythonState(self.modules, outside=self._outside)  # no steps: such a scope has no twins
        result, recording, why = follow(
            twin.recording, values, module, inputs, objects, lambda: self.original(arguments)
        )
        result = unwrap_result(result)
        self.statistics.eager += 1
        change = state.change()
        if change is None and given.set_items() != ():
            change = "changes a list or dict it was given"
        if recording is None or change is not None:
            self.twin_diverged = True
            self.statistics.last_reason = Refusal(
                "guard",
                f"it does something else than an equal module: {why or change}",
                self.line,
                "nothing to do: it is recorded by itself",
            )
            return result
        self.statistics.recordings += 1
        self.statistics.recording_seconds += recording.seconds
        known = CacheEntry(recording, twin.template, self.pipeline, twin.reader)
        known.structure = self.signature.structure(arguments)
        self.compile_safely(known.structure, lambda: self._prove(known, recording, arguments))
        return result

    def adopt(self, recording: RecordedCall, arguments: Sequence[Any] | None = None) -> None:
        """Compiles a recording; its plan is proved by running it with the islands answering from the recording.

        Args:
            recording: one that was not refused.
            arguments: the recorded call's, in signature order; None where they are the graph's inputs.
        """
        assert recording.graph is not None
        if arguments is None:
            arguments = [recording.real[i.name] for i in recording.graph.inputs]
        template = self.pipeline.template(recording, self.signature.names)
        paths = {id(m): path for path, m in self.modules[""].named_modules()} if recording.reader is not None else {}
        known = CacheEntry(recording, template, self.pipeline, paths.get(id(recording.reader)))
        known.structure = self.signature.structure(arguments)
        self._prove(known, recording, arguments)
        if self.fingerprint is not None and known.refusal is None and not self.steps_of(known.structure):
            known.fingerprint = self.fingerprint
            self.pipeline.twins.setdefault(self.fingerprint.structure, []).append(known)

    def _watch_further(self, modules: Sequence[torch.nn.Module]) -> None:
        """From here on, the state of these modules counts as that of the scope's own does."""
        new = [module for module in modules if not any(module is held for held in self.watch)]
        if new:
            self.watch += tuple(new)
            self.refresh()
            self._publish()


def _unwatched() -> bool:
    """Stands in for a snapshot until there is a plan to guard."""
    return False


def _settled(look: Callable[[], _Seen]) -> _Seen:
    """What is seen of state that other threads may change meanwhile.

    Raises:
        Refused: it changed each time it was looked at.
    """
    for _ in range(_LOOKS):
        try:
            return look()
        except RuntimeError as error:
            if "during iteration" not in str(
                error
            ):  # Python's words where a container changed while it was looked through
                raise
    what = "another thread changes what the forward depends on while it is looked at"
    raise Refused("python_state", what, remedy="call the model while no other thread changes it")
