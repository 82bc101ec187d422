"""Settings of torch that decide what a forward makes, such as a default device, are part of the guard, no obstacle."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

import fusion

X = torch.randn(4, 6)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield
    torch.set_default_device(None)


class Shifted(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 2).relu() + torch.arange(6.0)


def _fused(model: nn.Module) -> int:
    return fusion.report(model).scopes[0].fused_calls


def test_a_default_device_that_changes_nothing_is_no_obstacle() -> None:
    model = fusion.enable(Shifted().eval(), {"profile": False})
    wanted = Shifted()(X)
    torch.set_default_device("cpu")
    for _ in range(3):
        assert torch.equal(model(X), wanted)
    with torch.device("cpu"):
        assert torch.equal(model(X), wanted)
    torch.set_default_device(None)
    assert torch.equal(model(X), wanted)
    assert _fused(model) == 4
    assert fusion.report(model).scopes[0].recordings == 1


def test_a_plan_is_not_used_under_another_default_device() -> None:
    model = fusion.enable(Shifted().eval(), {"profile": False})
    for _ in range(3):
        model(X)
    fused = _fused(model)
    assert fused == 2
    with torch.device("meta"), pytest.raises(RuntimeError, match="device"):
        model(X)  # as eager's sum of a tensor here and one on no device does
    assert _fused(model) == fused
    assert torch.equal(model(X), Shifted()(X))


def test_results_stay_where_they_are_under_another_default_device() -> None:
    model = fusion.enable(nn.Sequential(nn.ReLU(), nn.Softplus()).eval(), {"profile": False})
    with torch.device("meta"):
        results = [model(X) for _ in range(4)]
    assert all(torch.allclose(r, nn.functional.softplus(X.relu())) for r in results)
    assert _fused(model) == 3


def test_another_mode_around_the_device_keeps_calls_eager() -> None:
    class Counts(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            self.calls += 1
            return func(*args, **(kwargs or {}))

    model = fusion.enable(Shifted().eval(), {"profile": False})
    for _ in range(3):
        model(X)
    fused = _fused(model)
    with Counts() as counts, torch.device("cpu"):
        model(X)
    assert counts.calls and _fused(model) == fused
    assert "Counts" in str(fusion.report(model))


def test_deterministic_algorithms_are_part_of_the_guard() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return (x * 2).relu() + (1 if torch.are_deterministic_algorithms_enabled() else 0)

    fused = fusion.fuse(function, {"profile": False})
    for _ in range(3):
        assert torch.equal(fused(X), function(X))
    torch.use_deterministic_algorithms(True)
    try:
        for _ in range(3):
            assert torch.equal(fused(X), function(X))
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(fused(X), function(X))
    assert fused.report().scopes[0].fused_calls >= 4
