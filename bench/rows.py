"""What a benchmark says: one row per claim, with everything needed to judge and to repeat it."""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from rich.table import Table

from .measure import Rounds, Spread

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("opfusion", "torch", "triton", "transformers", "numpy")
_LOAD_AT_START = os.getloadavg()
_STYLES = {"met": "green", "missed": "yellow", "invalid": "red"}


@dataclass(frozen=True, slots=True)
class Target:
    """What a value must reach, in the row's unit."""

    bound: Literal["at least", "at most"]
    value: float

    def met(self, value: float) -> bool:
        """Whether a measured value reaches it."""
        return value >= self.value if self.bound == "at least" else value <= self.value


@dataclass(frozen=True, slots=True)
class Row:
    """One claim, measured.

    Attributes:
        benchmark: the name to give to `python -m bench`.
        measured: what was measured.
        value: in `unit`, or None where nothing could be measured; spread: its percentiles, where it has any.
        target: what it must reach.
        status: "met", "missed" or "invalid"; why: for "invalid", each reason as a sentence.
        microseconds: per side, the time of one call.
        facts: what else was found, checks included.
        command: reproduces the row.
        environment: machine, versions, date, threads, load.
    """

    benchmark: str
    measured: str
    value: float | None
    unit: str
    target: Target
    status: Literal["met", "missed", "invalid"]
    why: tuple[str, ...]
    spread: Spread | None
    microseconds: dict[str, Spread]
    facts: dict[str, Any]
    command: str
    environment: dict[str, Any]


def make_row(
    benchmark: str,
    measured: str,
    value: Spread | float | None,
    unit: str,
    target: Target,
    *,
    why: Iterable[str] = (),
    rounds: Rounds | None = None,
    facts: Mapping[str, Any] | None = None,
    command: str = "",
    device: str = "cpu",
) -> Row:
    """A row with its status and provenance; any reason in `why` makes it invalid, and so does a missing value."""
    spread = value if isinstance(value, Spread) else None
    number = value.p50 if isinstance(value, Spread) else value
    reasons = tuple(dict.fromkeys(why))
    if number is not None and not math.isfinite(number):
        reasons, number = (*reasons, f"the measured value is {number}"), None
    if number is None and not reasons:
        reasons = ("nothing was measured",)
    status: Literal["met", "missed", "invalid"]
    status = "invalid" if reasons or number is None else "met" if target.met(number) else "missed"
    return Row(
        benchmark, measured, number, unit, target, status, reasons, spread, rounds.spreads() if rounds else {},
        dict(facts or {}), command or f"python -m bench {benchmark}", environment(device),
    )  # fmt: skip


def environment(device: str) -> dict[str, Any]:
    """Machine, versions, date (UTC), threads and load average (1, 5, 15 minutes; now and when the process began)."""
    return {
        "machine": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "system": platform.platform(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "load_average": os.getloadavg(),
        "load_average_at_start": _LOAD_AT_START,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def write(rows: Iterable[Row], path: Path) -> None:
    """Writes rows as a JSON list."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps([asdict(row) for row in rows], indent=2, default=str) + "\n", encoding="utf-8")


def show(rows: Iterable[Row], console: Console) -> None:
    """Prints rows as a table, and what is wrong with invalid ones."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("measured", "value", "p20 .. p80", "target", "", "reproduce"):
        right = name in ("value", "p20 .. p80", "target")
        table.add_column(name, justify="right" if right else "left", no_wrap=name != "measured")
    kept = list(rows)
    for row in kept:
        spread = f"{_number(row.spread.p20)} .. {_number(row.spread.p80)}" if row.spread else ""
        value = "" if row.value is None else f"{_number(row.value)}{row.unit}"
        target = f"{'>=' if row.target.bound == 'at least' else '<='} {_number(row.target.value)}{row.unit}"
        status = f"[{_STYLES[row.status]}]{row.status}[/]"
        table.add_row(row.measured, value, spread, target, status, row.command)
    console.print(table)
    if _LOAD_AT_START[0] > (os.cpu_count() or 1) / 2:
        load = f"load average {_LOAD_AT_START[0]:.1f} when this began: other processes disturb these numbers"
        console.print(load, style="yellow", highlight=False)
    for row in kept:
        for reason in row.why:
            console.print(f"invalid: {row.measured}: {reason}", style="red", markup=False, highlight=False)


def _number(value: float) -> str:
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
