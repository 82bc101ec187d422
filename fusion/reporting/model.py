"""The report as an immutable value: text for people, JSON that keeps every row."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fusion.choices.decision import Outcome
from fusion.reporting.grouping import grouped
from fusion.reporting.rows import GuardReport, RegionReport, ScopeReport, Totals
from fusion.reporting.text import render


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
        """Reads what `to_json` wrote, also where it was written before reports told of guards.

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
        return replace(self, scopes=grouped(self.scopes))

    def __str__(self) -> str:
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
    guards = tuple(GuardReport(**row) for row in values.get("guards", ()))
    return ScopeReport(**{**values, **rows, "guards": guards})


def _region(values: Mapping[str, Any]) -> RegionReport:
    candidates = tuple(Outcome(**outcome) for outcome in values.get("candidates", ()))
    return RegionReport(**{**values, "ops": tuple(values["ops"]), "candidates": candidates})
