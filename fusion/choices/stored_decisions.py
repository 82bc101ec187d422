"""Decisions on disk: which ones may be kept, and which of those found there are believed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fusion.choices.decision import Decision

_Measure = Annotated[float, Field(ge=0, le=1e300, allow_inf_nan=False)]
_Bytes = Annotated[int, Field(ge=0, le=1 << 62)]


class _Stored(BaseModel):
    """A decision that says something of its kernel on this machine, whatever else is going on there."""

    model_config = ConfigDict(strict=True, extra="forbid")

    fused: bool
    code: Literal["faster", "slower", "inaccurate"]
    reason: Annotated[str, Field(max_length=4096)]
    eager_us: _Measure | None
    fused_us: _Measure | None
    bytes_before: _Bytes | None
    bytes_after: _Bytes | None
    error_eager: _Measure | None
    error_fused: _Measure | None

    @model_validator(mode="after")
    def _agrees(self) -> _Stored:
        if self.fused != (self.code == "faster"):
            raise ValueError("a kernel is used if, and only if, it is faster")
        if not self.reason.isprintable():
            raise ValueError("a reason is one line of text")
        return self


def lasts(decision: Decision) -> bool:
    """Whether a decision is for other processes too: it was measured in quiet, or its kernel proved inaccurate.

    A launch that failed for want of memory, or a rule of this run's settings, says nothing about the next run.
    """
    return "noisy" not in decision.reason and read(_as_json(decision)) is not None


def read(value: Any) -> Decision | None:
    """The decision that a JSON value stands for, or None where it stands for none that was ever kept."""
    try:
        return Decision(**_Stored.model_validate(value).model_dump())
    except ValidationError:
        return None


def _as_json(decision: Decision) -> dict[str, Any]:
    return {name: getattr(decision, name) for name in _Stored.model_fields}
