"""The report as a terminal table: one per group of equal scopes, reasons below it, totals at the end."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fusion.remedies import NOTHING
from fusion.reporting.grouping import grouped
from fusion.reporting.rows import RegionReport, Rows, ScopeReport, Totals

WIDTH = 100
NARROW = 96  # columns below which the shapes, which to_json keeps, leave the table
BLANK = "-"
_MOST_GUARDS = 8  # of one scope that are shown; to_json keeps them all
_MOST_LINES = 2  # of the user's code that one reason names

_DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "float64": "fp64"}


def render(report: Rows, width: int = WIDTH) -> str:
    """The report as plain text, at most `width` columns wide, without colours."""
    written = io.StringIO()
    console = Console(file=written, width=width, force_terminal=False, color_system=None, legacy_windows=False)
    console.print(renderable(report, width))
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def renderable(report: Rows, width: int = WIDTH) -> RenderableType:
    """The report as something a rich Console of `width` columns prints."""
    parts: list[RenderableType] = []
    for scope in grouped(report.scopes):
        parts += [_heading(scope), *_body(scope, width), Text()]
    if not report.scopes:
        parts += [Text("No scope has run yet: call the model once, then ask again."), Text()]
    parts += [*_totals(report.totals), *_environment(report)]
    return Group(*parts)


def microseconds(value: float | None) -> str:
    """A time: "12.3 us", "4.56 ms", "1.20 s"."""
    if value is None:
        return BLANK
    if value < 999.5:
        return f"{value:.1f} us" if value < 99.95 else f"{value:.0f} us"
    return f"{value / 1e3:.2f} ms" if value < 999_500 else f"{value / 1e6:.2f} s"


def size(value: int | None) -> str:
    """A number of bytes: "512 B", "1.5 KiB", "24.0 MiB"."""
    if value is None:
        return BLANK
    scaled = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if scaled < 1023.95 or unit == "GiB":
            break
        scaled /= 1024
    return f"{scaled:.0f} B" if unit == "B" else f"{scaled:.1f} {unit}"


def speedup(before: float | None, after: float | None) -> str:
    """A ratio of two times: "1.84x"."""
    return f"{before / after:.2f}x" if before and after else BLANK


def _heading(scope: ScopeReport) -> Text:
    heading = Text(scope.name or "(unnamed scope)", style="bold")
    if scope.count > 1:
        heading.append(f"  ({scope.count} scopes)", style="not bold")
    heading.append(f"  {scope.state}", style="green" if scope.state == "fused" else "yellow")
    return heading


def _body(scope: ScopeReport, width: int) -> Iterator[RenderableType]:
    if scope.reason:
        yield from map(_indented, scope.reason.splitlines())
    yield _indented(_counters(scope), "dim")
    rows = [*scope.regions, *filter(_is_measured, scope.refusals)]
    if rows:
        yield _table(rows, scope.count, width)
        yield from _reasons(rows)
        yield from _candidates(rows)
    yield from _left_alone([row for row in scope.refusals if not _is_measured(row)], scope.count)
    yield from _guards(scope)


def _guards(scope: ScopeReport) -> Iterator[RenderableType]:
    """The guards that did not hold, the most frequent first."""
    if not scope.guards:
        return
    yield _indented("Guards that did not hold:", "dim")
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("guard", no_wrap=True)
    for name in ("where", "wanted", "got"):
        table.add_column(name, max_width=40 if name == "where" else 24, overflow="fold")
    table.add_column("times", justify="right", no_wrap=True)
    rows = sorted(scope.guards, key=lambda row: -row.times)
    for row in rows[:_MOST_GUARDS]:
        where = f"{row.where or BLANK}{f' ({row.origin})' if row.origin else ''}"
        table.add_row(row.guard, Text(where), Text(row.wanted or BLANK), Text(row.got or BLANK), str(row.times))
    yield Padding(table, (0, 0, 0, 2))
    more = sum(row.times for row in rows[_MOST_GUARDS:]) + scope.other_guards
    if more:
        yield _indented(f"Others: {more} times.", "dim")


def _is_measured(row: RegionReport) -> bool:
    """Whether a row has numbers to show; the others are counted by their reason, not given a line each."""
    return any(value is not None for value in (row.eager_us, row.fused_us, row.bytes_before, row.bytes_after))


def _counters(scope: ScopeReport) -> str:
    facts = [
        f"{scope.calls} calls: {scope.fused_calls} fused, {scope.eager_calls} eager",
        f"{_plural(scope.recordings, 'recording')}",
    ]
    if scope.guard_misses:
        facts.append(_plural(scope.guard_misses, "guard miss", "guard misses"))
    if scope.fallbacks:
        facts.append(_plural(scope.fallbacks, "fallback"))
    if scope.launches_before:
        facts.append(f"{scope.launches_before} -> {scope.launches_after} launches per call")
    return "; ".join(facts)


def _table(rows: Sequence[RegionReport], scopes: int, width: int) -> RenderableType:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, show_edge=False)
    table.add_column("#", justify="right", no_wrap=True)
    table.add_column("region", min_width=16, max_width=24, overflow="fold")
    if width >= NARROW:
        table.add_column("shapes", min_width=12, max_width=26, overflow="fold")
    table.add_column("decision", no_wrap=True)
    for name in ("eager", "fused", "speedup", "bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, row in enumerate(rows, 1):
        table.add_row(
            str(number),
            Text(_region(row, scopes)),
            *([Text(_shapes(row.shapes))] if width >= NARROW else []),
            Text(row.decision, style="green" if row.decision == "fused" else "yellow"),
            microseconds(row.eager_us),
            microseconds(row.fused_us),
            speedup(row.eager_us, row.fused_us),
            _bytes(row),
        )
    return Padding(table, (0, 0, 0, 2))


def _region(row: RegionReport, scopes: int) -> str:
    what = row.pattern or " ".join(_runs(row.ops)) or row.name or BLANK
    return what if row.count == scopes else f"{what} (x{row.count})"


def _runs(ops: Iterable[str]) -> Iterator[str]:
    """mul, mul, add -> "mul*2", "add"."""
    pending: list[str] = []
    for op in (*ops, ""):
        if pending and op != pending[0]:
            yield pending[0] if len(pending) == 1 else f"{pending[0]}*{len(pending)}"
            pending = []
        pending.append(op)


def _shapes(text: str) -> str:
    """Shapes without blanks inside brackets, so that lines break between tensors."""
    depth, out = 0, ""
    for letter in text or BLANK:
        depth += (letter in "[(") - (letter in "])")
        out += "" if letter == " " and depth > 0 else letter
    for long, short in _DTYPES.items():
        out = out.replace(long, short)
    return out


def _bytes(row: RegionReport) -> str:
    if row.bytes_before is None and row.bytes_after is None:
        return BLANK
    text = f"{size(row.bytes_before)} -> {size(row.bytes_after)}"
    for unit in ("K", "M", "G"):
        text = text.replace(f" {unit}iB", unit)
    return text.replace(" B", "B")


def _reasons(rows: Sequence[RegionReport]) -> Iterator[RenderableType]:
    """Each reason once, with the numbers of the rows it holds for, their lines, and what to do about it."""
    reasons: dict[tuple[str, str, str], list[int]] = {}
    for number, row in enumerate(rows, 1):
        reasons.setdefault((row.code, row.reason, row.remedy), []).append(number)
    for (code, reason, remedy), numbers in reasons.items():
        text = f"{', '.join(map(str, numbers))}  {code}" + (f": {reason}" if reason else "")
        refused = [rows[n - 1] for n in numbers if rows[n - 1].decision == "refused"]
        yield _indented("; ".join(filter(None, (text, _where(refused), remedy))))


def _candidates(rows: Sequence[RegionReport]) -> Iterator[RenderableType]:
    """Of the rows that several kernels competed for, each kernel with its outcome."""
    for number, row in enumerate(rows, 1):
        outcomes = [f"{o.candidate} {o.code} {microseconds(o.fused_us)}" for o in row.candidates]
        if outcomes:
            yield _indented(f"{number}  candidates: {', '.join(outcomes)}", "dim")


def _left_alone(rows: Sequence[RegionReport], scopes: int) -> Iterator[RenderableType]:
    """Operators that never were a candidate worth a measurement: how many of one scope, why, and where.

    What to do about it is said where there is something to do.
    """
    reasons: dict[str, list[RegionReport]] = {}
    for row in rows:
        reason = f"{row.code}: {row.reason}" if row.reason else f"{row.code}: {' '.join(_runs(row.ops)) or row.name}"
        reasons.setdefault(reason, []).append(row)
    if reasons:
        yield _indented("Left to eager:", "dim")
    for reason, found in sorted(reasons.items(), key=lambda item: -_count(item[1])):
        yield _indented(f"{-(-_count(found) // scopes):>3}x {reason}", "dim")
        remedy = "" if found[0].remedy.startswith(NOTHING) else found[0].remedy
        more = "; ".join(filter(None, (_where(found), remedy)))
        if more:
            yield _indented(f"     {more}", "dim")


def _count(rows: Sequence[RegionReport]) -> int:
    return sum(row.count for row in rows)


def _where(rows: Sequence[RegionReport]) -> str:
    """The user's lines of some rows, the first few; "" where none is known."""
    lines = list(dict.fromkeys(row.origin for row in rows if row.origin))
    if not lines:
        return ""
    return f"at {', '.join(lines[:_MOST_LINES])}{', ...' if len(lines) > _MOST_LINES else ''}"


def _totals(totals: Totals) -> Iterator[RenderableType]:
    times = ""
    if totals.eager_us is not None and totals.fused_us is not None:
        ratio = speedup(totals.eager_us, totals.fused_us)
        times = f"; fused regions {microseconds(totals.eager_us)} -> {microseconds(totals.fused_us)} ({ratio})"
    yield Text("Totals", style="bold")
    launches = f"{totals.launches_before} -> {totals.launches_after} launches per pass"
    yield _indented(f"{_plural(totals.scopes, 'scope')}; {launches}{times}")
    yield _indented(
        f"recording {totals.recording_seconds:.2f} s; compiling {totals.compile_seconds:.2f} s; "
        f"measuring {totals.profile_seconds:.2f} s; cache {_plural(totals.cache_hits, 'hit')}, "
        f"{_plural(totals.cache_misses, 'miss', 'misses')}; {_plural(totals.fallbacks, 'fallback')}; "
        f"{_plural(totals.guard_misses, 'guard miss', 'guard misses')}"
    )


def _environment(report: Rows) -> Iterator[RenderableType]:
    if report.environment:
        yield _indented("; ".join(f"{name} {value}" for name, value in report.environment.items()), "dim")


def _plural(count: int, one: str, many: str = "") -> str:
    return f"{count} {one if count == 1 else many or one + 's'}"


def _indented(text: str, style: str = "") -> RenderableType:
    return Padding(Text(text, style=style), (0, 0, 0, 2))
