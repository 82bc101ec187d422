"""Rows of a report that differ only in names and counters, merged: twenty-eight equal layers are one scope."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

from fusion.reporting.rows import GuardReport, RegionReport, ScopeReport

_COUNTERS = (
    "calls", "fused_calls", "eager_calls", "recordings", "guard_misses", "fallbacks", "count", "other_guards",
)  # fmt: skip
_NUMBER = re.compile(r"(?<![A-Za-z0-9_])\d+(?![A-Za-z0-9_])")


def grouped(scopes: Iterable[ScopeReport]) -> tuple[ScopeReport, ...]:
    """Scopes that differ only in their name and their counters as one each; `FusionReport.grouped` says how."""
    groups: dict[Any, list[ScopeReport]] = {}
    for scope in scopes:
        groups.setdefault(_scope_key(scope), []).append(scope)
    return tuple(map(_merge_scopes, groups.values()))


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
    sums = {counter: sum(getattr(scope, counter) for scope in scopes) for counter in _COUNTERS}
    return replace(
        first,
        name=name,
        reason=first.reason.replace(first.name, name) if first.name else first.reason,
        regions=_merge_rows([(scope, scope.regions) for scope in scopes], name),
        refusals=_merge_rows([(scope, scope.refusals) for scope in scopes], name),
        guards=_merge_guards(guard for scope in scopes for guard in scope.guards),
        **sums,
    )


def _merge_rows(rows: Iterable[tuple[ScopeReport, Sequence[RegionReport]]], name: str) -> tuple[RegionReport, ...]:
    groups: dict[Any, list[RegionReport]] = {}
    for scope, regions in rows:
        for row in regions:
            groups.setdefault(_row_key(row, scope), []).append(row)
    return tuple(_merge_row(group, name) for group in groups.values())


def _merge_guards(rows: Iterable[GuardReport]) -> tuple[GuardReport, ...]:
    """Each guard once: a scope's name is no part of where its value comes from."""
    merged: dict[Any, GuardReport] = {}
    for row in rows:
        key = (row.guard, row.where, row.wanted, row.origin)
        merged[key] = replace(row, times=row.times + (merged[key].times if key in merged else 0))
    return tuple(merged.values())


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
