"""What is refused: opaque values, too many operators, methods that raise, layouts, and fusion switched off."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from function_modules import Function, Module, input_of
from tiny import no_grad, planned, reason

import fusion


def _unused(self: Module, y: torch.Tensor) -> Any:
    """The step of a module whose forward has none."""
    raise AssertionError


class Opaque:
    """An argument object the recorder knows nothing of."""

    def __init__(self, scale: float) -> None:
        self.scale = scale


def test_an_opaque_argument_is_refused_by_name(quick: fusion.FusionConfig) -> None:
    module = fusion.enable(Function(lambda x, how: torch.exp(x) * how.scale + 1).eval(), quick)
    for scale in (1.0, 2.0, 3.0):
        x = input_of(1.0)
        assert torch.equal(no_grad(module, x, Opaque(scale)), torch.exp(x) * scale + 1)
    found = reason(module)
    assert found.code == "opaque_argument" and "Opaque" in found.sentence


def test_an_opaque_result_is_refused(quick: fusion.FusionConfig) -> None:
    def call(x: torch.Tensor) -> Any:
        return {"y": torch.exp(x) + 1, "how": Opaque(2.0)}

    module = fusion.enable(Function(call).eval(), quick)
    for _ in range(3):
        result = no_grad(module, input_of(1.0))
        assert torch.equal(result["y"], torch.exp(input_of(1.0)) + 1) and result["how"].scale == 2.0
    assert reason(module).code == "opaque_output"


def test_more_operators_than_max_graph_size(quick: fusion.FusionConfig) -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        for _ in range(12):
            x = torch.sin(x) + 1
        return x

    module = fusion.enable(Function(call).eval(), quick.replace(max_graph_size=8))
    for _ in range(3):
        assert torch.equal(no_grad(module, input_of(1.0)), call(input_of(1.0)))
    assert reason(module).code == "too_large"


class Fails:
    """A library's object whose method raises."""

    def update(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no room")


fusion.register_island(Fails, "update")


def test_a_method_that_raises_while_it_is_recorded(quick: fusion.FusionConfig) -> None:
    class Catches(Module):
        def forward(self, x: torch.Tensor, fails: Fails) -> Any:
            y = F.silu(x) * self.weight
            try:
                return fails.update(y)
            except ValueError:
                return y * 2

    fused, eager, x = fusion.enable(Catches(_unused).eval(), quick), Catches(_unused).eval(), torch.randn(3, 8)
    for _ in range(3):
        torch.testing.assert_close(no_grad(fused, x, Fails()), no_grad(eager, x, Fails()))
    assert reason(fused).code == "step_error" and "update() raised ValueError: no room" in reason(fused).sentence


def test_an_argument_of_another_layout(quick: fusion.FusionConfig) -> None:
    class Dense(Module):
        def forward(self, x: torch.Tensor) -> Any:
            return F.silu(x.to_dense()) * self.weight

    fused, eager, x = fusion.enable(Dense(_unused).eval(), quick), Dense(_unused).eval(), torch.eye(8).to_sparse()
    for _ in range(3):
        torch.testing.assert_close(no_grad(fused, x), no_grad(eager, x))
    assert (
        reason(fused).code == "unsupported_layout" and "the argument x is a tensor of layout" in reason(fused).sentence
    )


def test_a_config_that_switches_fusion_off(quick: fusion.FusionConfig) -> None:
    fused, x = (
        fusion.enable(Module(lambda self, y: y * 2).eval(), quick.replace(enable_fusion=False)),
        torch.randn(3, 8),
    )
    no_grad(fused, x)
    assert reason(fused).code == "disabled" and planned(fused) == {"Module": 0}


def test_a_chain_that_is_longer_than_one_kernel(quick: fusion.FusionConfig) -> None:
    def step(self: Module, y: torch.Tensor) -> Any:
        for k in range(70):
            y = torch.sin(y + k) if k % 2 else y * 1.01
        return y

    fused, x = fusion.enable(Module(step).eval(), quick.replace(min_nodes=64)), torch.randn(3, 8)
    for _ in range(2):
        no_grad(fused, x)
    codes = {row.code for row in fusion.report(fused).scopes[0].refusals}
    assert planned(fused)["Module"] == 1 and "footprint" in codes
