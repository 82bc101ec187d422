"""What was decided about a region, and about each kernel that competed for it, as values."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one candidate for a region.

    Attributes:
        candidate: its label: the backend's name, and the schedule's where the backend has several for the kernel.
        code, reason: as in `Decision`.
        eager_us, fused_us: median microseconds of eager, measured beside it, and of the candidate.
        error_eager, error_fused: greatest distance to the double-precision result; None where not proved or infinite.
    """

    candidate: str
    code: str
    reason: str
    eager_us: float | None = None
    fused_us: float | None = None
    error_eager: float | None = None
    error_fused: float | None = None


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about a region, and on what grounds.

    Attributes:
        fused: whether a kernel is used.
        code: reason code (`fusion.refusal.CODES`).
        reason: the reason as a sentence.
        eager_us, fused_us: median microseconds, or None where not measured.
        bytes_before, bytes_after: bytes moved by the operators one by one, and by the kernel.
        error_eager, error_fused: greatest distance to the double-precision result, or None where not proved.
        chosen: label of the candidate whose kernel is used, or "".
        candidates: what became of every candidate, the one chosen included; () where it never came to candidates.
    """

    fused: bool
    code: str
    reason: str
    eager_us: float | None = None
    fused_us: float | None = None
    bytes_before: int | None = None
    bytes_after: int | None = None
    error_eager: float | None = None
    error_fused: float | None = None
    chosen: str = ""
    candidates: tuple[Outcome, ...] = ()


def best(judged: Iterable[tuple[str, Decision]]) -> Decision:
    """The decision on a region, given those on its candidates, each as if it were the only one.

    Of the candidates that may be used it is the one that takes the least share of eager's time, and the first of those
    that are equal or not measured. Where none may be used, the first says why.

    Args:
        judged: at least one label with its decision; "" is the label of a decision that is on no candidate.
    """
    pairs = list(judged)
    accepted = [pair for pair in pairs if pair[1].fused]
    label, decision = min(accepted, key=lambda pair: _share(pair[1])) if accepted else pairs[0]
    outcomes = tuple(_outcome(name, one) for name, one in pairs if name)
    return replace(decision, chosen=label if decision.fused else "", candidates=outcomes)


def _share(decision: Decision) -> float:
    """Of eager's time."""
    if decision.fused_us is None or not decision.eager_us:
        return math.inf
    return decision.fused_us / decision.eager_us


def _outcome(label: str, decision: Decision) -> Outcome:
    errors = (_finite(decision.error_eager), _finite(decision.error_fused))
    return Outcome(label, decision.code, decision.reason, decision.eager_us, decision.fused_us, *errors)


def _finite(error: float | None) -> float | None:
    return error if error is not None and math.isfinite(error) else None
