"""The orchestrator: partition, match, decide, compile, prove, plan.

Each step takes one immutable value and makes the next; scopes whose recordings have the same structure share every
result, so that the second of 28 equal layers costs a binding of names.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from fusion import faults
from fusion.capture.record import Recording
from fusion.choices.kernel_cache import Backends, Kernel
from fusion.choices.select import Candidate, Decider, given_dims, pattern_of
from fusion.config import FusionConfig
from fusion.partition.dependence import schedule
from fusion.partition.partitioner import partition, unfused
from fusion.partition.regions import Partition
from fusion.patterns.forks import cached_property
from fusion.patterns.graph import SubGraph
from fusion.patterns.nodes import IslandNode, OpNode
from fusion.patterns.ops import FUSABLE, Kind, kind_of
from fusion.patterns.recorded import RecordedGraph
from fusion.refusal import CODES, Refusal
from fusion.runtime.guard_writer import write_match
from fusion.runtime.plan import KernelCall, Shape, Source, Step, input_symbols, island_constants
from fusion.runtime.plan_writer import write_plan

_LOG = logging.getLogger("fusion")

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
    """

    shape: Shape
    partition: Partition
    candidates: tuple[Candidate, ...]
    bucket: Bucket
    unfused: tuple[Step, ...]
    steps: tuple[Step, ...]
    calls: tuple[KernelCall, ...]
    kernels: tuple[Kernel, ...]

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
            return isinstance(node, IslandNode) or kind_of(node.op) is not Kind.VIEW

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
    """What is known of a structure: its partition, and its decisions by bucket."""

    shape: Shape
    partition: Partition
    unfused: tuple[Step, ...]
    by_bucket: dict[Bucket, Compiled] = field(default_factory=dict)
    sources: dict[Any, Source] = field(default_factory=dict)


@dataclass
class Lists:
    """Lists of numbers that calls of one form were recorded with.

    Attributes:
        keys: the structures of those calls, numbers included.
        full: whether no further ones are recorded: they fix a size, and vary as it does.
    """

    keys: set[Any] = field(default_factory=set)
    full: bool = False


class FusionScheduler:
    """Compiles recordings and remembers what it compiled.

    Args:
        config: a FusionConfig, a mapping, a file, or None for the environment's.

    Raises:
        ConfigError: the config is not valid.
        BackendUnavailable: the config names a backend that this machine cannot provide.
    """

    def __init__(self, config: FusionConfig | Mapping[str, Any] | str | None = None) -> None:
        self.config = FusionConfig.resolve(config)
        self.backends = Backends(self.config)
        self.decider = Decider(self.config, self.backends)
        self.templates: dict[str, Template] = {}
        self.lists: dict[Any, dict[Any, Lists]] = {}  # of calls, by scopes' structure and the calls' form
        self.routed: dict[Any, set[str]] = {}  # modules that data leads call by call: paths, by scopes' structure
        self.twins: dict[Any, list[Any]] = {}  # recordings that equal modules may follow, by their structure
        self._dispatchers: dict[Any, Any] = {}

    # ---- the pipeline

    def template(self, recording: Recording, parameters: tuple[str, ...]) -> Template:
        """Partitions a recording, or finds the partition of an equal one.

        Args:
            recording: one that was not refused.
            parameters: the scope's parameter names in signature order.
        """
        assert recording.graph is not None and recording.conditions is not None
        devices = tuple(recording.devices.values())
        shape = Shape(recording.graph, recording.conditions, parameters, devices, recording.tree)
        key = structure_key(shape)
        known = self.templates.get(key)
        if known is None:
            split = self._partition(recording.graph, dict(recording.values))
            regions = tuple(replace(r, subgraph=r.subgraph.with_pattern(pattern_of(r.subgraph))) for r in split.regions)
            split = replace(split, regions=regions)
            known = Template(shape, split, tuple(("node", i) for i in range(len(recording.graph.nodes))))
            self._trace("recording", recording.graph)
            for region in regions:
                self._trace("region", region.subgraph)
            self.templates[key] = known
        return known

    def _partition(self, graph: RecordedGraph, values: Mapping[str, int]) -> Partition:
        """The regions of a graph; none where looking for them fails, so that its plan runs unfused."""
        nodes, elements = self.config.min_nodes, self.config.min_tensor_elements
        try:
            return partition(graph, min_nodes=nodes, min_elements=elements, values=values)
        except Exception as error:
            return unfused(graph, faults.noted(error, f"the {len(graph.nodes)} calls of a scope"))

    def compile(
        self, template: Template, tensors: Mapping[str, torch.Tensor] | None, values: Mapping[str, int]
    ) -> Compiled:
        """Decides every region for the sizes of `values`.

        Args:
            template: the partition.
            tensors: real tensors by value name, for proving and measuring; without them nothing new is fused.
            values: every size symbol's value in that run.
        """
        bucket = self.bucket(template, values)
        known = template.by_bucket.get(bucket)
        if known is not None:
            return known
        candidates = self.decider.candidates(template.shape.graph, template.partition, tensors, values)
        compiled = self._assemble(template, candidates, bucket)
        for candidate in candidates:
            self._trace("decision", candidate.decision)
            if candidate.kernel is not None:
                self._trace("kernel", candidate.kernel.nest)
        template.by_bucket[bucket] = compiled
        return compiled

    def _assemble(self, template: Template, candidates: tuple[Candidate, ...], bucket: Bucket) -> Compiled:
        chosen = [c for c in candidates if c.kernel is not None]
        kernels = [c.kernel for c in chosen if c.kernel is not None]
        calls = [
            KernelCall(c.region.inputs, c.region.outputs, given_dims(c.region.subgraph, k))
            for c, k in zip(chosen, kernels, strict=True)
        ]
        steps = schedule(template.shape.graph, [c.region for c in chosen])
        return Compiled(
            template.shape,
            template.partition,
            candidates,
            bucket,
            template.unfused,
            steps,
            tuple(calls),
            tuple(kernels),
        )

    def bucket(self, template: Template, values: Mapping[str, int]) -> Bucket:
        """The range of sizes around `values` that decisions are shared over: powers of four, per input symbol."""
        used = {name for r in template.partition.regions for name in r.subgraph.symbols}
        ranges = []
        for source in input_symbols(template.shape.graph):
            if source.symbol in used and source.kind == "shape":
                low = 2
                while low * 4 <= values[source.symbol]:
                    low *= 4
                ranges.append((source.symbol, low, low * 4 - 1))
        return tuple(ranges)

    # ---- plans

    def source(self, template: Template, compiled: Compiled | None, kind: str, **options: Any) -> Source:
        """The text of a plan, written once per template: "match", "unfused" or "fused"."""
        key = (kind, compiled.bucket if compiled and kind == "fused" else None, *sorted(options.items()))
        known = template.sources.get(key)
        if known is None:
            if kind == "match":
                known = write_match(template.shape)
            elif kind == "unfused":
                known = write_plan(template.shape, template.unfused, **options)
            else:
                assert compiled is not None
                within = {s: (low, high) for s, low, high in compiled.bucket}
                known = write_plan(template.shape, compiled.steps, compiled.calls, within=within, **options)
            template.sources[key] = known
            self._trace(f"{kind} plan", known)
        return known

    def _trace(self, stage: str, value: object) -> None:
        """With `debug_mode`, every stage's value goes to the logger "fusion" as text."""
        if self.config.debug_mode:
            _LOG.warning("%s\n%s", stage, value)

    # ---- subgraphs given by hand

    def dispatch(self, graph: Any, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Runs a SubGraph (or a recording) on named inputs, fused where that is proved and faster, else eagerly.

        Args:
            graph: a SubGraph such as `create_swiglu_pattern()`, or what `fusion.record` gave.
            inputs: a tensor per input name; shapes as the graph's, up to its size symbols; any floating dtype.

        Returns:
            a tensor per output name.

        Raises:
            StructureMismatch: the inputs do not fit the graph.
        """
        from fusion.frontend.subgraph_dispatch import dispatcher_for

        key = graph if isinstance(graph, SubGraph) else id(graph)
        known = self._dispatchers.get(key)
        if known is None:
            known = self._dispatchers[key] = (dispatcher_for(graph, self), graph)
        result: dict[str, torch.Tensor] = known[0](dict(inputs))
        return result

    def cache_stats(self) -> dict[str, int | float]:
        """Counts since this scheduler was made: kernels found on disk and compiled, decisions held, seconds spent."""
        costs = self.backends.costs
        return {
            "hits": costs.cache_hits,
            "misses": costs.cache_misses,
            "kernels": sum(isinstance(k, Kernel) for k in self.backends.kernels.values()),
            "decisions": len(self.backends.decisions),
            "compile_seconds": costs.compile_seconds,
            "profile_seconds": costs.profile_seconds,
        }

    def clear_cache(self) -> None:
        """Forgets every kernel and decision, in memory and on disk. Scopes that run already keep their plans."""
        self.templates.clear()
        self.lists.clear()
        self.routed.clear()
        self.twins.clear()
        self._dispatchers.clear()
        self.backends.kernels.clear()
        self.backends.decisions.clear()
        self.backends.trials.known.clear()
        self.backends.nests.clear()
        if self.backends.store is not None:
            self.backends.store.clear()


def structure_key(shape: Shape) -> str:
    """Equal for scopes that can share plans: same graph up to islands' plain arguments, same conditions."""
    graph = shape.graph
    later = set(island_constants(graph))
    nodes = tuple(
        replace(n, args=tuple("later" if f"i{k}_{p}" in later else a for p, a in enumerate(n.args or ())))
        if isinstance(n, IslandNode) and n.args is not None
        else n
        for k, n in enumerate(graph.nodes)
    )
    conditions = shape.conditions
    return "|".join(
        [
            replace(graph, nodes=nodes).digest,
            repr([(p, id(k), keys) for p, k, keys in conditions.containers]),
            repr([(p, type(v).__name__, v) for p, v in conditions.atoms]),
            repr([(p, id(k)) for p, k in conditions.kinds]),
            repr((conditions.aliases, conditions.written, conditions.others, conditions.held, conditions.met)),
            repr(shape.parameters),
            repr(shape.devices),
            repr(shape.tree),
        ]
    )
