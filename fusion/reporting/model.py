"""What the report holds, as immutable values: regions in scopes, and totals."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any, Literal

_NUMBER = re.compile(r"(?<![A-Za-z0-9_])\d+(?![A-Za-z0-9_])")


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
        backend: who made the kernel, "cpp" or "triton"; "eager" where refused.
        origin: "file:line" of the user's code.
        count: how many regions this row stands for.
        remedy: what to do about a refusal; empty for what is fused.
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

    @property
    def speedup(self) -> float | None:
        """Eager's time over the kernel's, or None where either was not measured."""
        return self.eager_us / self.fused_us if self.eager_us and self.fused_us else None


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


@dataclass(frozen=True, slots=True)
class FusionReport:
    """What was fused, what was not, and why. Prints as a table; `to_json` keeps every row.

    Attributes:
        scopes: one per scope, in the order of first use.
        totals: sums over them.
        environment: versions and devices by name.
        config: the config's fields by name.
    """

    scopes: tuple[ScopeReport, ...]
    totals: Totals
    environment: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def regions(self) -> tuple[RegionReport, ...]:
        """Every row, regions and refusals, in order."""
        return tuple(row for scope in self.scopes for row in (*scope.regions, *scope.refusals))

    def to_json(self) -> str:
        """The report as JSON text; `from_json` reads it back."""
        return json.dumps(dataclasses.asdict(self), indent=2, default=str)

    @staticmethod
    def from_json(text: str) -> FusionReport:
        """Reads what `to_json` wrote.

        Raises:
            ValueError, TypeError or KeyError: the text is no report.
        """
        report = json.loads(text)
        return FusionReport(
            tuple(map(_scope, report["scopes"])), Totals(**report["totals"]), report["environment"], report["config"]
        )

    def grouped(self) -> FusionReport:
        """The same report with scopes that differ only in their name and their counters merged into one.

        Twenty-eight equal layers become the scope "model.layers.0..27" with `count` 28: calls and other counters are
        summed, times averaged over the layers that were measured.
        """
        groups: dict[Any, list[ScopeReport]] = {}
        for scope in self.scopes:
            groups.setdefault(_scope_key(scope), []).append(scope)
        return replace(self, scopes=tuple(map(_merge_scopes, groups.values())))

    def __str__(self) -> str:
        from .text import render

        return render(self)


def joined(reports: Mapping[str, FusionReport]) -> FusionReport:
    """One report over several models, their scopes' names after the models'.

    What the models share because they were enabled together, compile times and the cache, is told as the first has it.

    Args:
        reports: at least one, by the model's name.
    """
    first = next(iter(reports.values()))
    scopes = [replace(scope, name=f"{name}.{scope.name}") for name, one in reports.items() for scope in one.scopes]
    totals = [one.totals for one in reports.values()]
    summed = replace(
        first.totals,
        scopes=len(scopes),
        launches_before=sum(t.launches_before for t in totals),
        launches_after=sum(t.launches_after for t in totals),
        eager_us=_sum(t.eager_us for t in totals),
        fused_us=_sum(t.fused_us for t in totals),
        recording_seconds=sum(t.recording_seconds for t in totals),
        fallbacks=sum(t.fallbacks for t in totals),
        guard_misses=sum(t.guard_misses for t in totals),
    )
    return replace(first, scopes=tuple(scopes), totals=summed)


def _sum(times: Iterable[float | None]) -> float | None:
    known = [time for time in times if time is not None]
    return sum(known) if known else None


def _scope(values: Mapping[str, Any]) -> ScopeReport:
    rows = {key: tuple(map(_region, values[key])) for key in ("regions", "refusals")}
    return ScopeReport(**{**values, **rows})


def _region(values: Mapping[str, Any]) -> RegionReport:
    return RegionReport(**{**values, "ops": tuple(values["ops"])})


def _scope_key(scope: ScopeReport) -> Any:
    """Everything that must agree for two scopes to be shown as one."""
    return (
        _NUMBER.sub("#", scope.name),
        scope.state,
        _without(scope.reason, scope),
        scope.launches_before,
        scope.launches_after,
        tuple(_row_key(row, scope) for row in scope.regions),
        tuple(_row_key(row, scope) for row in scope.refusals),
    )


def _row_key(row: RegionReport, scope: ScopeReport) -> Any:
    """Everything of a row but its scope's name, its times and the numbers in its reason that come from them."""
    name = _without(row.name, scope)
    reason = re.sub(r"\d+(\.\d+)?", "#", _without(row.reason, scope))
    size = (row.bytes_before, row.bytes_after)
    return (name, row.pattern, row.ops, row.shapes, row.decision, row.code, reason, size, row.backend, row.origin)


def _without(text: str, scope: ScopeReport) -> str:
    return text.replace(scope.name, "*") if scope.name else text


def _merge_scopes(scopes: Sequence[ScopeReport]) -> ScopeReport:
    first, name = scopes[0], _joined_name([scope.name for scope in scopes])
    sums = {
        counter: sum(getattr(scope, counter) for scope in scopes)
        for counter in ("calls", "fused_calls", "eager_calls", "recordings", "guard_misses", "fallbacks", "count")
    }
    return replace(
        first,
        name=name,
        reason=first.reason.replace(first.name, name) if first.name else first.reason,
        regions=_merge_rows([(scope, scope.regions) for scope in scopes], name),
        refusals=_merge_rows([(scope, scope.refusals) for scope in scopes], name),
        **sums,
    )


def _merge_rows(rows: Iterable[tuple[ScopeReport, Sequence[RegionReport]]], name: str) -> tuple[RegionReport, ...]:
    groups: dict[Any, list[RegionReport]] = {}
    for scope, regions in rows:
        for row in regions:
            groups.setdefault(_row_key(row, scope), []).append(row)
    return tuple(_merge_row(group, name) for group in groups.values())


def _merge_row(rows: Sequence[RegionReport], name: str) -> RegionReport:
    first = rows[0]
    return replace(
        first,
        scope=name,
        name=first.name.replace(first.scope, name) if first.scope else first.name,
        eager_us=_mean(row.eager_us for row in rows),
        fused_us=_mean(row.fused_us for row in rows),
        count=sum(row.count for row in rows),
    )


def _mean(times: Iterable[float | None]) -> float | None:
    known = [time for time in times if time is not None]
    return fmean(known) if known else None


def _joined_name(names: Sequence[str]) -> str:
    """Names that differ in numbers as one: layers.0, layers.1 and layers.3 are "layers.0..1,3"."""
    columns = list(zip(*(map(int, _NUMBER.findall(name)) for name in names), strict=True))
    ranges = iter([_ranges(sorted(set(column))) for column in columns])
    return _NUMBER.sub(lambda match: next(ranges), names[0])


def _ranges(numbers: Sequence[int]) -> str:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(low) if low == high else f"{low}..{high}" for low, high in runs)
