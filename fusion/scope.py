"""A scope: one callable that is recorded on first calls and dispatched to plans afterwards."""

from __future__ import annotations

import functools
import inspect
import keyword
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.utils import _pytree as pytree

from fusion.capture import islands
from fusion.capture.follow import Likeness, follow, likeness, twins
from fusion.capture.provenance import flatten
from fusion.capture.record import Recording, plain_state, python_state, record
from fusion.capture.state import problems, unchanged, watched
from fusion.decide.refusal import Refusal
from fusion.patterns.errors import GraphError
from fusion.runtime.native import make_snapshot
from fusion.runtime.plan import MISS, Deoptimized, Plan, input_symbols, island_constants
from fusion.scheduler import Compiled, FusionScheduler, Template

_MOST_FAILURES = 3  # a plan that failed this often in a row is dropped
_MOST_RESETS = 8  # a scope whose modules changed this often stays eager


@dataclass
class Statistics:
    """Counts of one scope since it was enabled."""

    planned: list[int] = field(default_factory=lambda: [0])  # a cell that the entry function counts in
    eager: int = 0
    recordings: int = 0
    guard_misses: int = 0
    fallbacks: int = 0
    recording_seconds: float = 0.0
    last_reason: Refusal | None = None


class Known:
    """One recording of a scope, with the plans made from it.

    Attributes:
        proved: values of the input symbols that a plan was checked at.
        trusted: whether it was checked at a shape other than the recorded one.
    """

    def __init__(self, recording: Recording, template: Template, scheduler: FusionScheduler) -> None:
        assert recording.graph is not None
        self.graph = recording.graph
        self.template = template
        self.scheduler = scheduler
        self.tensors = {**recording.parameters, **recording.constants}
        self.recorded_values = dict(recording.values)
        self.symbols = [s.symbol for s in input_symbols(recording.graph)]
        self.proved: set[tuple[int, ...]] = set()
        self.trusted = not recording.graph.symbols
        self.refusal: Refusal | None = None
        self.failures = 0
        self.recording = recording
        self.likeness: Any = None
        self.plans: dict[Any, tuple[Compiled, Plan]] = {}
        self.binding: dict[str, Any] = {**self.tensors, **island_constants(recording.graph)}
        self.match = scheduler.source(template, None, "match").bind(self.binding).run

    def key(self, values: Mapping[str, int]) -> tuple[int, ...]:
        """The input symbols' values in order."""
        return tuple(values[s] for s in self.symbols)

    def release(self, recording: Recording) -> None:
        """Lets go of the recorded run's tensors; its structure stays for twins to follow."""
        self.recording = replace(recording, result=None, real={}, log=[], parameters={}, constants={})

    def plan(self, compiled: Compiled, fail: Callable[..., Any]) -> None:
        """Makes the plan of a bucket, pinned to what was proved until the recording is trusted."""
        source = self.scheduler.source(self.template, compiled, "fused", pinned=not self.trusted)
        launchers = {f"kernel{i}": k.launch for i, k in enumerate(compiled.kernels)}
        names = {**self.binding, **launchers, "FAIL": fail, "PROVED": self.proved}
        self.plans[compiled.bucket] = (compiled, source.bind(names))

    def checked_run(
        self, arguments: Sequence[Any], taps: frozenset[str]
    ) -> tuple[Any, list[Any], list[list[torch.Tensor]], dict[str, torch.Tensor]]:
        """Runs the unfused plan: result, island log, island arguments, tapped tensors.

        Raises:
            PlanStopped: the plan did not apply or failed; it carries the island log.
        """
        tap: dict[str, torch.Tensor] = {}
        seen: list[list[torch.Tensor]] = []

        def fail(error: BaseException, log: list[Any], _: Any) -> Any:
            raise PlanStopped(error, log)

        source = self.scheduler.source(self.template, None, "unfused", taps=taps, log=True)
        logged: list[Any] = []
        plan = source.bind({**self.binding, "FAIL": fail, "TAP": tap, "SEEN": seen, "LOGGED": logged})
        result = plan.run(*arguments)
        return result, logged, seen, tap


class PlanStopped(Exception):
    """An unfused plan failed on the way."""

    def __init__(self, error: BaseException, log: list[Any]) -> None:
        super().__init__(str(error))
        self.error = error
        self.log = log


class Scope:
    """A callable under fusion. `entry` is a function with the callable's own signature.

    Args:
        name: for the report.
        call: the callable.
        scheduler: compiles its recordings.
        modules: modules whose tensors it may use, by path prefix.
        enabled: asked at every slow call; False runs eagerly.
        watch: objects whose plain attributes the callable depends on.
        records: whether a call that no recording applies to is recorded, rather than passed to `call`.
    """

    def __init__(
        self,
        name: str,
        call: Callable[..., Any],
        scheduler: FusionScheduler,
        modules: Mapping[str, torch.nn.Module] | None = None,
        enabled: Callable[[], bool] = lambda: True,
        watch: Sequence[Any] = (),
        records: bool = True,
    ) -> None:
        self.name = name
        self.call = call
        self.scheduler = scheduler
        self.modules = dict(modules or {})
        self.enabled = enabled
        self.watch = tuple(watch)
        self.records = records
        self.statistics = Statistics()
        self.known: list[Known] = []
        self.refused: dict[Any, Refusal] = {}
        self.resets = 0
        self.stranger = False  # differed from its twins: recorded in full
        self.likeness: Likeness | None = None
        self._lock = threading.RLock()
        self.signature = _Signature(call)
        self._plans: list[Callable[..., Any]] = []
        self.entry = self.signature.entry(self._plans, self.statistics.planned, self._slow)
        self._refresh()

    # ---- the fast path

    def _refresh(self) -> None:
        """Takes the modules as they are now as what plans are valid for."""
        self.watching = watched(self.modules, self.watch)
        self.snapshot = make_snapshot(self.watching)
        self.entry.__globals__["_f_unchanged"] = self.snapshot
        only = list(self.modules) == [""]
        self.likeness = likeness(self.modules[""]) if only else None

    def _publish(self) -> None:
        """Makes the plans of all usable recordings the ones that `entry` tries; newest first."""
        runs = [
            plan.run
            for known in self.known
            if known.refusal is None and (known.trusted or known.proved)
            for _, plan in known.plans.values()
        ]
        self._plans[:] = runs[::-1]

    # ---- the slow path

    def original(self, arguments: Sequence[Any]) -> Any:
        """The callable itself."""
        return self.signature.invoke(self.call, arguments)

    def _eager(self, arguments: Sequence[Any], reason: Refusal | None = None) -> Any:
        self.statistics.eager += 1
        self.statistics.last_reason = reason
        return self.original(arguments)

    def _slow(self, *arguments: Any) -> Any:
        if not self.enabled():
            return self._eager(arguments, Refusal("disabled", "enable_fusion is False"))
        problem = problems(self.modules)
        if problem is not None:
            return self._eager(arguments, problem)
        with self._lock:
            return self._advance(arguments)

    def _advance(self, arguments: Sequence[Any]) -> Any:
        if not self.snapshot():
            if not self._reset():
                return self._eager(arguments, Refusal("python_state", "the scope's modules keep changing"))
            for plan in list(self._plans):
                result = plan(*arguments)
                if result is not MISS:
                    self.statistics.planned[0] += 1
                    return result
        key = self.signature.structure(arguments)
        if key in self.refused:
            return self._eager(arguments, self.refused[key])
        for known in self.known:
            values = known.match(*arguments)
            if values is MISS:
                continue
            if known.refusal is not None:
                return self._eager(arguments, known.refusal)
            return self._check(known, arguments, values)
        if self.known:
            self.statistics.guard_misses += 1
        if not self.records:
            return self._eager(arguments, Refusal("guard", "the inputs do not have the recorded structure"))
        if len(self.known) >= self.scheduler.config.max_plans:
            return self._eager(arguments, Refusal("too_many_plans", f"max_plans={self.scheduler.config.max_plans}"))
        return self._record(arguments, key)

    def _reset(self) -> bool:
        """The snapshot does not hold: if the modules really changed, what was recorded is void."""
        if unchanged(self.watching, watched(self.modules, self.watch)):
            self._refresh()
            return True
        self.resets += 1
        self.stranger = False
        self.known.clear()
        self.refused.clear()
        self._publish()
        if self.resets > _MOST_RESETS:
            return False
        self._refresh()
        return True

    def _record(self, arguments: Sequence[Any], key: Any) -> Any:
        config = self.scheduler.config
        twin = self._twin(arguments)
        if twin is not None:
            return self._follow(*twin, arguments)
        recording = record(
            self.call,
            dict(zip(self.signature.names, arguments, strict=True)),
            lambda: self.original(arguments),
            self.modules,
            max_ops=config.max_graph_size,
        )
        self.statistics.recordings += 1
        self.statistics.recording_seconds += recording.seconds
        if recording.refusal is not None:
            plain_state(self.modules)
            self.refused[key] = recording.refusal
            self.statistics.eager += 1
            self.statistics.last_reason = recording.refusal
            return recording.result
        self.statistics.eager += 1
        try:
            self.adopt(recording, arguments)
        except Exception as error:
            if not config.fallback_on_error:
                raise
            self.refused[key] = Refusal("recorder_error", f"{type(error).__name__}: {error}")
        return recording.result

    def _twin(self, arguments: Sequence[Any]) -> tuple[Known, dict[str, int]] | None:
        """A recording of an equal module that applies to this call, and the input symbols' values in it."""
        if self.likeness is None or self.stranger:
            return None
        for known in self.scheduler.twins.get(self.likeness.structure, ()):
            if twins(known.likeness, self.likeness, known.graph):
                values = known.match(*arguments)
                if values is not MISS:
                    return known, values
        return None

    def _follow(self, twin: Known, values: dict[str, int], arguments: Sequence[Any]) -> Any:
        """Records this call by following an equal module's recording; if they part, the next call is recorded."""
        named = dict(zip(self.signature.names, arguments, strict=True))
        found = {leaf.path: leaf.value for leaf in flatten(named)[0]}
        inputs = {i.name: found[i.path] for i in twin.graph.inputs}
        assert twin.recording.conditions is not None
        objects = {id(found[path]): path for path, _ in twin.recording.conditions.kinds}
        module = self.modules[""]
        before = python_state(self.modules)
        result, recording, why = follow(
            twin.recording, values, module, inputs, objects, lambda: self.original(arguments)
        )
        self.statistics.eager += 1
        if recording is None or python_state(self.modules) != before:
            self.stranger = True
            self.statistics.last_reason = Refusal("guard", f"differs from an equal module: {why}")
            return result
        self.statistics.recordings += 1
        self.statistics.recording_seconds += recording.seconds
        self._prove(Known(recording, twin.template, self.scheduler), recording, arguments)
        return result

    def adopt(self, recording: Recording, arguments: Sequence[Any] | None = None) -> None:
        """Compiles a recording; its plan is proved by running it with the islands answering from the recording.

        Args:
            recording: one that was not refused.
            arguments: the recorded call's, in signature order; None where they are the graph's inputs.
        """
        assert recording.graph is not None
        if arguments is None:
            arguments = [recording.real[i.name] for i in recording.graph.inputs]
        template = self.scheduler.template(recording, self.signature.names)
        known = Known(recording, template, self.scheduler)
        self._prove(known, recording, arguments)
        if self.likeness is not None and known.refusal is None:
            known.likeness = self.likeness
            self.scheduler.twins.setdefault(self.likeness.structure, []).append(known)

    def _prove(self, known: Known, recording: Recording, arguments: Sequence[Any]) -> None:
        """Runs the unfused plan on the recorded call, then makes the fused one."""
        self.known.append(known)
        values = dict(recording.values)
        replay = islands.Replay(recording.log)
        with islands.session(replay), torch.no_grad():
            result, _, _, _ = known.checked_run(arguments, frozenset())
        if result is MISS or not same_results(result, recording.result):
            known.refusal = Refusal("plan_mismatch", "the plan's result differs from the recorded run's")
            return
        compiled = self.scheduler.compile(known.template, recording.real, values)
        known.release(recording)
        known.proved.add(known.key(values))
        late = [s for s in known.graph.symbols if s.symbol not in known.symbols]
        if late:
            known.proved.clear()  # a size that only an island tells: the next call is checked
        known.plan(compiled, self._failed(known))
        self._publish()

    def _check(self, known: Known, arguments: Sequence[Any], values: dict[str, int]) -> Any:
        """A shape, or a range of sizes, that a recording's plan was not proved at: runs it beside eager, once."""
        regions = known.template.partition.regions
        taps = frozenset(i for r in regions for i in r.subgraph.inputs) | {s.value for s in known.graph.symbols}
        try:
            result, log, seen, tap = known.checked_run(arguments, taps)
        except PlanStopped as stopped:
            self.statistics.fallbacks += 1
            known.failures += 1
            if known.failures >= _MOST_FAILURES:
                known.refusal = Refusal("plan_error", f"{type(stopped.error).__name__}: {stopped.error}")
            return self._replayed(arguments, stopped.log)
        if result is MISS:
            return self._eager(
                arguments, Refusal("guard", "a value read from an argument differs from the recording's")
            )
        replay = islands.Replay(log)
        with islands.session(replay):
            eager = self._eager(arguments)
        same = same_results(result, eager) and same_results(seen, replay.seen)
        if not same:
            known.refusal = Refusal("plan_mismatch", "the plan's result differs from eager's at another shape")
            self._publish()
            return eager
        full = {**values, **{s.symbol: _read(s, tap) for s in known.graph.symbols if s.kind != "result"}}
        if any(full[s] != v for s, v in known.recorded_values.items() if s in full):
            known.trusted = True
        known.proved.add(known.key(values))
        compiled = self.scheduler.compile(known.template, {**known.tensors, **tap}, full)
        for bucket, (held, _) in list(known.plans.items()):
            del bucket
            known.plan(held, self._failed(known))
        known.plan(compiled, self._failed(known))
        self._publish()
        return eager

    def _replayed(self, arguments: Sequence[Any], log: list[Any]) -> Any:
        """The original with the islands that already ran answering from the log."""
        with islands.session(islands.Replay(log)):
            return self._eager(arguments)

    def _failed(self, known: Known) -> Callable[..., Any]:
        def fail(error: BaseException, log: list[Any], arguments: tuple[Any, ...]) -> Any:
            self.statistics.fallbacks += 1
            known.failures += 1
            reason = Refusal("plan_error", f"{type(error).__name__}: {error}")
            if not self.scheduler.config.fallback_on_error:
                raise error
            if isinstance(error, Deoptimized) and known in self.known:
                self.known.remove(known)  # its late guards do not hold for such calls: they are recorded anew
                self._publish()
            elif known.failures >= _MOST_FAILURES:
                known.refusal = reason
                self._publish()
            self.statistics.planned[0] -= 1
            self.statistics.last_reason = reason
            return self._replayed(arguments, log)

        return fail


def _read(source: Any, tap: Mapping[str, torch.Tensor]) -> int:
    tensor = tap[source.value]
    return int(tensor.shape[source.dim] if source.kind == "shape" else tensor.stride(source.dim))


def same_results(left: Any, right: Any) -> bool:
    """Whether two results agree bit for bit, in structure, dtypes, shapes and strides; NaN equals NaN."""
    left_leaves, left_tree = pytree.tree_flatten(left)
    right_leaves, right_tree = pytree.tree_flatten(right)
    if left_tree != right_tree:
        return False
    return all(_same_leaf(a, b) for a, b in zip(left_leaves, right_leaves, strict=True))


def _same_leaf(a: Any, b: Any) -> bool:
    if a is b:
        return True
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return type(a) is type(b) and bool(a == b)
    if a.dtype != b.dtype or a.shape != b.shape or a.device != b.device:
        return False
    if any(x != y for x, y, size in zip(a.stride(), b.stride(), a.shape, strict=True) if size > 1) and a.numel():
        return False
    return torch.equal(a, b) or bool(((a == b) | ((a != a) & (b != b))).all())


def _stars(parameter: inspect.Parameter) -> str:
    """What precedes a parameter's name in source."""
    if parameter.kind is parameter.VAR_POSITIONAL:
        return "*"
    return "**" if parameter.kind is parameter.VAR_KEYWORD else ""


class _Signature:
    """A callable's parameters, and functions written with the same signature."""

    def __init__(self, call: Callable[..., Any]) -> None:
        parameters = list(inspect.signature(call).parameters.values())
        self.parameters = parameters
        self.names = tuple(p.name for p in parameters)
        for name in self.names:
            if not name.isidentifier() or keyword.iskeyword(name) or name.startswith("_f_"):
                raise GraphError(f"The parameter name {name!r} cannot be used in a plan.")
        self._invoke = self._make_invoke()

    def _make_invoke(self) -> Callable[..., Any]:
        """`invoke(call, arguments)`: calls with the arguments in signature order."""
        passed = []
        for i, p in enumerate(self.parameters):
            prefix = f"{p.name}=" if p.kind is p.KEYWORD_ONLY else _stars(p)
            passed.append(f"{prefix}a[{i}]")
        namespace: dict[str, Any] = {}
        exec(f"def invoke(call, a): return call({', '.join(passed)})", namespace)
        function: Callable[..., Any] = namespace["invoke"]
        return function

    def invoke(self, call: Callable[..., Any], arguments: Sequence[Any]) -> Any:
        """Calls with arguments in signature order."""
        return self._invoke(call, arguments)

    def entry(
        self, plans: list[Callable[..., Any]], counter: list[int], slow: Callable[..., Any]
    ) -> Callable[..., Any]:
        """The function that stands in for the callable: the mode checks, then the plans, then the slow path.

        Whoever makes it puts the snapshot into its globals as `_f_unchanged`.
        """
        names: dict[str, Any] = {
            "_f_plans": plans,
            "_f_counter": counter,
            "_f_slow": slow,
            "_f_miss": MISS,
            "_f_grad": torch.is_grad_enabled,
            "_f_dispatch": torch._C._len_torch_dispatch_stack,
            "_f_function": torch._C._len_torch_function_stack,
            "_f_autocast": torch._C._is_any_autocast_enabled,
            "_f_tracing": torch._C._get_tracing_state,
        }
        listed: list[str] = []
        star = False
        for i, p in enumerate(self.parameters):
            default = ""
            if p.default is not p.empty:
                names[f"_f_default{i}"] = p.default
                default = f"=_f_default{i}"
            if p.kind is p.VAR_POSITIONAL:
                star = True
            if p.kind is p.KEYWORD_ONLY and not star:
                listed.append("*")
                star = True
            listed.append(f"{_stars(p)}{p.name}{default}")
            following = self.parameters[i + 1 : i + 2]
            if p.kind is p.POSITIONAL_ONLY and (not following or following[0].kind is not p.POSITIONAL_ONLY):
                listed.append("/")
        arguments = ", ".join(self.names)
        lines = [
            f"def entry({', '.join(listed)}):",
            "    _f_modes = _f_grad() or _f_dispatch() or _f_function() or _f_autocast() or _f_tracing()",
            "    if not _f_modes and _f_unchanged():",
            "        for _f_plan in _f_plans:",
            f"            _f_result = _f_plan({arguments})",
            "            if _f_result is not _f_miss:",
            "                _f_counter[0] += 1",
            "                return _f_result",
            f"    return _f_slow({arguments})",
        ]
        exec(compile("\n".join(lines), "<fusion entry>", "exec"), names)
        entry: Callable[..., Any] = names["entry"]
        return entry

    def structure(self, arguments: Sequence[Any]) -> Any:
        """What a refusal is remembered by: the arguments' nesting, types, dtypes and plain values, without sizes."""

        def leaf(x: Any) -> Any:
            if isinstance(x, torch.Tensor):
                return (x.dtype, x.device, tuple(min(s, 2) for s in x.shape))
            return x if isinstance(x, (type(None), bool, int, float, str)) else type(x)

        leaves, tree = pytree.tree_flatten(tuple(arguments))
        return (str(tree), tuple(map(leaf, leaves)))


class ClassForward:
    """A module's forward as its class defines it at the time of the call."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.__signature__ = inspect.signature(types.MethodType(type(module).forward, module))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return type(self.module).forward(self.module, *args, **kwargs)


class Forward(functools.partial):  # type: ignore[type-arg]
    """What stands in a module's `forward`. A copy or a pickle of the module gets its own, plain forward back."""

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        import copy

        return types.MethodType(type(self.module).forward, copy.deepcopy(self.module, memo))

    def __reduce__(self) -> Any:
        return types.MethodType, (type(self.module).forward, self.module)

    @property
    def module(self) -> Any:
        """The module whose forward this is."""
        return self.__dict__["module"]
