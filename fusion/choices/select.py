"""From regions to decisions: rules, then kernels proved and measured, and parts of what measurement refuses."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from fusion import faults
from fusion.choices.background import Build, Compiling
from fusion.choices.decision import Decision, best
from fusion.choices.heuristics import FusionHeuristics, bytes_moved
from fusion.choices.kernel_cache import Backends, Kernel, KernelChoice
from fusion.choices.split import splits
from fusion.config import FusionConfig
from fusion.kernels.lower import given_symbols
from fusion.partition.node_facts import Facts
from fusion.partition.regions import Partition, Region
from fusion.patterns import symbols
from fusion.patterns.errors import LoweringError
from fusion.patterns.extents import agreeing
from fusion.patterns.graph import SubGraph, canonicalize
from fusion.patterns.match import match
from fusion.patterns.ops import Kind, kind_of
from fusion.patterns.recorded import RecordedGraph
from fusion.patterns.reference import run

# A region whose kernel was refused for one of these is cut in two, and its parts once more; of the cheapest cuts, this
# many are looked at for one that lowers. More would cost more time to compile and measure than a region can save.
_MEASURED = ("slower", "inaccurate", "compile_error", "launch_error", "primitive")
_SPLIT_ROUNDS, _SPLITS_TRIED = 2, 4


@dataclass(frozen=True)
class Candidate:
    """A region with what was decided about it."""

    region: Region
    decision: Decision
    kernel: Kernel | None


class Decider:
    """Decides on the regions of partitions.

    Args:
        config: what rules go by.
        backends: compiles kernels, and remembers them and the decisions.
    """

    def __init__(self, config: FusionConfig, backends: Backends) -> None:
        self.config = config
        self.heuristics = FusionHeuristics(config)
        self.backends = backends

    def candidates(
        self,
        graph: RecordedGraph,
        partition: Partition,
        tensors: Mapping[str, torch.Tensor] | None,
        values: Mapping[str, int],
    ) -> tuple[Candidate, ...]:
        """A decision on every region, in order; behind one that measurement refused, those on its parts.

        Args:
            graph: the recording.
            partition: of `graph`.
            tensors: real tensors by value name, for proving and measuring; without them nothing new is fused.
            values: every size symbol's value in that run.

        Raises:
            Compiling: with `compile="background"`, some kernel is not compiled yet.
        """
        rows = self._decided(partition.regions, tensors, values)
        if tensors is not None:
            rows = self._unbundled(rows, tensors, values)
        if tensors is not None and self.config.profile:
            copied = frozenset(i for region in partition.regions for i in region.shared)
            try:
                rows = self._split(graph, copied, rows, tensors, values)
            except Compiling:
                raise
            except Exception as error:
                faults.noted(error, "parts of the regions that are slower than eager")
        return _fueled(rows, self.config.max_fusions)

    def begin(self, partition: Partition, values: Mapping[str, int]) -> tuple[Build, ...]:
        """Starts to compile on the side what `candidates` is going to need; gives what there is to wait for."""
        return self.backends.compiling([r.subgraph for r in partition.regions if self._rule(r, values).fused])

    def _decided(
        self, regions: Sequence[Region], tensors: Mapping[str, torch.Tensor] | None, values: Mapping[str, int]
    ) -> list[Candidate]:
        """Decisions on `regions`, in order; those that rules allow are compiled together."""
        static = [self._rule(r, values) for r in regions]
        wanted = [r.subgraph for r, s in zip(regions, static, strict=True) if s.fused]
        if self.config.compile == "background" and (builds := self.backends.compiling(wanted)):
            raise Compiling(builds)
        made = iter(self.backends.compile(wanted))
        return [
            self._decide(region, next(made), tensors, values) if rule.fused else Candidate(region, rule, None)
            for region, rule in zip(regions, static, strict=True)
        ]

    def _rule(self, region: Region, values: Mapping[str, int]) -> Decision:
        try:
            return self.heuristics.should_fuse(region.subgraph, values)
        except Exception as error:
            return Decision(False, faults.CODE, faults.noted(error, "+".join(region.subgraph.ops)))

    def _unbundled(
        self, candidates: Sequence[Candidate], tensors: Mapping[str, torch.Tensor], values: Mapping[str, int]
    ) -> list[Candidate]:
        """`candidates` with the members of those bundles that were refused, each decided on, behind them."""
        refused = [c for c in candidates if c.region.members and not c.decision.fused]
        members = [_named(member) for c in refused for member in c.region.members]
        decided = iter(self._decided(members, tensors, values) if members else ())
        parts = {id(c): [next(decided) for _ in c.region.members] for c in refused}
        return [row for c in candidates for row in (_in_parts(c) if id(c) in parts else c, *parts.get(id(c), ()))]

    def _split(
        self,
        graph: RecordedGraph,
        copied: frozenset[int],
        candidates: Sequence[Candidate],
        tensors: Mapping[str, torch.Tensor],
        values: Mapping[str, int],
    ) -> list[Candidate]:
        """`candidates` with parts of those that measurement refused, each decided on, behind them."""
        rows = list(candidates)
        facts: Facts | None = None
        waiting = [c for c in rows if _may_be_split(c)]
        for _ in range(_SPLIT_ROUNDS):
            if not waiting:
                break
            facts = facts or Facts(graph, products=self.config.matrix_products == "auto")
            pairs = {id(c): self._pair(facts, c.region, copied, values) for c in waiting}
            regions = [part for pair in pairs.values() for part in pair]
            inner = {**tensors}
            for c in waiting:
                inner |= inner_values(c.region.subgraph, pairs[id(c)], inner, values)
            decided = iter(self._decided(regions, inner, values))
            parts = {key: [next(decided) for _ in pair] for key, pair in pairs.items()}
            rows = [row for c in rows for row in (_in_parts(c) if parts.get(id(c)) else c, *parts.get(id(c), ()))]
            tensors = inner
            waiting = [p for made in parts.values() for p in made if _may_be_split(p)]
        return rows

    def _pair(
        self, facts: Facts, region: Region, copied: frozenset[int], values: Mapping[str, int]
    ) -> tuple[Region, ...]:
        """The best split of a region whose parts both lower, with their patterns; empty where none of a few does."""
        for pair in itertools.islice(splits(facts, region, copied, values), _SPLITS_TRIED):
            try:
                for part in pair:
                    self.backends.lower(part.subgraph)
            except LoweringError:
                continue
            return tuple(map(_named, pair))
        return ()

    def _decide(
        self,
        region: Region,
        choice: KernelChoice,
        tensors: Mapping[str, torch.Tensor] | None,
        values: Mapping[str, int],
    ) -> Candidate:
        try:
            return self._judged(region, choice, tensors, values)
        except Exception as error:
            words = faults.noted(error, "+".join(region.subgraph.ops))
            return Candidate(region, Decision(False, faults.CODE, words), None)

    def _judged(
        self,
        region: Region,
        choice: KernelChoice,
        tensors: Mapping[str, torch.Tensor] | None,
        values: Mapping[str, int],
    ) -> Candidate:
        graph, kernels = region.subgraph, choice.kernels
        if not kernels:
            before, after = bytes_moved(graph, values)
            refused = best(choice.refusals.items())
            return Candidate(region, replace(refused, bytes_before=before, bytes_after=after), None)
        key = self.backends.decision_key(graph, choice, _size_class(graph, values))
        decision = self.backends.remembered(key)
        if decision is not None and decision.fused and decision.chosen not in kernels:
            decision = None
        if tensors is not None and (decision is None or (decision.fused and key not in self.backends.proved)):
            start = time.perf_counter()
            given = [symbols.evaluate(d, values) for d in given_dims(graph, next(iter(kernels.values())))]
            needed = {s: values[s] for s in graph.symbols}
            real = [tensors[i] for i in graph.inputs]
            decision = self.heuristics.choose(graph, real, needed, choice, given, known=decision)
            self.backends.costs.profile_seconds += time.perf_counter() - start
            self.backends.remember(key, decision)
            self.backends.proved.add(key)
        if decision is None:
            decision = Decision(False, "unmeasured", "not measured yet")
        return Candidate(region, decision, kernels[decision.chosen] if decision.fused else None)


def _named(region: Region) -> Region:
    """`region` with the name of the pattern it is."""
    return replace(region, subgraph=region.subgraph.with_pattern(pattern_of(region.subgraph)))


def pattern_of(graph: SubGraph) -> str | None:
    """The name of the pattern that a region's graph is. A name decides nothing: where looking for one fails, None."""
    try:
        return match(graph)
    except Exception as error:
        faults.noted(error, f"a name for {'+'.join(graph.ops)}")
        return None


def _may_be_split(candidate: Candidate) -> bool:
    """Whether a region was refused for what its kernel did, and has parts that may do better."""
    if candidate.region.members:
        return False  # its members have been decided on
    computing = sum(kind_of(n.op) is not Kind.VIEW for n in candidate.region.subgraph.nodes)
    return candidate.decision.code in _MEASURED and computing > 1


def _in_parts(candidate: Candidate) -> Candidate:
    """A refused candidate whose report row says that its parts have rows of their own."""
    cut = f"taken apart into {len(candidate.region.members)}" if candidate.region.members else "cut in two"
    decision = replace(candidate.decision, reason=f"{candidate.decision.reason}; {cut}, each decided on by itself")
    return replace(candidate, decision=decision)


def inner_values(
    graph: SubGraph, parts: Sequence[Region], tensors: Mapping[str, torch.Tensor], values: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """What parts of a region read that only the region makes, by eager operators.

    Args:
        graph: the region's.
        parts: its parts.
        tensors: at least the region's inputs.
        values: size symbols' values.
    """
    missing = tuple(dict.fromkeys(name for part in parts for name in part.inputs if name not in tensors))
    if not missing:
        return {}
    inputs = {name: tensors[name] for name in graph.inputs}
    return run(replace(graph, outputs=missing), inputs, {s: values[s] for s in graph.symbols})


def _fueled(candidates: Sequence[Candidate], most: int | None) -> tuple[Candidate, ...]:
    """`candidates` with at most `most` kernels."""
    kept: list[Candidate] = []
    for candidate in candidates:
        if candidate.decision.fused and most is not None and sum(c.decision.fused for c in kept) >= most:
            spent = replace(candidate.decision, fused=False, code="fuel", reason="max_fusions is used up", chosen="")
            candidate = Candidate(candidate.region, spent, None)
        kept.append(candidate)
    return tuple(kept)


def given_dims(graph: SubGraph, kernel: Kernel) -> tuple[Any, ...]:
    """What a launcher takes after the inputs: the sizes behind the nest's given symbols."""
    names = given_symbols(kernel.nest)
    _, _, stands_for = canonicalize(agreeing(graph)) if names else (None, None, {})
    return tuple(stands_for[name] for name in names)


def _size_class(graph: SubGraph, values: Mapping[str, int]) -> tuple[int, ...]:
    """Powers of four of a region's size symbols, in canonical order."""
    _, _, stands_for = canonicalize(graph)
    return tuple((symbols.evaluate(dim, values).bit_length() - 2) // 2 for dim in stands_for.values())
