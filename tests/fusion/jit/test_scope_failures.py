"""Kernels, plans and compilers that fail, and calls from two threads: right results, or a counted fallback."""

from __future__ import annotations

import copy
import threading
from typing import Any

import pytest
import torch
from graphs import normal as rand
from pair import Block, Pair, Stack
from tiny import line_of, no_grad, planned, scopes

import fusion
from fusion.patterns.errors import BackendUnavailable

# ---- things that fail


def test_a_kernel_that_raises(quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(quick)
    pair.warm()

    def broken(*args: Any) -> Any:
        raise RuntimeError("launch failed")

    known = pair.scope.known[0]
    for _, plan in known.plans.values():
        monkeypatch.setitem(plan.run.__globals__, "kernel0", broken)
    before = planned(pair.fused)
    for count in range(1, 6):
        pair(rand(4, 16))
        assert pair.scope.statistics.fallbacks == min(count, 3), "not tried again on every call"
    assert planned(pair.fused) == before
    (row,) = fusion.report(pair.fused).scopes
    assert row.fallbacks == 3 and "launch failed" in row.reason and fusion.report(pair.fused).totals.fallbacks == 3


def test_a_kernel_that_raises_without_fallback(quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair(quick.replace(fallback_on_error=False))
    pair.warm()

    def broken(*args: Any) -> Any:
        raise RuntimeError("launch failed")

    for _, plan in pair.scope.known[0].plans.values():
        monkeypatch.setitem(plan.run.__globals__, "kernel0", broken)
    with pytest.raises(RuntimeError, match="launch failed"):
        no_grad(pair.fused, rand(4, 16))


def test_a_wrong_plan_is_refused(quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The unfused plan of another shape gives another result than eager: it is never used."""
    from fusion.jit import cache_entry as module

    pair = Pair(quick)
    pair(rand(3, 16))
    original = module.CacheEntry.checked_run

    def wrong(self: Any, arguments: Any, taps: Any, undo: Any = None) -> Any:
        run = original(self, arguments, taps, undo)
        return run._replace(result=run.result + 1)

    monkeypatch.setattr(module.CacheEntry, "checked_run", wrong)
    for rows in (4, 5, 3, 4):
        pair(rand(rows, 16))
    assert pair.scope.known[0].refusal.code == "plan_mismatch"
    assert planned(pair.fused) == {"Block": 0}
    (row,) = fusion.report(pair.fused).scopes
    assert "plan_mismatch" in row.reason and row.state == "eager"


def test_a_wrong_kernel_is_refused(quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from fusion.choices import heuristics

    original = heuristics.FusionHeuristics.judge

    def judge(self: Any, graph: Any, tensors: Any, values: Any, kernel: Any, given: Any, measured: Any = None) -> Any:
        def off(*args: Any) -> Any:
            result = kernel(*args)
            return tuple(r * 1.001 for r in result) if isinstance(result, tuple) else result * 1.001

        return original(self, graph, tensors, values, off, given, measured)

    monkeypatch.setattr(heuristics.FusionHeuristics, "judge", judge)
    pair = Pair(quick.replace(cache_dir=tmp_path))
    for rows in (3, 4, 5, 4):
        pair(rand(rows, 16))
    rows_ = [r for s in fusion.report(pair.fused).scopes for r in s.regions]
    assert rows_ and {r.code for r in rows_} == {"inaccurate"}
    assert planned(pair.fused)["Block"] >= 1, "the plan runs, without kernels"


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from fusion.kernels.backends.cpp import toolchain as cpp_toolchain

    monkeypatch.setattr(cpp_toolchain, "find_toolchain", lambda: None)
    pair = Pair(fusion.FusionConfig(profile=False, cache_dir=tmp_path))
    for rows in (3, 4, 5, 4):
        pair(rand(rows, 16))
    assert planned(pair.fused)["Block"] >= 1
    found = [r for s in fusion.report(pair.fused).scopes for r in s.regions]
    assert found and {r.code for r in found} == {"no_backend"} and all(r.reason for r in found)
    with pytest.raises(BackendUnavailable, match="cpp"):
        fusion.enable(Block(), {"backend": "cpp"})


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_triton_without_a_gpu_is_an_error_that_names_the_remedy() -> None:
    model = Block()
    with pytest.raises(BackendUnavailable, match=r"Install|TRITON_INTERPRET"):
        fusion.enable(model, {"backend": "triton"})
    assert "forward" not in model.__dict__


def test_a_compile_error_is_tried_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    from fusion.kernels.backends.cpp import compile as cpp_compile
    from fusion.patterns.errors import CompileError

    calls: list[int] = []

    def broken(nests: Any, store: Any) -> Any:
        calls.append(len(nests))
        raise CompileError("no good")

    monkeypatch.setattr(cpp_compile, "compile_cpp", broken)
    pair = Pair(fusion.FusionConfig(profile=False, cache_dir=tmp_path))
    for rows in (3, 4, 5, 4, 3, 4):
        pair(rand(rows, 16))
    tried = len(calls)
    pair.scope.known.clear()
    pair.scope.cache.publish()
    for rows in (3, 4, 5):
        pair(rand(rows, 16))
    assert len(calls) == tried
    assert {r.code for s in fusion.report(pair.fused).scopes for r in s.regions} == {"compile_error"}


# ---- threads


def test_two_threads(quick: fusion.FusionConfig) -> None:
    model = Stack().eval()
    eager = copy.deepcopy(model)
    fusion.enable(model, quick)
    wrong: list[Any] = []
    start = threading.Barrier(2)

    def work(seed: int) -> None:
        start.wait()
        for i in range(12):
            x = rand(2 + (i + seed) % 5, 16, seed=seed)
            with torch.no_grad():
                found, expected = model(x), eager(x)
            if not torch.allclose(found, expected, rtol=1e-5, atol=1e-6):
                wrong.append((seed, i, float((found - expected).abs().max())))

    def guarded(seed: int) -> None:
        try:
            work(seed)
        except BaseException as error:
            wrong.append(error)
            raise

    threads = [threading.Thread(target=guarded, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong
    assert all(count > 0 for count in planned(model).values())
    assert all(s.statistics.fallbacks == 0 for s in scopes(model).values())


def test_the_origin_of_a_region_is_the_users_line(pair: Pair) -> None:
    rows = [r for s in fusion.report(pair.fused).scopes for r in s.regions]
    assert any("rsqrt" in line_of(r.origin) for r in rows), [r.origin for r in rows]
    assert any("silu" in line_of(r.origin) for r in rows), [r.origin for r in rows]


class Listed(torch.nn.Module):
    """Reads data in Python for as long as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.listed = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * len(x.tolist()) if self.listed else torch.tanh(x) * 2 + 1


def test_a_scope_that_is_refused_rests_and_looks_up_now_and_then(
    quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fused, eager = fusion.enable(Listed().eval(), quick), Listed().eval()
    asked = []
    ask = fusion.jit.scope.problems
    monkeypatch.setattr(fusion.jit.scope, "problems", lambda *given: asked.append(1) or ask(*given))
    for rows in range(2, 42):
        torch.testing.assert_close(no_grad(fused, rand(rows, 8)), no_grad(eager, rand(rows, 8)), rtol=0, atol=0)
    assert 5 < len(asked) < 15, "forty calls"
    fused.listed = eager.listed = False
    for rows in range(2, 82):
        torch.testing.assert_close(no_grad(fused, rand(rows, 8)), no_grad(eager, rand(rows, 8)), rtol=1e-5, atol=1e-6)
    assert planned(fused)["Listed"] > 0
