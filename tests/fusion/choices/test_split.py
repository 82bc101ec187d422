"""Regions that measurement refuses: cut in two, the parts decided on, remembered, and shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_examples import needs_compiler
from partitions import ROWS, WIDTH, chain, divided, recorded, tensor

import fusion
from fusion.choices import select
from fusion.choices.decision import Decision
from fusion.choices.heuristics import FusionHeuristics
from fusion.choices.split import splits
from fusion.jit.stages import Stages
from fusion.partition.node_facts import Facts
from fusion.partition.regions import make_region
from fusion.refusal import CODES


def norm_and_gate(x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x * 0.5, -1) * torch.sigmoid(gate) + x


@pytest.fixture
def slow_softmax(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Kernels that hold a softmax and anything else count as slow, others as fast; gives what was measured."""
    measured: list[tuple[str, ...]] = []

    def judge(self: Any, graph: Any, *args: Any, **kwargs: Any) -> Decision:
        if kwargs.get("measured") is not None:
            return kwargs["measured"]
        measured.append(graph.ops)
        if "softmax" in graph.ops and len(graph.ops) > 1:
            return Decision(False, "slower", "a test says so")
        return Decision(True, "faster", "a test says so")

    monkeypatch.setattr(FusionHeuristics, "judge", judge)
    return measured


def run(store: Path) -> tuple[Any, torch.Tensor, torch.Tensor]:
    x, gate = tensor(ROWS, WIDTH), tensor(ROWS, WIDTH).sigmoid()
    with fusion.record(x=x, gate=gate, config={"cache_dir": store}) as recording:
        norm_and_gate(x, gate)
    compiled = recording.compile()
    return recording, compiled(x=x, gate=gate), norm_and_gate(x, gate)


@needs_compiler
def test_the_parts_that_win_are_kept(tmp_path: Path, slow_softmax: list[tuple[str, ...]]) -> None:
    recording, result, eager = run(tmp_path)
    torch.testing.assert_close(result, eager, rtol=1e-6, atol=1e-7)  # each part is within 2 ulp of float32
    (scope,) = recording.report().scopes
    rows = [(row.ops, row.decision, row.code) for row in scope.regions]
    assert rows[0][1:] == ("refused", "slower")
    assert "cut in two" in scope.regions[0].reason
    fused = [row for row in rows if row[1] == "fused"]
    assert fused, "a part without the softmax is used"
    assert all("softmax" not in row[0] or len(row[0]) == 1 for row in fused)
    assert scope.fused_calls and scope.fallbacks == 0
    assert all(code in CODES for _, _, code in rows)


@needs_compiler
def test_what_is_computed_of_products_that_lose_is_one_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(self: Any, graph: Any, *args: Any, **kwargs: Any) -> Decision:
        loses = any("linear" in op for op in graph.ops)
        return Decision(not loses, "slower" if loses else "faster", "a test says so")

    monkeypatch.setattr(FusionHeuristics, "judge", judge)
    x, gate, up = tensor(ROWS, WIDTH), tensor(WIDTH, WIDTH), tensor(WIDTH, WIDTH)
    settings = {"cache_dir": tmp_path, "matrix_products": "auto"}
    with fusion.record(x=x, gate=gate, up=up, config=settings) as recording:
        torch.nn.functional.silu(torch.nn.functional.linear(x, gate)) * torch.nn.functional.linear(x, up)
    compiled = recording.compile()
    eager = torch.nn.functional.silu(torch.nn.functional.linear(x, gate)) * torch.nn.functional.linear(x, up)
    # The products are the library's own; the kernel of the rest is within some ulp of float32 (1.2e-7).
    torch.testing.assert_close(compiled(x=x, gate=gate, up=up), eager, rtol=1e-6, atol=1e-6)
    regions = recording.report().scopes[0].regions
    assert len(regions[0].ops) == 4 and regions[0].code == "slower", "products and what is computed of them"
    assert [row.ops for row in regions if row.decision == "fused"] == [("silu", "mul")]


@needs_compiler
def test_decisions_on_parts_are_remembered(tmp_path: Path, slow_softmax: list[tuple[str, ...]]) -> None:
    first, _, _ = run(tmp_path)
    asked = len(slow_softmax)
    again, _, _ = run(tmp_path)
    assert asked > 1
    assert len(slow_softmax) == asked, "nothing is measured twice"
    one, other = ([(r.ops, r.decision, r.code) for r in x.report().scopes[0].regions] for x in (first, again))
    assert one == other


@needs_compiler
def test_attempts_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, ...]] = []

    def refuse(self: Any, graph: Any, *args: Any, **kwargs: Any) -> Decision:
        measured.append(graph.ops)
        return Decision(False, "slower", "a test says so")

    monkeypatch.setattr(FusionHeuristics, "judge", refuse)
    x = tensor(ROWS, WIDTH)
    with fusion.record(x=x, config={"cache_dir": tmp_path}) as recording:
        y = x
        for k in range(12):
            y = torch.tanh(y) * (k + 2)
        recording.output(y=y)
    recording.compile()(x=x)
    assert len(measured) <= 2 ** (select._SPLIT_ROUNDS + 1) - 1
    assert {row.decision for row in recording.report().scopes[0].regions} == {"refused"}


# ---- where a region is cut


def test_a_merged_region_falls_apart_first() -> None:
    graph, parts = divided(lambda x: ((x[0] * 2).relu(), (x[1] + 1).tanh()), tensor(2, ROWS, WIDTH))
    (region,) = parts.regions
    first, second = next(splits(Facts(graph), region, (), {}))
    assert (first.nodes, second.nodes) == region.parts


def test_the_cut_is_where_the_least_bytes_cross() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        scale = torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6)
        return (x + 1) * scale

    graph, parts = divided(fn, tensor(ROWS, WIDTH))
    (region,) = parts.regions
    first, second = next(splits(Facts(graph), region, (), {"s0": ROWS, "s1": WIDTH}))
    crossing = set(first.outputs) & set(second.inputs)
    assert [graph.spec[name].shape[-1] for name in crossing] == [1], "one value per row"


def test_every_cut_computes_the_same_and_runs_in_order() -> None:
    def fn(x: torch.Tensor, w: torch.Tensor) -> Any:
        y = (x + w).transpose(0, 1)
        total = y.float().exp()
        return torch.softmax(total, -1) * y, total

    graph, parts = divided(fn, tensor(ROWS, WIDTH), tensor(ROWS, WIDTH))
    (region,) = parts.regions
    cuts = list(splits(Facts(graph), region, (), {}))
    assert len(cuts) == len(region.owned) - 1
    for first, second in cuts:
        assert set(first.owned) | set(second.owned) == set(region.owned)
        assert not set(first.owned) & set(second.owned)
        assert not set(second.outputs) & set(first.inputs)
        assert set(first.outputs) | set(second.outputs) >= set(region.outputs)
        assert set(second.inputs) <= set(region.inputs) | set(first.outputs)


def test_one_operator_has_no_split() -> None:
    graph = chain(1)
    facts = Facts(graph)
    assert not list(splits(facts, make_region(facts, {0}, (), ()), (), {}))


@needs_compiler
@pytest.mark.parametrize("slow", [False, True])
@pytest.mark.parametrize("most", [None, 1])
def test_every_call_is_fused_or_has_its_reason(
    tmp_path: Path, request: pytest.FixtureRequest, slow: bool, most: int | None
) -> None:
    if slow:
        request.getfixturevalue("slow_softmax")

    def fn(x: torch.Tensor, w: torch.Tensor) -> Any:
        y = torch.nn.functional.linear(torch.softmax(x * 2, -1), w)
        return torch.softmax(y.transpose(0, 1) + 1, -1), torch.sort(y).values * 3, y.sin()

    recording = recorded(fn, tensor(ROWS, WIDTH), tensor(WIDTH, WIDTH))
    stages = Stages({"cache_dir": tmp_path, "profile": slow, "max_fusions": most})
    compiled = stages.compile(stages.template(recording, ("x", "w")), recording.run.real, recording.values)
    fused = [i for c in compiled.candidates if c.kernel is not None for i in c.region.nodes]
    refused = [i for i, _ in compiled.refusals]
    assert fused, "a kernel is used"
    assert recording.graph is not None
    assert sorted({*fused, *refused}) == list(range(len(recording.graph.nodes)))
    assert not set(fused) & set(refused)
    reasons = {refusal.code for _, refusal in compiled.refusals}
    assert reasons <= set(CODES)
    assert "not_fusable" in reasons
    assert ("fuel" in reasons) == (most == 1)
