"""Reports from scopes: what became of their calls, of each region, and of what was left to eager."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from fusion.choices.decision import Decision
from fusion.choices.kernel_cache import Kernel
from fusion.choices.select import Candidate
from fusion.jit.compiled import Compiled
from fusion.jit.scope import Scope
from fusion.jit.stages import Stages
from fusion.patterns.graph import SubGraph
from fusion.patterns.nodes import Node, OpNode
from fusion.patterns.ops import Kind, kind_of
from fusion.refusal import CODES, Refusal
from fusion.remedies import REMEDIES
from fusion.reporting.model import FusionReport
from fusion.reporting.rows import GuardReport, RegionReport, ScopeReport, Totals
from fusion.runtime.native import native_state


def report_of(scopes: list[Scope], stages: Stages, steps: Mapping[str, Refusal] | None = None) -> FusionReport:
    """The report over scopes with the same stages, and over modules that run eagerly between plans."""
    shared: dict[int, list[RegionReport]] = {}
    rows = [_scope_report(scope, shared) for scope in scopes]
    rows += [_step_report(path, refusal) for path, refusal in (steps or {}).items()]
    costs = stages.backends.costs
    eager, fused = _times(rows)
    totals = Totals(
        scopes=len(rows),
        launches_before=sum(r.launches_before for r in rows),
        launches_after=sum(r.launches_after for r in rows),
        eager_us=eager,
        fused_us=fused,
        recording_seconds=sum(s.statistics.recording_seconds for s in scopes),
        compile_seconds=costs.compile_seconds,
        profile_seconds=costs.profile_seconds,
        cache_hits=costs.cache_hits,
        cache_misses=costs.cache_misses,
        fallbacks=sum(r.fallbacks for r in rows),
        guard_misses=sum(r.guard_misses for r in rows),
    )
    return FusionReport(tuple(rows), totals, _environment(stages), stages.config.model_dump(mode="json"))


def kernels_of(scopes: list[Scope]) -> tuple[Kernel, ...]:
    """The kernels that scopes' plans use, each once."""
    found = {
        kernel.nest.subgraph: kernel
        for scope in scopes
        for known in scope.known
        for compiled, _ in known.plans.values()
        if compiled.trial.refusal is None
        for kernel in compiled.kernels
    }
    return tuple(found.values())


def _times(rows: list[ScopeReport]) -> tuple[float | None, float | None]:
    measured = [
        (r.eager_us, r.fused_us)
        for row in rows
        for r in row.regions
        if r.decision == "fused" and r.eager_us is not None and r.fused_us is not None
    ]
    return (sum(m[0] for m in measured), sum(m[1] for m in measured)) if measured else (None, None)


def _environment(stages: Stages) -> dict[str, str]:
    store = stages.backends.store
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else platform.processor() or "cpu",
        "threads": str(torch.get_num_threads()),
        "cache": "off" if store is None else store.reason or str(store.directory),
        "C runtime": native_state(),
    }


def _scope_report(scope: Scope, shared: dict[int, list[RegionReport]]) -> ScopeReport:
    """A scope's part; `shared` holds the regions' rows of what equal scopes run, by its identity."""
    statistics = scope.statistics
    made = [c for known in scope.known for c, _ in known.plans.values()]
    compiled = [c for c in made if c.trial.refusal is None]
    for one in made:
        if id(one) not in shared:
            shared[id(one)] = [_region_report(c, one.trial.refusal) for c in one.candidates]
    found = dict.fromkeys(row for one in made for row in shared[id(one)])
    regions = tuple(replace(row, scope=scope.name) for row in found)
    refusals = tuple(
        _refused_node(scope, one, i, r)
        for one in compiled
        for i, r in one.partition.refusals
        if not _is_view(one.shape.graph.nodes[i])
    )
    planned = statistics.planned[0]
    latest = compiled[-1].launches if compiled else (0, 0)  # per call of the newest plan
    fusable, fused = compiled[-1].coverage if compiled else (0, 0)
    state, reason = _state(scope, bool(compiled))
    return ScopeReport(
        name=scope.name,
        state=state,
        reason=reason,
        calls=planned + statistics.eager,
        fused_calls=planned,
        eager_calls=statistics.eager,
        recordings=statistics.recordings,
        guard_misses=statistics.guard_misses,
        fallbacks=statistics.fallbacks,
        regions=regions,
        refusals=refusals,
        launches_before=latest[0],
        launches_after=latest[1],
        fusable_ops=fusable,
        fused_ops=fused,
        guards=tuple(
            GuardReport(row.last.kind, row.last.source, row.last.wanted, row.last.got, row.times, row.last.origin)
            for row in statistics.guards.rows
        ),
        other_guards=statistics.guards.others,
    )


def _step_report(path: str, refusal: Refusal) -> ScopeReport:
    """A module that a plan calls as it is; its calls are part of its scope's."""
    return ScopeReport(path, "eager", str(refusal), 0, 0, 0, 0, 0, 0, ())


def _state(scope: Scope, compiled: bool) -> tuple[str, str]:
    dropped = [c.trial.refusal for k in scope.known for c, _ in k.plans.values() if c.trial.refusal]
    refusals = [*(k.refusal for k in scope.known if k.refusal), *dropped, *scope.refused.values()]
    reason = str(refusals[0]) if refusals else ""
    if compiled and not all(k.refusal for k in scope.known):
        fused = any(c.kernels for k in scope.known for c, _ in k.plans.values() if c.trial.refusal is None)
        reasons = [reason, *map(str, scope.statistics.passing.values())]
        if not reason and scope.statistics.last_failure is not None:
            reasons.append(f"last fallback: {scope.statistics.last_failure}")
        return ("fused" if fused else "unfused plan"), "\n".join(filter(None, reasons))
    last = scope.statistics.last_reason or scope.statistics.last_failure
    if not refusals and last:
        reason = str(last)
    return ("eager" if reason else "not called"), reason


def _region_report(candidate: Candidate, dropped: Refusal | None) -> RegionReport:
    """A region's row, whatever the scope; `dropped` is why the plan with its kernel is not used."""
    graph, decision = candidate.region.subgraph, candidate.decision
    if dropped is not None and decision.fused:
        decision = replace(decision, fused=False, code=dropped.code, reason=dropped.sentence)
    return RegionReport(
        scope="",
        name=graph.pattern or "+".join(_compute(graph)),
        pattern=graph.pattern,
        ops=graph.ops,
        shapes=_shapes(graph),
        decision="fused" if decision.fused else "refused",
        code=decision.code,
        reason=_sentence(decision),
        eager_us=decision.eager_us,
        fused_us=decision.fused_us,
        bytes_before=decision.bytes_before,
        bytes_after=decision.bytes_after,
        backend=candidate.kernel.backend if candidate.kernel and decision.fused else "eager",
        origin=next((n.origin for n in graph.nodes if n.origin), ""),
        remedy="" if decision.fused else REMEDIES.get(decision.code, ""),
        candidates=decision.candidates if len(decision.candidates) > 1 else (),
    )


def _is_view(node: Node) -> bool:
    """A view moves nothing and launches nothing: it needs no reason for not being fused."""
    return isinstance(node, OpNode) and kind_of(node.op) is Kind.VIEW


def _sentence(decision: Decision) -> str:
    return decision.reason or CODES[decision.code]


def _compute(graph: SubGraph) -> list[str]:
    return [n.op.split(".")[1] for n in graph.nodes if kind_of(n.op) is not Kind.VIEW]


def _shapes(graph: SubGraph) -> str:
    return ", ".join(dict.fromkeys(graph.spec[i].text() for i in graph.inputs))


def _refused_node(scope: Scope, compiled: Compiled, index: int, refusal: Any) -> RegionReport:
    node = compiled.shape.graph.nodes[index]
    name = node.op.split(".")[1] if isinstance(node, OpNode) else node.text
    outputs = [o for o in node.outputs if o in compiled.shape.graph.spec]
    return RegionReport(
        scope=scope.name,
        name=name,
        pattern=None,
        ops=(name,),
        shapes=", ".join(compiled.shape.graph.spec[o].text() for o in outputs),
        decision="refused",
        code=refusal.code,
        reason=refusal.sentence,
        eager_us=None,
        fused_us=None,
        bytes_before=None,
        bytes_after=None,
        backend="eager",
        origin=node.origin,
        remedy=refusal.remedy,
    )
