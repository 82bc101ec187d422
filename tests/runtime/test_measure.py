"""Timing side by side, and a SubGraph as the Python function it stands for."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import fusion
from fusion.patterns.reference import bind_symbols, run
from fusion.runtime import measure
from fusion.runtime.measure import Comparison, compare, eager_function


def test_both_are_called_in_turns_and_the_slower_measures_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    now = [0.0]
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def busy(name: str, seconds: float) -> None:
        order.append(name)
        now[0] += seconds

    times = compare(lambda: busy("a", 2e-4), lambda: busy("b", 2e-3), wait=lambda: None, seconds=0.0)
    assert times.first_us == pytest.approx(200) and times.second_us == pytest.approx(2000) and times.ratio > 1
    assert order.count("a") >= 7 and order.count("b") >= 7
    tail = order[-8:]
    assert tail == ["a", "b"] * 4, "samples alternate, so that a slow phase of the machine hits both"


def test_no_quartile_is_shorter_than_the_shortest_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second once waited for another program: it is not the faster one for that."""
    now, waits = [0.0], iter([0.0, 20.0])
    monkeypatch.setattr(measure, "time", SimpleNamespace(perf_counter=lambda: now[0]))

    def takes(seconds: float) -> None:
        now[0] += seconds

    times = compare(lambda: takes(1.0), lambda: takes(2.0 + next(waits, 0.0)), wait=lambda: None, seconds=0.0)
    assert times.second_best_us >= 2e6 and times.ratio > 1


def test_time_spent_is_bounded() -> None:
    start = time.perf_counter()
    compare(lambda: None, lambda: None, wait=lambda: None, seconds=0.01)
    assert time.perf_counter() - start < 5


def test_the_spread_counts_against_the_second() -> None:
    steady = Comparison(10.0, 8.0, 10.0, 8.0, 0.0, 0.0)
    spread = Comparison(10.0, 8.0, 10.0, 7.0, 0.0, 4.0)
    disturbed = Comparison(10.0, 9.0, 8.0, 6.0, 0.0, 30.0)
    assert steady.ratio == 0.8 and spread.ratio == 1.0
    assert disturbed.noisy and not spread.noisy and disturbed.ratio == 0.75


def test_an_eager_function_is_the_graph() -> None:
    for graph in (fusion.create_swiglu_pattern(), fusion.create_add_rms_norm_pattern()):
        inputs: dict[str, Any] = {}
        for seed, name in enumerate(graph.inputs):
            spec = graph.spec[name]
            sizes = [8 if not isinstance(d, int) else d for d in spec.shape]
            inputs[name] = torch.randn(*sizes, generator=torch.Generator().manual_seed(seed)).to(spec.dtype)
        values = bind_symbols(graph, inputs)
        expected = run(graph, inputs, values)
        found = eager_function(graph)(*inputs.values(), *(values[s] for s in graph.symbols))
        results = found if isinstance(found, tuple) else (found,)
        for name, result in zip(graph.outputs, results, strict=True):
            assert torch.equal(result, expected[name])


def test_long_calls_are_few() -> None:
    calls: list[str] = []

    def wait_for(name: str, seconds: float) -> None:
        calls.append(name)
        time.sleep(seconds)

    times = compare(lambda: wait_for("a", 0.05), lambda: wait_for("b", 0.006), wait=lambda: None, seconds=0.02)
    assert times.ratio < 0.6 and calls.count("a") <= 4 and calls.count("b") <= 4
    calls.clear()
    times = compare(lambda: wait_for("a", 0.25), lambda: wait_for("b", 0.02), wait=lambda: None, seconds=0.02)
    assert times.ratio < 0.4 and calls == ["a", "b"]
