"""Decisions on disk: which ones may be kept, and which of those found there are believed."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fusion.choices.decision import Decision, Outcome

_Measure = Annotated[float, Field(ge=0, le=1e300, allow_inf_nan=False)]
_Bytes = Annotated[int, Field(ge=0, le=1 << 62)]
_Label = Annotated[str, Field(max_length=4096)]  # a bundle's schedule prints those of all its parts
_Reason = Annotated[str, Field(max_length=4096)]
_PASSING = frozenset(("launch_error", "unproved", "unmeasured"))  # codes of what another process may see otherwise


class _StoredOutcome(BaseModel):
    """What became of one candidate."""

    model_config = ConfigDict(strict=True, extra="forbid")

    candidate: _Label
    code: _Label
    reason: _Reason
    eager_us: _Measure | None
    fused_us: _Measure | None
    error_eager: _Measure | None
    error_fused: _Measure | None


class _Stored(BaseModel):
    """A decision that says something of its kernel on this machine, whatever else is going on there."""

    model_config = ConfigDict(strict=True, extra="forbid")

    fused: bool
    code: Literal["faster", "slower", "inaccurate"]
    reason: _Reason
    eager_us: _Measure | None
    fused_us: _Measure | None
    bytes_before: _Bytes | None
    bytes_after: _Bytes | None
    error_eager: _Measure | None
    error_fused: _Measure | None
    chosen: _Label
    candidates: Annotated[tuple[_StoredOutcome, ...], Field(max_length=64, strict=False)]

    @model_validator(mode="after")
    def _agrees(self) -> _Stored:
        if self.fused != (self.code == "faster"):
            raise ValueError("a kernel is used if, and only if, it is faster")
        texts = [self.reason, self.chosen, *(t for o in self.candidates for t in (o.candidate, o.code, o.reason))]
        if not all(map(str.isprintable, texts)):
            raise ValueError("a reason is one line of text")
        return self


def lasts(decision: Decision) -> bool:
    """Whether a decision is for other processes too: it was measured in quiet, or its kernel proved inaccurate.

    A launch that failed for want of memory, or a rule of this run's settings, says nothing about the next run.
    """
    judged: tuple[Decision | Outcome, ...] = (decision, *decision.candidates)
    if any("noisy" in one.reason or one.code in _PASSING for one in judged):
        return False
    return read(asdict(decision)) is not None


def read(value: Any) -> Decision | None:
    """The decision that a JSON value stands for, or None where it stands for none that was ever kept."""
    try:
        values = _Stored.model_validate(value).model_dump()
    except ValidationError:
        return None
    return Decision(**{**values, "candidates": tuple(Outcome(**one) for one in values["candidates"])})
