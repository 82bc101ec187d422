"""Matrix products and attention of a user's own modules become kernels, and the modules stay as they were."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from compiled_examples import needs_compiler

import fusion
from fusion.reporting.model import FusionReport

pytestmark = [needs_compiler, pytest.mark.usefixtures("without_gradients")]


class Attention(torch.nn.Module):
    """Self-attention of four heads, and a feed-forward, as anybody writes them."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = torch.nn.Linear(32, 96, bias=False)
        self.out = torch.nn.Linear(32, 32)
        self.up = torch.nn.Linear(32, 64)
        self.down = torch.nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        x = x + self.out(torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


def config(tmp_path: Path) -> fusion.FusionConfig:
    """Fuses whatever is proved, products included."""
    return fusion.FusionConfig(matrix_products="auto", profile=False, cache_dir=tmp_path)


def fused(report: FusionReport) -> list[str]:
    """The operators of every region that has a kernel."""
    return [" ".join(row.ops) for row in report.regions if row.decision == "fused"]


def test_a_module_s_products_are_kernels(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Attention().eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    inputs = [torch.randn(2, n, 32) for n in (5, 9, 5, 17)]
    eager = [module(x) for x in inputs]
    fusion.enable(module, config(tmp_path))
    try:
        for _ in range(3):
            for x, wanted in zip(inputs, eager, strict=True):
                torch.testing.assert_close(module(x), wanted)
        report = fusion.report(module)
    finally:
        fusion.disable(module)
    assert sum(scope.fused_calls for scope in report.scopes) >= 4
    found = fused(report)
    assert any("linear gelu" in ops for ops in found) and any("linear add" in ops for ops in found), found
    assert any("scaled_dot_product_attention" in ops for ops in found), found
    after = module.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


def test_they_may_be_left_to_the_library(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Attention().eval(), torch.randn(2, 5, 32)
    eager = module(x)
    fusion.enable(module, config(tmp_path).replace(matrix_products="library"))
    try:
        for _ in range(3):
            torch.testing.assert_close(module(x), eager)
        report = fusion.report(module)
    finally:
        fusion.disable(module)
    assert fused(report) and not any("linear" in ops or "attention" in ops for ops in fused(report))


def test_threads_that_change_later_change_nothing(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, x = Attention().eval(), torch.randn(2, 40, 32)
    eager, threads = module(x), torch.get_num_threads()
    fusion.enable(module, config(tmp_path))
    try:
        for count in (threads, 1, threads + 2, threads):
            torch.set_num_threads(count)
            torch.testing.assert_close(module(x), eager)
    finally:
        torch.set_num_threads(threads)
        fusion.disable(module)


def test_shared_weights_are_read_by_each_of_their_products(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(32, 32), torch.randn(4, 32)
    module = torch.nn.Sequential(layer, torch.nn.ReLU(), layer).eval()
    eager = module(x)
    fusion.enable(module, config(tmp_path))
    try:
        for _ in range(3):
            torch.testing.assert_close(module(x), eager)
        layer.weight.mul_(2)
        torch.testing.assert_close(module(x), layer(torch.relu(layer(x))))
    finally:
        fusion.disable(module)
