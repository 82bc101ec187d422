"""The bar that a kernel's time has to stay under."""

from __future__ import annotations

import pytest
import torch
from graphs import trace

from fusion.choices import heuristics
from fusion.choices.heuristics import FusionHeuristics
from fusion.partition import cost_model
from fusion.runtime.measure import Comparison


@pytest.mark.parametrize(
    ("eager_us", "share", "fused"),
    [(100.0, 0.79, True), (100.0, 0.81, False), (20_000.0, 0.89, True), (20_000.0, 0.91, False)],
)
def test_long_calls_have_a_bar_half_way_to_eagers_time(
    monkeypatch: pytest.MonkeyPatch, eager_us: float, share: float, fused: bool
) -> None:
    times = Comparison(eager_us, share * eager_us, eager_us, share * eager_us, 0.0, 0.0)
    monkeypatch.setattr(heuristics, "compare", lambda *_, **__: times)
    x = torch.randn(4, 8)
    decision = FusionHeuristics().profile_and_decide(trace(torch.sigmoid, x), [x], torch.sigmoid)
    assert (decision.fused, decision.code) == (fused, "faster" if fused else "slower")
    assert fused or decision.reason.endswith("the bar is 80%" if eager_us < 1000 else "the bar is 90%")


def test_products_are_measured_whatever_is_estimated() -> None:
    """What follows a product may cost more than its launch, and torch's own product may be slow."""
    x, w = torch.randn(400, 64).bfloat16(), torch.randn(3000, 64).bfloat16()
    graph = trace(lambda x, w: torch.nn.functional.gelu(torch.nn.functional.linear(x, w)), x, w)
    assert cost_model.estimate(graph, {}).saved_us < 0
    assert FusionHeuristics().should_fuse(graph, {}).fused
