"""The report: grouping of equal layers, JSON round trip, and a rendering that never breaks."""

from __future__ import annotations

import dataclasses
import io
import itertools

import pytest
from rich.console import Console

from fusion.reporting.model import FusionReport
from fusion.reporting.rows import RegionReport, ScopeReport, Totals
from fusion.reporting.text import BLANK, microseconds, renderable, size, speedup


def region(scope: str, **changes: object) -> RegionReport:
    row = RegionReport(
        scope=scope,
        name=f"{scope}.region0",
        pattern="swiglu",
        ops=("silu", "mul"),
        shapes="bfloat16[1, s0, 3072], bfloat16[1, s0, 3072]",
        decision="fused",
        code="measured",
        reason="the kernel takes 40% of eager's time",
        eager_us=100.0,
        fused_us=40.0,
        bytes_before=4096,
        bytes_after=2048,
        backend="cpp",
        origin="modeling.py:12",
    )
    return dataclasses.replace(row, **changes)  # type: ignore[arg-type]


def scope(name: str, *regions: RegionReport, **changes: object) -> ScopeReport:
    value = ScopeReport(name, "fused", "", 10, 8, 2, 1, 1, 0, regions, (), 41, 17)
    return dataclasses.replace(value, **changes)  # type: ignore[arg-type]


def layers(count: int) -> FusionReport:
    names = [f"model.layers.{i}" for i in range(count)]
    scopes = tuple(scope(name, region(name, eager_us=100.0 + i)) for i, name in enumerate(names))
    return FusionReport(scopes, Totals(scopes=count, launches_before=41 * count, launches_after=17 * count))


def test_equal_layers_become_one_row() -> None:
    (merged,) = layers(28).grouped().scopes
    assert (merged.name, merged.count, merged.calls, merged.guard_misses) == ("model.layers.0..27", 28, 280, 28)
    (row,) = merged.regions
    assert (row.scope, row.name, row.count) == ("model.layers.0..27", "model.layers.0..27.region0", 28)
    assert row.eager_us == pytest.approx(100 + 13.5)  # the mean of 100 .. 127
    assert merged.launches_before == 41


@pytest.mark.parametrize(
    "change",
    [
        {"pattern": None},
        {"ops": ("gelu", "mul")},
        {"shapes": "float32[2]"},
        {"decision": "refused"},
        {"code": "slower"},
        {"reason": "another reason"},
        {"bytes_after": 1},
        {"backend": "triton"},
        {"origin": "modeling.py:13"},
    ],
)
def test_layers_that_differ_stay_apart(change: dict[str, object]) -> None:
    report = layers(3)
    odd = scope("model.layers.1", region("model.layers.1", **change))
    report = dataclasses.replace(report, scopes=(report.scopes[0], odd, report.scopes[2]))
    assert [s.name for s in report.grouped().scopes] == ["model.layers.0,2", "model.layers.1"]


def test_grouping_leaves_other_numbers_and_names_alone() -> None:
    names = ["h1.block.0", "h1.block.1", "h2.block.0", "lm_head"]
    report = FusionReport(tuple(scope(name) for name in names), Totals())
    assert [s.name for s in report.grouped().scopes] == ["h1.block.0..1", "h2.block.0", "lm_head"]
    nested = FusionReport(tuple(scope(f"a.{i}.b.{j}") for i in (0, 1) for j in (0, 1)), Totals())
    assert [(s.name, s.count) for s in nested.grouped().scopes] == [("a.0..1.b.0..1", 4)]


def test_grouping_twice_changes_nothing() -> None:
    once = layers(5).grouped()
    assert once.grouped() == once


def test_equal_rows_of_one_scope_are_counted() -> None:
    report = FusionReport((scope("f", region("f"), region("f", eager_us=None)),), Totals())
    (row,) = report.grouped().scopes[0].regions
    assert (row.count, row.eager_us) == (2, 100.0)


def test_json_round_trip() -> None:
    report = dataclasses.replace(layers(2), environment={"torch": "2"}, config={"min_nodes": 2})
    assert FusionReport.from_json(report.to_json()) == report
    assert report.regions == tuple(s.regions[0] for s in report.scopes)


def test_text_says_what_was_decided_and_why() -> None:
    slow = region(
        "model.layers.0",
        pattern=None,
        ops=("add", "mul", "mul"),
        decision="refused",
        code="slower",
        reason="the kernel takes 95% of eager's time",
        name="other",
    )
    report = dataclasses.replace(layers(1), environment={"torch": "2.13.0"})
    report = dataclasses.replace(report, scopes=(dataclasses.replace(report.scopes[0], refusals=(slow,)),))
    text = str(report)
    for words in (
        "model.layers.0",
        "swiglu",
        "2.50x",
        "4.0K -> 2.0K",
        "bf16[1,s0,3072]",
        "1  measured: the kernel takes 40% of eager's time",
        "2  slower: the kernel takes 95% of eager's time",
        "add mul*2",
        "refused",
        "41 -> 17 launches",
        "torch 2.13.0",
    ):
        assert words in text, f"{words!r} is missing from\n{text}"


def test_refusals_without_numbers_are_counted_by_reason() -> None:
    library = {"decision": "refused", "code": "not_fusable", "reason": "aten.linear.default is a library call"}
    numbers = dict.fromkeys(("eager_us", "fused_us", "bytes_before", "bytes_after", "pattern"))
    names = ("layers.0", "layers.1")
    rows = {name: [region(name, name=f"r{i}", **library, **numbers) for i in range(3)] for name in names}
    scopes = [scope(name, region(name), refusals=tuple(rows[name])) for name in names]
    report = FusionReport(tuple(scopes), Totals())
    lines = str(report).splitlines()
    assert "    3x not_fusable: aten.linear.default is a library call" in lines
    assert sum("linear" in line for line in lines) == 1
    assert len(report.regions) == 8, "JSON keeps every row"


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_lines_fit_and_no_column_is_lost(width: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    long = region("f", pattern=None, ops=("unsqueeze",) * 3 + ("transpose", "softmax"), eager_us=98765.4, name="long")
    console.print(renderable(FusionReport((scope("f", long),), Totals()), width))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    if width >= 80:
        assert any(all(word in line for word in ("98.77 ms", "40.0 us", "4.0K -> 2.0K")) for line in lines), lines


def test_nothing_known_still_prints() -> None:
    empty: dict[str, object] = dict.fromkeys(("eager_us", "fused_us", "bytes_before", "bytes_after", "pattern"))
    for sizes in itertools.product((None, 7), repeat=2):
        row = region(
            "", ops=(), shapes="", reason="", name="", **{**empty, "bytes_before": sizes[0], "eager_us": sizes[1]}
        )
        assert BLANK in str(FusionReport((scope("", row),), Totals()))
    assert "No scope has run yet" in str(FusionReport((), Totals()))


def test_text_is_not_read_as_markup() -> None:
    row = region("f", shapes="[bold]x[/nothing]", reason="see [/red] [link=x]")
    assert "see [/red] [link=x]" in str(FusionReport((scope("f[0]", row, reason="[/]"),), Totals()))


def test_units() -> None:
    times = [microseconds(t) for t in (None, 0.04, 99.94, 99.96, 999.4, 999.6, 12345.6, 2.5e6)]
    assert times == [BLANK, "0.0 us", "99.9 us", "100 us", "999 us", "1.00 ms", "12.35 ms", "2.50 s"]
    assert [size(n) for n in (None, 0, 1023, 1024, 1536 * 1024, 5 * 2**40)] == [
        BLANK,
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 MiB",
        "5120.0 GiB",
    ]
    assert [speedup(*pair) for pair in ((3.0, 2.0), (None, 2.0), (3.0, None), (3.0, 0.0))] == ["1.50x", *[BLANK] * 3]
