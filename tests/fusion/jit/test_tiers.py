"""Small matrix products: torch's at first, kernels' after many calls."""

from __future__ import annotations

import inspect
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_examples import needs_compiler

import fusion
from fusion.choices import heuristics
from fusion.choices.select import Decider
from fusion.jit.resting import RESTS
from fusion.jit.stages import Stages
from fusion.jit.tiers import FirstTier, Phase
from fusion.kernels.backends.cpp import compile as compiler
from fusion.partition import cost_model
from fusion.refusal import Refusal
from fusion.runtime.measure import Comparison
from fusion.runtime.plan import MISS

pytestmark = [needs_compiler, pytest.mark.usefixtures("without_gradients")]


@pytest.fixture(autouse=True)
def every_kernel_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """No clock decides what a test exercises."""
    times = Comparison(10.0, 1.0, 10.0, 1.0, 0.0, 0.0)
    monkeypatch.setattr(heuristics, "compare", lambda *_, **__: times)
    monkeypatch.setattr(Stages, "_measures", lambda *_: False)


@pytest.fixture
def counted(tmp_path: Path) -> fusion.FusionConfig:
    """Some ten calls of `gated` come before its product is a kernel's."""
    return fusion.FusionConfig(matrix_products="auto", product_seconds=50e-6, cache_dir=tmp_path)


def gated(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(torch.nn.functional.linear(x, w)) + 1


def operands(rows: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(rows, 32), torch.randn(24, 32)


def fails(*_: Any) -> Any:
    raise KeyError("a fault of ours")


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
    assert left_to_torch(fused)[0].startswith("aten.linear.default is torch's until equal layers have spent 5e-05 s")
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
    assert [t.first for t in fused.scope.stages.templates.values()] == [None]


def test_a_later_process_does_not_count_again(counted):
    first, (x, w) = fusion.fuse(gated, counted), operands()
    run_until_it_changes(first, x, w)
    later = fusion.fuse(gated, counted)  # with stages of its own, which share the cache alone
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
    monkeypatch.setattr(Decider, "begin", fails)
    fused, (x, w) = fusion.fuse(gated, counted), operands()
    for _ in range(200):
        torch.testing.assert_close(fused(x, w), gated(x, w))
    scope = fused.report().scopes[0]
    assert (scope.state, scope.fused_calls, scope.eager_calls) == ("fused", 199, 1) and not holds_product(fused)


def test_threads_get_eagers_results_while_plans_change_over(counted):
    fused, (x, w) = fusion.fuse(gated, counted), operands()
    wanted, wrong = gated(x, w), []
    for _ in range(3):
        fused(x, w)

    def calls() -> None:
        with torch.no_grad():
            for _ in range(400):  # a kernel adds 32 products up in another order than torch
                if not torch.allclose(fused(x, w), wanted, atol=1e-5):
                    wrong.append(1)

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

    tier = FirstTier(30e-6, lambda: True, begin)
    run = tier.counted(lambda: "plan", 10.0, lambda plan, arguments: "upgrade")
    taken = [run() for _ in range(300)]
    assert taken == ["plan"] * (3 + 64) + ["upgrade"] * 233 and len(asked) == 2
    assert tier.phase is Phase.OVER


def test_calls_that_a_plan_does_not_take_are_not_counted() -> None:
    tier = FirstTier(1.0, lambda: True, tuple)
    run = tier.counted(lambda x: x, 10.0, lambda *_: "upgrade")
    assert [run(x) for x in ("a", MISS, "b", MISS, MISS)].count(MISS) == 3
    assert tier.left_us == 1e6 - 20


def test_large_products_of_a_structure_that_was_small_wait_for_nothing(counted):
    fused, (x, w) = fusion.fuse(gated, counted.replace(product_seconds=1000.0)), operands()
    for _ in range(4):
        fused(x, w)
    assert not holds_product(fused)
    large, _ = operands(20_000)
    for _ in range(2):
        torch.testing.assert_close(fused(large, w), gated(large, w))
    assert holds_product(fused)
    before = fused.report().scopes[0].fused_calls
    for one in (large, x, x):
        torch.testing.assert_close(fused(one, w), gated(one, w))
    assert fused.report().scopes[0].fused_calls >= before + 2


def test_a_call_counts_as_what_its_own_sizes_take(counted):
    fused, (x, w) = fusion.fuse(gated, counted.replace(product_seconds=1000.0)), operands()
    (wide, _), spent = operands(700), []
    for one in (x, wide):
        for _ in range(4):
            fused(one, w)
        (first,) = (t.first for t in fused.scope.stages.templates.values())
        before = first.left_us
        fused(one, w)
        spent.append(before - first.left_us)
    assert spent[1] > 2 * spent[0] > 0


def test_warmup_ends_the_count_of_a_model_that_was_called(tmp_path, counted):
    fused, (x, w) = fusion.fuse(gated, counted.replace(product_seconds=1000.0, cache_dir=tmp_path / "own")), operands()
    for _ in range(40):
        fused(x, w)
    fusion.warmup(fused, x, w)
    assert holds_product(fused) and not left_to_torch(fused)
    before = fused.report().scopes[0].eager_calls
    for _ in range(100):
        torch.testing.assert_close(fused(x, w), gated(x, w))
    assert fused.report().scopes[0].eager_calls == before


def test_calls_that_no_plan_takes_do_not_keep_the_second_plan_away(counted):
    fused, (x, w) = fusion.fuse(gated, counted.replace(max_plans=1)), operands()
    for _ in range(5):
        fused(x, w)
    for _ in range(200):
        fused(x, w)
        fused(x[None], w)  # there is no room for a plan of it
        fusion.wait(fused)
    assert holds_product(fused)
    before = fused.report().scopes[0].fused_calls
    for _ in range(50):
        fused(x, w)
        fused(x[None], w)
    assert fused.report().scopes[0].fused_calls == before + 50


@pytest.mark.parametrize("error", [KeyError("a fault of ours"), MemoryError()])
def test_where_the_second_plan_cannot_be_made_the_first_stays(counted, monkeypatch, error):
    fused, (x, w) = fusion.fuse(gated, counted), operands()
    for _ in range(5):
        fused(x, w)
    raised, choose = [], Decider.candidates

    def fails_once(*given: Any) -> Any:
        if not raised:
            raised.append(1)
            raise error
        return choose(*given)

    monkeypatch.setattr(Decider, "candidates", fails_once)
    for _ in range(300):
        torch.testing.assert_close(fused(x, w), gated(x, w))
        fusion.wait(fused)
    scope = fused.report().scopes[0]
    assert raised and scope.state == "fused" and scope.eager_calls <= 4
    assert holds_product(fused) is isinstance(error, MemoryError), "which passes, and is tried again"


def test_deep_calls_keep_the_first_plan(counted):
    fused, (x, w) = fusion.fuse(gated, counted), operands()
    for _ in range(4):
        fused(x, w)

    def deep(frames: int) -> torch.Tensor:
        return deep(frames - 1) if frames else fused(x, w)

    frames = sys.getrecursionlimit() - 200 - len(inspect.stack(0))
    before = fused.report().scopes[0].fused_calls
    for _ in range(100):
        torch.testing.assert_close(deep(frames), gated(x, w))
        fusion.wait(fused)
    assert fused.report().scopes[0].fused_calls == before + 100 and not holds_product(fused)
    run_until_it_changes(fused, x, w)


def test_regions_that_are_refused_otherwise_say_so_in_the_end(counted):
    fused, (x, w) = fusion.fuse(gated, counted.replace(min_nodes=50)), operands()
    for _ in range(300):
        fused(x, w)
        fusion.wait(fused)
    codes = [row.code for row in fused.report().scopes[0].refusals]
    assert codes and set(codes) == {"too_small"}


def test_a_fault_in_the_estimate_costs_nothing_but_the_count(counted, monkeypatch):
    monkeypatch.setattr(cost_model, "products_us", fails)
    fused, (x, w) = fusion.fuse(gated, counted), operands()
    for _ in range(3):
        torch.testing.assert_close(fused(x, w), gated(x, w))
    assert fused.report().scopes[0].state == "fused" and holds_product(fused)


def test_first_templates_are_let_go(counted):
    fused, (x, w) = fusion.fuse(gated, counted), operands()
    run_until_it_changes(fused, x, w)
    assert [t.first for t in fused.scope.stages.templates.values()] == [None]


def test_a_process_that_began_and_ended_leaves_the_count_to_others(counted, gate):
    fused, (x, w) = fusion.fuse(gated, counted), operands()
    for _ in range(100):
        fused(x, w)
    other = fusion.fuse(gated, counted.replace(product_seconds=1000.0))
    for _ in range(3):
        other(x, w)
    assert not holds_product(other) and left_to_torch(other)
    gate.set()
