"""What the parts of a scope share."""

from __future__ import annotations

from dataclasses import dataclass

from fusion.jit.graph_breaks import GraphBreaks
from fusion.jit.lifecycle import Lifecycle
from fusion.jit.original import Original
from fusion.jit.plan_cache import PlanCache
from fusion.jit.stages import Stages
from fusion.jit.state_watch import StateWatch


@dataclass(frozen=True, slots=True)
class ScopeContext:
    """One scope, to those who record, prove and fall back for it.

    Attributes:
        original: the callable.
        stages: compiles its recordings.
        cache: its recordings, refusals and plans.
        watch: what the callable depends on beside its arguments.
        breaks: where recordings end.
        lifecycle: its phase.
    """

    original: Original
    stages: Stages
    cache: PlanCache
    watch: StateWatch
    breaks: GraphBreaks
    lifecycle: Lifecycle
