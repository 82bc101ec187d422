"""Small matrix products: torch's at first, kernels' after many calls."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_examples import needs_compiler

import fusion
from fusion.choices import heuristics
from fusion.choices.select import Decider
from fusion.jit.pipeline import Pipeline
from fusion.jit.resting import RESTS
from fusion.jit.tiers import FirstTier, calls_before
from fusion.kernels.backends.cpp import compile as compiler
from fusion.refusal import Refusal
from fusion.runtime.measure import Comparison
from fusion.runtime.plan import MISS

pytestmark = [needs_compiler, pytest.mark.usefixtures("without_gradients")]


@pytest.fixture(autouse=True)
def every_kernel_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """No clock decides what a test exercises."""
    times = Comparison(10.0, 1.0, 10.0, 1.0, 0.0, 0.0)
    monkeypatch.setattr(heuristics, "compare", lambda *_, **__: times)
    monkeypatch.setattr(Pipeline, "_measures", lambda *_: False)


@pytest.fixture
def counted(tmp_path: Path) -> fusion.FusionConfig:
    """Some ten calls of `gated` come before its product is a kernel's."""
    return fusion.FusionConfig(matrix_products="auto", product_seconds=50e-6, cache_dir=tmp_path)


def gated(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(torch.nn.functional.linear(x, w)) + 1


def operands(rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 32), torch.randn(24, 32)


def holds_product(model: Any) -> bool:
    return any(kernel.nest.name.startswith("linear") for kernel in fusion.kernels_in_use(model))


def left_to_torch(model: Any) -> list[str]:
    rows = [row for scope in fusion.report(model).scopes for row in scope.refusals]
    return [row.reason for row in rows if row.code == "few_calls"]


def run_until_it_changes(model: Any, *arguments: torch.Tensor, calls: int = 400) -> int:
    """Calls it until a kernel holds its product; how many calls that took. Each gives eager's result."""
    for number in range(calls):
        torch.testing.assert_close(model(*arguments), gated(*arguments))
        fusion.wait(model)
        if holds_product(model):
            return number
    raise AssertionError(f"no kernel holds the product after {calls} calls")


def test_torch_computes_a_small_product_until_there_were_many_calls(counted):
    fused, (x, w) = fusion.fuse(gated, counted), operands()
    for _ in range(4):
        torch.testing.assert_close(fused(x, w), gated(x, w))
    scope = fused.report().scopes[0]
    assert (scope.state, scope.fused_calls) == ("fused", 3) and not holds_product(fused)
    assert len(left_to_torch(fused)) == 1 and "after " in left_to_torch(fused)[0]
    assert 5 <= run_until_it_changes(fused, x, w) < 400
    before = fused.report().scopes[0]
    fused(x, w)
    after = fused.report().scopes[0]
    assert (after.fused_calls, after.eager_calls) == (before.fused_calls + 1, before.eager_calls)
    assert after.recordings == 1 and after.fallbacks == 0


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Holds compilers on the side back until it is set."""
    opened, prepare = threading.Event(), compiler.prepare_cpp

    def waiting(*arguments: Any) -> None:
        assert opened.wait(60)
        prepare(*arguments)

    monkeypatch.setattr(compiler, "prepare_cpp", waiting)
    return opened


def test_the_first_plans_go_on_while_the_compilers_work(counted, gate):
    fused, (x, w) = fusion.fuse(gated, counted), operands()
    for _ in range(200):
        torch.testing.assert_close(fused(x, w), gated(x, w))
    scope = fused.report().scopes[0]
    assert not fusion.wait(fused, 0.01) and not holds_product(fused)
    assert (scope.state, scope.fused_calls, scope.eager_calls) == ("fused", 199, 1)
    gate.set()
    run_until_it_changes(fused, x, w)


@pytest.mark.parametrize("compile", ["blocking", "background"])
def test_either_way_of_compiling_ends_with_the_product_in_a_kernel(counted, compile):
    fused, (x, w) = fusion.fuse(gated, counted.replace(compile=compile)), operands()
    run_until_it_changes(fused, x, w)


def test_warmup_makes_its_kernel_at_once(counted):
    patient = counted.replace(product_seconds=1000.0)
    x, w = operands()
    fresh, used = fusion.fuse(gated, patient), fusion.fuse(gated, patient)
    fusion.warmup(fresh, x, w)
    for _ in range(4):
        used(x, w)
    assert not holds_product(used)
    fusion.warmup(used, x, w)
    for fused in (fresh, used):
        assert holds_product(fused) and not left_to_torch(fused)
        torch.testing.assert_close(fused(x, w), gated(x, w))


def test_zero_seconds_and_products_that_take_long_wait_for_nothing(counted):
    for config, rows in ((counted.replace(product_seconds=0.0), 4), (counted.replace(product_seconds=1000.0), 20_000)):
        fused, (x, w) = fusion.fuse(gated, config), operands(rows)
        for _ in range(3):
            torch.testing.assert_close(fused(x, w), gated(x, w))
        assert holds_product(fused) and not left_to_torch(fused)


def test_without_products_nothing_is_counted(counted):
    fused = fusion.fuse(lambda x: torch.nn.functional.silu(x) + 1, counted)
    x, _ = operands()
    for _ in range(3):
        fused(x)
    assert [t.first for t in fused.scope.pipeline.templates.values()] == [None]


def test_a_later_process_does_not_count_again(counted):
    first, (x, w) = fusion.fuse(gated, counted), operands()
    run_until_it_changes(first, x, w)
    later = fusion.fuse(gated, counted)  # with a pipeline of its own, which shares the cache alone
    for _ in range(3):
        torch.testing.assert_close(later(x, w), gated(x, w))
    assert holds_product(later)


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.silu(self.up(x)) + x


class Stack(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = torch.nn.ModuleList(Block() for _ in range(5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def test_equal_modules_count_together_and_change_together(counted):
    model, x = Stack().eval(), torch.randn(4, 24)
    eager = model(x)
    fusion.enable(model, counted.replace(product_seconds=120e-6))
    for _ in range(50):  # one module alone takes some 110 calls
        torch.testing.assert_close(model(x), eager)
        fusion.wait(model)
        if holds_product(model):
            break
    torch.testing.assert_close(model(x), eager)
    blocks = [scope for scope in fusion.report(model).scopes if scope.regions]
    assert sum(scope.count for scope in blocks) == len(blocks) == 5 and not left_to_torch(model)
    assert all(row.name.startswith("linear") for scope in blocks for row in scope.regions)
    assert all((scope.state, scope.fallbacks, scope.recordings) == ("fused", 0, 1) for scope in blocks)


def test_other_sizes_get_their_kernels_too(counted):
    fused, (x, w) = fusion.fuse(gated, counted), operands()
    wide, _ = operands(300)
    for one in (x, wide):
        for _ in range(3):
            fused(one, w)
    run_until_it_changes(fused, x, w)
    torch.testing.assert_close(fused(wide, w), gated(wide, w))
    before = fused.report().scopes[0].fused_calls
    torch.testing.assert_close(fused(wide, w), gated(wide, w))
    assert fused.report().scopes[0].fused_calls == before + 1


def test_calls_that_rest_count_too(counted):
    fused, (x, w) = fusion.fuse(gated, counted.replace(product_seconds=3e-3)), operands()
    for _ in range(3):
        fused(x, w)
    (entry,) = fused.scope.known
    ((compiled, _),) = entry.plans.values()
    compiled.trial.refusal = Refusal("slower_plan", "it is")
    fused.scope.cache.publish()
    assert run_until_it_changes(fused, x, w, calls=20 * RESTS) > 2 * RESTS


def test_where_the_kernels_cannot_be_begun_the_first_plans_stay(counted, monkeypatch):
    def fails(*_: Any) -> Any:
        raise KeyError("a fault of ours")

    monkeypatch.setattr(Decider, "begin", fails)
    fused, (x, w) = fusion.fuse(gated, counted), operands()
    for _ in range(200):
        torch.testing.assert_close(fused(x, w), gated(x, w))
    scope = fused.report().scopes[0]
    assert (scope.state, scope.fused_calls, scope.eager_calls) == ("fused", 199, 1) and not holds_product(fused)


def test_threads_change_over_without_an_eager_call(counted):
    fused, (x, w) = fusion.fuse(gated, counted), operands()
    wanted, wrong = gated(x, w), []
    for _ in range(3):
        fused(x, w)

    def calls() -> None:
        with torch.no_grad():
            wrong.extend(1 for _ in range(400) if not torch.allclose(fused(x, w), wanted, atol=1e-5))

    threads = [threading.Thread(target=calls) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run_until_it_changes(fused, x, w)
    assert not wrong and fused.report().scopes[0].fallbacks == 0


def test_passing_errors_are_tried_again() -> None:
    """Want of memory says nothing of the kernels: it must not reach the caller, nor be the last word."""
    asked = []

    def begin() -> tuple[()]:
        asked.append(1)
        if len(asked) == 1:
            raise MemoryError
        return ()

    tier = FirstTier(3, begin)
    run = tier.counted(lambda: "plan")
    taken = [run() for _ in range(100)]
    assert set(taken[:66]) == {"plan"} and set(taken[66:]) == {MISS} and len(asked) == 2 and tier.over


def test_how_many_calls_come_first_follows_from_what_they_take(counted):
    graphs = {}
    for rows in (2, 64):
        fused, (x, w) = fusion.fuse(gated, counted), operands(rows)
        fused(x, w)
        graphs[rows] = fused.scope.known[0]
    few, many = (calls_before(e.graph, e.recording.values, 0.5) for e in graphs.values())
    assert few > many > 0
    assert calls_before(graphs[2].graph, graphs[2].recording.values, 0.0) == 0
