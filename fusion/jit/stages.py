"""The stages between a recording and its plans: partition, name, choose and prove kernels, put in order, write.

Each stage takes one immutable value and makes the next. `Pipeline.adopt` calls them in turn. Scopes whose recordings
have the same structure share every result, so that the second of 28 equal layers costs a binding of names.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fusion import faults
from fusion.capture.recorded_call import RecordedCall
from fusion.choices.background import Build, Compiling
from fusion.choices.kernel_cache import Backends
from fusion.choices.select import Candidate, Decider, given_dims, pattern_of
from fusion.config import FusionConfig
from fusion.jit.compiled import Bucket, Compiled, Lists, Template, structure_key
from fusion.jit.plan_trial import PlanTrial
from fusion.jit.small_products import SmallProducts
from fusion.jit.tiers import FirstTier
from fusion.partition.dependence import schedule
from fusion.partition.partitioner import partition, unfused
from fusion.partition.regions import Partition
from fusion.patterns.python_nodes import ObjectRead, TensorRead
from fusion.patterns.recorded import RecordedGraph
from fusion.runtime.guard_writer import write_match
from fusion.runtime.plan import KernelCall, PlanSpec, Source, input_symbols
from fusion.runtime.plan_writer import write_plan

_LOG = logging.getLogger("fusion")


class Stages:
    """The stages of one config. Each remembers what it made.

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
        self.templates: dict[tuple[str, bool], Template] = {}  # by structure, and whether products are left to torch
        self.lists: dict[Any, dict[Any, Lists]] = {}  # of calls, by scopes' structure and the calls' form
        self.routed: dict[Any, set[str]] = {}  # modules that data leads call by call: paths, by scopes' structure
        self.small_products = SmallProducts(self.config, self.backends)
        self.twins: dict[Any, list[Any]] = {}  # recordings that equal modules may follow, by their structure

    # ---- partition, and name the regions

    def template(self, recording: RecordedCall, parameters: tuple[str, ...]) -> Template:
        """Partitions a recording, or finds the partition of an equal one.

        Args:
            recording: one that was not refused.
            parameters: the scope's parameter names in signature order.
        """
        assert recording.graph is not None and recording.conditions is not None
        devices = tuple(recording.devices.values())
        shape = PlanSpec(recording.graph, recording.conditions, parameters, devices, recording.tree)
        key = structure_key(shape)
        values = dict(recording.values)
        first = self.small_products.left_to_torch(shape.graph, values)
        known = self.templates.get((key, first))
        if known is None:
            known = self.templates[key, first] = self._template(shape, values, first)
            if first:
                known.first = FirstTier(
                    self.config.product_seconds,
                    succeed=functools.partial(self._succeed, known, key, values),
                    begin=lambda: self._begin(known, values),
                )
        return known

    def _template(self, shape: PlanSpec, values: Mapping[str, int], first: bool) -> Template:
        split = self._partition(shape.graph, values, first)
        regions = tuple(replace(r, subgraph=r.subgraph.with_pattern(pattern_of(r.subgraph))) for r in split.regions)
        self._trace("recording", shape.graph)
        for region in regions:
            self._trace("region", region.subgraph)
        split = replace(split, regions=regions)
        return Template(shape, split, tuple(("node", i) for i in range(len(shape.graph.nodes))))

    def _partition(self, graph: RecordedGraph, values: Mapping[str, int], first: bool) -> Partition:
        """The regions of a graph; none where looking for them fails, so that its plan runs unfused.

        Args:
            graph: a recording.
            values: size symbols' values in it.
            first: whether torch computes its products for now.
        """
        nodes, elements = self.config.min_nodes, self.config.min_tensor_elements
        products = self.config.matrix_products == "auto" and not first
        later = self.small_products.reason if first else ""
        try:
            return partition(
                graph, min_nodes=nodes, min_elements=elements, values=values, products=products, later=later
            )
        except Exception as error:
            return unfused(graph, faults.noted(error, f"the {len(graph.nodes)} calls of a scope"))

    def _succeed(self, first: Template, key: str, values: Mapping[str, int]) -> bool:
        """Makes the template that follows a first one; whether there is one."""
        made = self.templates.get((key, False)) or self._template(first.shape, values, first=False)
        if first.partition.regions and not made.partition.regions:
            return False  # for a fault: there were regions before
        self.templates.pop((key, True), None)
        self.templates[key, False] = first.next = made
        self.small_products.mark_worth(first.shape.graph)
        return True

    def _begin(self, first: Template, values: Mapping[str, int]) -> tuple[Build, ...]:
        """Starts the compilers for the template that follows a first one."""
        assert first.next is not None
        return self.decider.begin(first.next.partition, values)

    # ---- choose, compile and prove kernels

    def compile(
        self, template: Template, tensors: Mapping[str, torch.Tensor] | None, values: Mapping[str, int]
    ) -> Compiled:
        """Decides every region for the sizes of `values`.

        Args:
            template: the partition.
            tensors: real tensors by value name, for proving and measuring; without them nothing new is fused.
            values: every size symbol's value in that run.

        Raises:
            Compiling: kernels are being compiled on the side; nothing is decided yet.
        """
        bucket = self.bucket(template, values)
        known = template.by_bucket.get(bucket)
        if known is not None:
            return known
        if self.waits(template, bucket):
            raise Compiling(template.compiling[bucket])
        try:
            candidates = self.decider.candidates(template.shape.graph, template.partition, tensors, values)
        except Compiling as compiling:
            template.compiling[bucket] = compiling.builds
            raise
        template.compiling.pop(bucket, None)
        compiled = self._assemble(template, candidates, bucket, values)
        for candidate in candidates:
            self._trace("decision", candidate.decision)
            if candidate.kernel is not None:
                self._trace("kernel", candidate.kernel.nest)
        template.by_bucket[bucket] = compiled
        return compiled

    def waits(self, template: Template, bucket: Bucket) -> bool:
        """Whether kernels are being compiled that the decisions of a bucket need."""
        return not all(build.done for build in template.compiling.get(bucket, ()))

    def _assemble(
        self, template: Template, candidates: tuple[Candidate, ...], bucket: Bucket, values: Mapping[str, int]
    ) -> Compiled:
        chosen = [c for c in candidates if c.kernel is not None]
        kernels = [c.kernel for c in chosen if c.kernel is not None]
        calls = [
            KernelCall(c.region.inputs, c.region.outputs, given_dims(c.region.subgraph, k), tuple(c.region.nodes))
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
            PlanTrial(measured=self._measures(template), copies=bool(template.shape.graph.lasting)),
            self.small_products.spent_us(template, values),
        )

    def _measures(self, template: Template) -> bool:
        """Whether plans of a template are measured as a whole.

        Of calls on GPUs a clock sees the launches alone. Where data or an object's state decides what a call does, the
        original's turns may be calls that the plan is not for.
        """
        on_cpu = all(device.type == "cpu" for device in template.shape.devices)
        reads = any(isinstance(node, (ObjectRead, TensorRead)) for node in template.shape.graph.nodes)
        return self.config.profile and on_cpu and not reads

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

    # ---- write the plans

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

    def forget(self) -> None:
        """Forgets every kernel and decision, in memory and on disk. Scopes that run already keep their plans."""
        self.templates.clear()
        self.lists.clear()
        self.routed.clear()
        self.twins.clear()
        self.small_products.forget()
        self.backends.forget()
