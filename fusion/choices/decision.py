"""What was decided about a region, as a value."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided about a region, and on what grounds.

    Attributes:
        fused: whether the kernel is used.
        code: reason code (`fusion.refusal.CODES`).
        reason: the reason as a sentence.
        eager_us, fused_us: median microseconds, or None where not measured.
        bytes_before, bytes_after: bytes moved by the operators one by one, and by the kernel.
        error_eager, error_fused: greatest distance to the double-precision result, or None where not proved.
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
