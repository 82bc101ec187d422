"""Counts of what became of a scope's calls."""

from __future__ import annotations

from dataclasses import dataclass, field

from fusion.jit.guard_misses import GuardMisses
from fusion.refusal import Refusal


@dataclass
class Statistics:
    """Counts of one scope since it was enabled."""

    planned: list[int] = field(default_factory=lambda: [0])  # a cell that the entry function counts in
    eager: int = 0
    recordings: int = 0
    guard_misses: int = 0
    fallbacks: int = 0
    recording_seconds: float = 0.0
    last_reason: Refusal | None = None
    passing: dict[str, Refusal] = field(default_factory=dict)  # why single calls ran eagerly, by code: the latest
    last_failure: Refusal | None = None
    guards: GuardMisses = field(default_factory=GuardMisses)  # those that did not hold
