"""What is made from a recording, as values that all scopes of one structure share."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from fusion.choices.background import Build
from fusion.choices.kernel_cache import Kernel
from fusion.choices.select import Candidate
from fusion.jit.plan_trial import PlanTrial
from fusion.jit.tiers import FirstTier, Phase
from fusion.partition.regions import Partition
from fusion.patterns.forks import cached_property
from fusion.patterns.nodes import OpNode
from fusion.patterns.ops import FUSABLE, Kind, kind_of
from fusion.refusal import CODES, Refusal
from fusion.runtime.guard_list import GuardList
from fusion.runtime.plan import KernelCall, PlanSpec, Source, Step, call_constants

Bucket = tuple[tuple[str, int, int], ...]  # (input symbol, lowest, highest value) a set of decisions is for


@dataclass(frozen=True)
class Compiled:
    """Everything the scopes of one structure share.

    Attributes:
        shape: what plans are written from.
        partition: its regions.
        candidates: per region, the decision and the kernel, in partition order; behind one that measurement refused,
            the parts it was split into.
        bucket: the sizes the decisions were measured for.
        unfused: execution order without kernels.
        steps, calls, kernels: execution order with kernels; "region" steps index into `calls`.
        trial: whether plans of these are faster than the forward.
        products_us: what a call is expected to spend in products that torch computes for now.
    """

    shape: PlanSpec
    partition: Partition
    candidates: tuple[Candidate, ...]
    bucket: Bucket
    unfused: tuple[Step, ...]
    steps: tuple[Step, ...]
    calls: tuple[KernelCall, ...]
    kernels: tuple[Kernel, ...]
    trial: PlanTrial = field(compare=False)
    products_us: float = 0.0

    @cached_property
    def refusals(self) -> tuple[tuple[int, Refusal], ...]:
        """For each operator call that no kernel computes, its index and why, ascending."""
        fused = {i for c in self.candidates if c.kernel is not None for i in c.region.nodes}
        why = dict(self.partition.refusals)
        for candidate in self.candidates:
            code, reason = candidate.decision.code, candidate.decision.reason
            for i in candidate.region.nodes:
                origin = self.shape.graph.nodes[i].origin
                why[i] = Refusal(code if code in CODES else "not_fusable", reason, origin)
        return tuple((i, why[i]) for i in sorted(why) if i not in fused)

    @cached_property  # every report asks for it, and for each of 28 equal layers
    def launches(self) -> tuple[int, int]:
        """Operator and kernel calls of one run, eager and planned; views launch nothing."""
        graph = self.shape.graph

        def counts(index: int) -> bool:
            node = graph.nodes[index]
            return not isinstance(node, OpNode) or kind_of(node.op) is not Kind.VIEW

        before = sum(counts(i) for _, i in self.unfused)
        after = sum(kind == "region" or counts(i) for kind, i in self.steps)
        return before, after

    @cached_property
    def coverage(self) -> tuple[int, int]:
        """Operator calls of a kind that kernels can hold in one run, and how many of them run inside kernels."""
        nodes = self.shape.graph.nodes
        fusable = {i for i, n in enumerate(nodes) if isinstance(n, OpNode) and kind_of(n.op) in FUSABLE}
        inside = {i for c in self.candidates if c.kernel is not None for i in c.region.nodes}
        return len(fusable), len(fusable & inside)


@dataclass
class Template:
    """What is known of a structure: its partition, and its decisions by bucket.

    Attributes:
        compiling: by bucket, what its decisions wait for.
        first: while torch computes the small products, what ends that; None where kernels may hold them.
        next: the template that follows then, once it was made.
        guards: made when a first call misses, by the name that a miss shows for the owner of the parameters: "self" for
            a module's forward, "" for a function.
    """

    shape: PlanSpec
    partition: Partition
    unfused: tuple[Step, ...]
    first: FirstTier | None = None
    next: Template | None = None
    by_bucket: dict[Bucket, Compiled] = field(default_factory=dict)
    compiling: dict[Bucket, tuple[Build, ...]] = field(default_factory=dict)
    sources: dict[Any, Source] = field(default_factory=dict)
    guards: dict[str, GuardList] = field(default_factory=dict)

    @property
    def latest(self) -> Template:
        """The template that new recordings of this structure have plans of."""
        over = self.first is not None and self.first.phase is Phase.OVER
        return self.next if over and self.next is not None else self


@dataclass
class Lists:
    """Lists of numbers that calls of one form were recorded with.

    Attributes:
        keys: the structures of those calls, numbers included.
        full: whether no further ones are recorded: they fix a size, and vary as it does.
    """

    keys: set[Any] = field(default_factory=set)
    full: bool = False


def structure_key(shape: PlanSpec) -> str:
    """Equal for scopes that can share plans: same graph up to numbers that opaque calls are given, same conditions."""
    graph = shape.graph
    later = set(call_constants(graph))
    nodes = tuple(
        n
        if isinstance(n, OpNode)
        else n.with_args(tuple("later" if f"i{k}_{p}" in later else a for p, a in enumerate(n.args)))
        for k, n in enumerate(graph.nodes)
    )
    conditions = shape.conditions
    return "|".join(
        [
            replace(graph, nodes=nodes).digest,
            repr([(p, id(k), keys) for p, k, keys in conditions.containers]),
            repr([(p, type(v).__name__, v) for p, v in conditions.atoms]),
            repr([(p, id(k)) for p, k in conditions.kinds]),
            repr((conditions.aliases, *conditions.memory)),
            repr(shape.parameters),
            repr(shape.devices),
            repr(shape.tree),
        ]
    )
