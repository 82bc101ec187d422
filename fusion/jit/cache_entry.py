"""One recording of a scope, the plans made from it, and how far they are proved."""

from __future__ import annotations

import copy
import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch

from fusion.capture.recorded_call import RecordedCall
from fusion.choices.background import Build
from fusion.choices.kernel_cache import Kernel
from fusion.choices.select import given_dims
from fusion.jit.compiled import Bucket, Compiled, Template
from fusion.jit.plan_trial import PlanTrial
from fusion.jit.stages import Stages
from fusion.jit.tiers import LONG_US, FirstTier
from fusion.jit.trust import CheckedSizes, FailureCount
from fusion.patterns import known_products
from fusion.patterns.graph import SubGraph
from fusion.patterns.guards import GuardMiss
from fusion.patterns.reference import bind_symbols
from fusion.refusal import Refusal
from fusion.runtime.measure import eager_function
from fusion.runtime.plan import MISS, Missed, Plan, call_constants, standing
from fusion.runtime.rollback import UndoLog


class CheckedRun(NamedTuple):
    """What a run of the plan without kernels gave.

    Attributes:
        result: what the call returns; MISS where a guard ended the run before anything had happened.
        log: results of opaque calls and reads.
        seen: the tensors that logged calls were given.
        tap: the values that were asked for.
        miss: the guard that ended the run, or None.
    """

    result: Any
    log: list[Any]
    seen: list[list[torch.Tensor]]
    tap: dict[str, torch.Tensor]
    miss: GuardMiss | None = None


class Role(enum.Enum):
    """What an entry is to another one of the same recording."""

    ALONE = "there is no other"
    SUCCESSOR = "it is to take the place of one whose plans leave products to torch"
    STAYS = "its plans leave products to torch, and no other takes its place"


class CacheEntry:
    """One recording of a scope, with the plans made from it.

    Args:
        recording: one that was not refused.
        template: what scopes of its structure share.
        stages: made the template.
        reader: path of the module whose forward went by numbers that tensors held, or None.

    Attributes:
        graph: the recording's.
        structure: of the calls, as `BoundCall.structure`.
        bound: the scope's tensors and objects that its plans are bound to.
        sizes: where its plans are proved.
        failures: of its plans.
        refusal: why no plan of it is used, or None.
        recording: what equal modules follow.
        fingerprint: of the module, where equal ones may follow.
        plans: by bucket.
        role: whether another entry takes its place, or it another's.
        match: tells whether a call is like the recorded one: the input symbols' values, or MISS.
    """

    def __init__(self, recording: RecordedCall, template: Template, stages: Stages, reader: str | None = None) -> None:
        assert recording.graph is not None
        self.graph = recording.graph
        self.template = template
        self.reader = reader
        self.structure: Any = None
        self.stages = stages
        self.bound = recording.bound
        self.sizes = CheckedSizes(recording.graph, recording.values)
        self.failures = FailureCount()
        self.refusal: Refusal | None = None
        self.recording = recording
        self.fingerprint: Any = None
        self.plans: dict[Any, tuple[Compiled, Plan]] = {}
        self.role = Role.ALONE
        assert recording.conditions is not None
        standing_names = standing(recording.conditions, recording.bound.parameters)
        self._names: dict[str, Any] = {
            **self.bound.tensors, **self.bound.objects, **call_constants(recording.graph), **standing_names
        }  # fmt: skip
        self.match = stages.source(template, None, "match").bind(self._names).run

    def waits(self, values: Mapping[str, int]) -> bool:
        """Whether kernels are being compiled that a call with these sizes may get.

        Args:
            values: of the input symbols, as `match` gives them.
        """
        return self.stages.waits(self.template, self.stages.bucket(self.template, values))

    def chosen(self, values: Mapping[str, int]) -> Compiled | None:
        """What was decided for these sizes, where this entry has no plan of it yet."""
        bucket = self.stages.bucket(self.template, values)
        return None if bucket in self.plans else self.template.by_bucket.get(bucket)

    @property
    def turns(self) -> int:
        """Calls so far that were to tell whether a plan of it is faster than the forward."""
        return sum(compiled.trial.taken for compiled, _ in self.plans.values())

    def is_in(self, bucket: Bucket, arguments: Sequence[Any]) -> bool:
        """Whether a call is like the recorded one, and its sizes are in a bucket."""
        values = self.match(*arguments)
        return values is not MISS and self.stages.bucket(self.template, values) == bucket

    def trial(self, values: Mapping[str, int]) -> PlanTrial | None:
        """The trial of the plan for these sizes, where it has one."""
        known = self.plans.get(self.stages.bucket(self.template, values))
        return None if known is None else known[0].trial

    def successor(self) -> CacheEntry:
        """This recording with none of its plans, for those in which kernels hold matrix products."""
        assert self.template.next is not None
        made = copy.copy(self)
        made.template, made.plans, made.role = self.template.next, {}, Role.SUCCESSOR
        return made

    @property
    def first(self) -> FirstTier | None:
        """Where its plans leave products to torch for now, when that ends."""
        return None if self.role is Role.STAYS else self.template.first

    @property
    def tier(self) -> object:
        """Where it is on the way to plans with kernels of products."""
        return None if self.first is None else self.first.phase

    def lags(self, values: Mapping[str, int]) -> bool:
        """Whether second plans are to be made: it is time for them, or products take long at these sizes."""
        first = self.first
        if first is None:
            return False
        takes = self.products_us(values)
        return first.is_over(takes) or (takes >= LONG_US and first.skip())

    def products_us(self, values: Mapping[str, int]) -> float:
        """What a call of these sizes is expected to spend in products that torch computes for now."""
        return self.stages.small_products.spent_us(self.template, values)

    def builds(self, values: Mapping[str, int]) -> tuple[Build, ...]:
        """Kernels that are being compiled for these sizes."""
        return self.template.compiling.get(self.stages.bucket(self.template, values), ())

    def release(self) -> None:
        """Lets go of the recorded run's tensors; its structure stays for twins to follow."""
        self.recording = self.recording.released()

    def plan(self, compiled: Compiled, fail: Callable[..., Any], note: Callable[[Exception], None]) -> None:
        """Makes the plan of a bucket, pinned to what was proved until the recording is trusted.

        Args:
            fail: the plan's `FAIL`.
            note: told of a kernel that failed and was stood in for by the eager operators.
        """
        source = self.stages.source(self.template, compiled, "fused", pinned=not self.sizes.generalized)
        graphs = [c.region.subgraph for c in compiled.candidates if c.kernel is not None]
        launchers = {
            f"kernel{i}": self._launcher(kernel, graph, note)
            for i, (kernel, graph) in enumerate(zip(compiled.kernels, graphs, strict=True))
        }
        names = {**self._names, **launchers, "FAIL": fail, "PROVED": self.sizes.proved}
        self.plans[compiled.bucket] = (compiled, source.bind(names))

    def _launcher(self, kernel: Kernel, graph: SubGraph, note: Callable[[Exception], None]) -> Callable[..., Any]:
        """A kernel's launcher. Where a plan cannot be run again because it has written or drawn, a kernel that fails is
        stood in for by its operators."""
        if not self.graph.lasting:
            return kernel.launch
        eager, given = eager_function(graph), given_dims(graph, kernel)

        def launch(*arguments: Any) -> Any:
            try:
                return kernel.launch(*arguments)
            except Exception as error:
                note(error)
            count = len(graph.inputs)
            sizes = {str(symbol): size for symbol, size in zip(given, arguments[count:], strict=True)}
            values = bind_symbols(graph, dict(zip(graph.inputs, arguments, strict=False)), sizes)
            return eager(*arguments[:count], *(values[s] for s in graph.symbols))

        return launch

    def checked_run(self, arguments: Sequence[Any], taps: frozenset[str], undo: UndoLog | None = None) -> CheckedRun:
        """Runs the plan without kernels.

        Args:
            arguments: in signature order.
            taps: values wanted.
            undo: what the run writes and draws is kept here.

        Raises:
            PlanStopped: the plan did not apply or failed; it carries the log.
        """
        run = CheckedRun(MISS, [], [], {})
        missed: list[GuardMiss | None] = []

        def fail(error: BaseException, log: list[Any], *_: Any) -> Any:
            if isinstance(error, Missed):
                missed.append(error.miss)
                return MISS
            raise PlanStopped(error, log)

        source = self.stages.source(self.template, None, "unfused", taps=taps, log=True).telling
        kept = {} if undo is None else {"UNDO": lambda limit: undo}
        told = {"FAIL": fail, "TAP": run.tap, "SEEN": run.seen, "LOGGED": run.log}
        known = {name: known_products.linear for name, held in source.names.items() if held is torch._C._nn.linear}
        plan = source.bind({**self._names, **told, **kept, **known})
        try:
            result = plan.run(*arguments)
        except Missed:  # of an argument that answers otherwise than a moment ago
            result = MISS
        finally:
            plan.release()
        return run._replace(result=result, miss=missed[0] if missed else None)


class PlanStopped(Exception):
    """An unfused plan failed on the way."""

    def __init__(self, error: BaseException, log: list[Any]) -> None:
        super().__init__(str(error))
        self.error = error
        self.log = log
