"""Small independent regions over different indices: one kernel, and when not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_examples import needs_compiler
from partitions import ROWS, WIDTH, Views, divided, names, recorded, taken_apart, tensor

import fusion
from fusion.choices.decision import Decision
from fusion.choices.heuristics import FusionHeuristics
from fusion.kernels.bundle import parts_of
from fusion.partition.partitioner import partition
from fusion.patterns.match import match


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    half = x.shape[-1] // 2
    return x * cos + torch.cat((-x[..., half:], x[..., :half]), -1) * sin


def rotations(q: torch.Tensor, k: torch.Tensor, angles: torch.Tensor) -> Any:
    """The rotary embedding of grouped-query attention: more heads of queries than of keys."""
    cos, sin = angles.cos().unsqueeze(1), angles.sin().unsqueeze(1)
    return rotated(q, cos, sin), rotated(k, cos, sin)


def heads(count: int, batch: int = 2, length: int = 5) -> torch.Tensor:
    return tensor(batch, count, length, 8)


def test_rotations_of_unequal_heads_are_one_kernel_with_a_name() -> None:
    _, parts = divided(lambda q, k, cos, sin: (rotated(q, cos, sin), rotated(k, cos, sin)), heads(4), heads(2),
                       tensor(2, 1, 5, 8), tensor(2, 1, 5, 8))  # fmt: skip
    (region,) = parts.regions
    assert match(region.subgraph) == "RoPE x2"
    assert region.subgraph.bundle == (1, 1)
    assert [r.subgraph.digest for r in region.members] == [part.digest for part in region.subgraph.parts]


def test_a_bundle_is_named_after_the_parts_that_have_a_name() -> None:
    def fn(x: torch.Tensor, gate: torch.Tensor, y: torch.Tensor) -> Any:
        return torch.nn.functional.silu(gate) * x, (y * 2).sigmoid()

    _, parts = divided(fn, tensor(ROWS, WIDTH), tensor(ROWS, WIDTH), tensor(3 * ROWS, WIDTH))
    assert [match(r.subgraph) for r in parts.regions] == ["SwiGLU and 1 other"]


def test_a_region_that_needs_the_other_through_a_library_call_stays_apart() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> Any:
        return torch.nn.functional.linear((x * 2).relu(), w).tanh() + 1, (y * 3).relu()

    graph, parts = divided(fn, tensor(ROWS, WIDTH), tensor(3, WIDTH), tensor(2 * WIDTH, WIDTH))
    assert sorted(names(graph, parts)) == ["mul relu", "tanh add | mul relu"]


def test_bundles_that_would_wait_for_each_other_are_not_made() -> None:
    def fn(a: torch.Tensor, b: torch.Tensor, w: torch.Tensor) -> Any:
        one, two = (a * 2).relu(), (b * 3).relu()  # over different indices, as are all four
        behind_one = torch.nn.functional.linear(one, w)[:, :3].tanh()
        behind_two = torch.nn.functional.linear(two, w)[:, :5].sigmoid()
        return behind_one + 1, behind_two + 1

    graph, parts = divided(fn, tensor(ROWS, WIDTH), tensor(2 * ROWS, WIDTH), tensor(WIDTH, WIDTH))
    assert names(graph, parts) == ["mul relu | mul relu", "tanh add | sigmoid add"]


def test_what_both_compute_for_themselves_binds_neither() -> None:
    def fn(x: torch.Tensor) -> Any:
        wide = x.float()
        return wide[:, :4].exp() + 1, wide[:, :8].softmax(-1)

    graph, parts = divided(fn, tensor(ROWS, WIDTH, dtype=torch.bfloat16))
    assert names(graph, parts) == ["to exp add | to softmax"]


def test_an_effect_between_them_keeps_regions_apart() -> None:
    def fn(x: torch.Tensor, store: Views) -> Any:
        seen = store.update(x)
        early = (seen * 2).relu()
        later = store.update(early)
        return early, (later[:, :4] * 3).tanh()

    graph, parts = divided(fn, tensor(ROWS, WIDTH), Views())
    assert names(graph, parts) == ["mul relu", "mul tanh"]


def test_regions_whose_work_outweighs_a_launch_stay_apart() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> Any:
        return (x * 2).relu(), (y + 1).tanh()

    graph, parts = divided(fn, torch.randn(400, 400), torch.randn(400, 401))
    assert names(graph, parts) == ["mul relu", "add tanh"]


def test_a_kernel_of_many_parts_keeps_within_its_footprint() -> None:
    def fn(x: torch.Tensor) -> Any:
        return [(x[:, : k + 2] * 2).relu() for k in range(40)]

    _, parts = divided(fn, tensor(ROWS, 50))
    assert 1 < len(parts.regions) < len(taken_apart(parts))
    assert all(len(r.inputs) + len(r.outputs) <= 32 for r in parts.regions)


def test_the_same_bundles_every_time() -> None:
    recording = recorded(rotations, heads(4), heads(2), tensor(2, 5, 8))
    assert recording.graph is not None
    first, second = (partition(recording.graph, values=recording.values) for _ in range(2))
    assert [r.subgraph.digest for r in first.regions] == [r.subgraph.digest for r in second.regions]
    assert first == second


# ---- end to end


@needs_compiler
@pytest.mark.parametrize("length", [5, 3, 12])
def test_unequal_heads_rotate_in_one_launch_as_eager_does(tmp_path: Path, length: int) -> None:
    config = {"cache_dir": tmp_path, "profile": False}
    q, k, angles = heads(4), heads(2), tensor(2, 5, 8)
    with fusion.record(q=q, k=k, angles=angles, config=config) as recording:
        recording.output(both=rotations(q, k, angles))
    compiled = recording.compile()
    given = {"q": heads(4, 3, length), "k": heads(2, 3, length), "angles": tensor(3, length, 8)}
    before = {name: t.clone() for name, t in given.items()}
    for _ in range(3):
        results = compiled(**given)
    for ours, theirs in zip(results["both"], rotations(**given), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)  # sines within 2 ulp, products of them below 4
    assert all(torch.equal(given[name], t) for name, t in before.items())
    (kernel,) = recording.kernels
    assert len(parts_of(kernel.nest)) >= 2
    (scope,) = recording.report().scopes
    assert scope.fused_calls and scope.fallbacks == 0


@needs_compiler
def test_a_refused_bundle_is_taken_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def judge(self: Any, graph: Any, *args: Any, **kwargs: Any) -> Decision:
        if graph.bundle:
            return Decision(False, "slower", "a test says so")
        return kwargs.get("measured") or Decision(True, "faster", "a test says so")

    monkeypatch.setattr(FusionHeuristics, "judge", judge)
    x, y = tensor(ROWS, WIDTH), tensor(ROWS, 2 * WIDTH)
    with fusion.record(x=x, y=y, config={"cache_dir": tmp_path}) as recording:
        recording.output(a=(x * 2).relu(), b=(y + 1).tanh())
    results = recording.compile()(x=x, y=y)
    torch.testing.assert_close(results["a"], (x * 2).relu())
    torch.testing.assert_close(results["b"], (y + 1).tanh(), rtol=1e-6, atol=1e-7)  # within 2 ulp of float32
    rows = recording.report().scopes[0].regions
    assert [(row.ops, row.decision) for row in rows] == [
        (("mul", "relu", "add", "tanh"), "refused"), (("mul", "relu"), "fused"), (("add", "tanh"), "fused"),
    ]  # fmt: skip
    assert "taken apart into 2" in rows[0].reason
