"""What a report is made of, as immutable values: regions in scopes, and totals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from fusion.choices.decision import Outcome


@dataclass(frozen=True, slots=True)
class RegionReport:
    """One candidate for a kernel, and what became of it.

    Attributes:
        scope: name of the scope it lies in.
        name: the region's name.
        pattern: the pattern that matched, or None.
        ops: short operator names in order.
        shapes: inputs' dtypes and shapes, for people.
        decision: what became of it.
        code: reason code, stable across versions.
        reason: the same as a sentence.
        eager_us, fused_us: median microseconds of the region, or None where not measured.
        bytes_before, bytes_after: bytes read and written by the operators one by one, and by the kernel.
        backend: who made the kernel, such as "cpp" or "triton"; "eager" where refused.
        origin: "file:line" of the user's code.
        count: how many regions this row stands for.
        remedy: what to do about a refusal; empty for what is fused.
        candidates: what became of every kernel that competed, where several did; the one taken among them.
    """

    scope: str
    name: str
    pattern: str | None
    ops: tuple[str, ...]
    shapes: str
    decision: Literal["fused", "refused"]
    code: str
    reason: str
    eager_us: float | None
    fused_us: float | None
    bytes_before: int | None
    bytes_after: int | None
    backend: str
    origin: str
    count: int = 1
    remedy: str = ""
    candidates: tuple[Outcome, ...] = ()

    @property
    def speedup(self) -> float | None:
        """Eager's time over the kernel's, or None where either was not measured."""
        return self.eager_us / self.fused_us if self.eager_us and self.fused_us else None


@dataclass(frozen=True, slots=True)
class GuardReport:
    """A guard that did not hold: why a plan did not take a call, was left on its way, or became void.

    All texts are short, and printable.

    Attributes:
        guard: what it checks, one of `patterns.guards.KINDS`.
        where: the value as the user would write it: "x.shape[1]", "len(mask)", "self.norm.eps".
        wanted, got: what the plan is for, and what was found the last time; "" where they are not known.
        times: how often it did not hold. A call counts for each recording that does not apply to it.
        origin: "file:line" of the user's code that depends on the value, else of the callable.
    """

    guard: str
    where: str
    wanted: str
    got: str
    times: int
    origin: str = ""


@dataclass(frozen=True, slots=True)
class ScopeReport:
    """One scope: a callable that is recorded and replayed as a unit.

    Attributes:
        name: path of the module, or name of the function.
        state: what its calls do now ("fused", "eager", "recording", ...).
        reason: why, as a sentence; empty where nothing needs saying.
        calls: all calls since `enable`; fused_calls ran a plan, eager_calls did not.
        recordings: recorded runs; guard_misses: calls no plan was valid for; fallbacks: plans that failed.
        regions: what its plans were made from.
        refusals: candidates that never became a region.
        launches_before, launches_after: operator and kernel calls per scope call, eager and planned.
        fusable_ops, fused_ops: operator calls of a kind that kernels can hold per scope call, and those inside kernels.
        count: how many scopes this one stands for.
        guards: those that did not hold, at most 32 of them.
        other_guards: how often further ones did not hold.
    """

    name: str
    state: str
    reason: str
    calls: int
    fused_calls: int
    eager_calls: int
    recordings: int
    guard_misses: int
    fallbacks: int
    regions: tuple[RegionReport, ...]
    refusals: tuple[RegionReport, ...] = ()
    launches_before: int = 0
    launches_after: int = 0
    fusable_ops: int = 0
    fused_ops: int = 0
    count: int = 1
    guards: tuple[GuardReport, ...] = ()
    other_guards: int = 0


@dataclass(frozen=True, slots=True)
class Totals:
    """Sums over all scopes; times in the unit of their name.

    Attributes:
        scopes: how many.
        launches_before, launches_after: operator and kernel calls of one pass over all scopes.
        eager_us, fused_us: measured time of the fused regions in one pass over all scopes, or None.
        recording_seconds, compile_seconds, profile_seconds: spent so far.
        cache_hits, cache_misses: kernels found on disk, and made.
        fallbacks, guard_misses: as in ScopeReport.
    """

    scopes: int = 0
    launches_before: int = 0
    launches_after: int = 0
    eager_us: float | None = None
    fused_us: float | None = None
    recording_seconds: float = 0.0
    compile_seconds: float = 0.0
    profile_seconds: float = 0.0
    cache_hits: int = 0
    cache_misses: int = 0
    fallbacks: int = 0
    guard_misses: int = 0


class Rows(Protocol):
    """What a report shows: its scopes, their sums, and the machine."""

    @property
    def scopes(self) -> tuple[ScopeReport, ...]:
        """One per scope."""

    @property
    def totals(self) -> Totals:
        """Sums over them."""

    @property
    def environment(self) -> dict[str, str]:
        """Versions and devices by name."""
