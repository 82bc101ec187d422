"""What a recorded call computes: its large products once, however often it is made and checked."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch.profiler import profile

import fusion

pytestmark = pytest.mark.usefixtures("without_gradients")
WIDTH, ROWS = 1024, 64


class Block(torch.nn.Module):
    """Two products and what is between them."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(WIDTH, WIDTH)
        self.down = torch.nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.silu(self.up(x)))


def products(call: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, int]:
    """A call's result, and how many matrix products torch took memory for: recording makes some without."""
    with profile(profile_memory=True) as seen:
        result = call()
    names = ("aten::mm", "aten::addmm")
    return result, sum(event.name in names and event.self_cpu_memory_usage > 0 for event in seen.events() or ())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_call_multiplies_as_often_as_eager_does(dtype: torch.dtype) -> None:
    block = Block().to(dtype).eval()
    eager, x = copy.deepcopy(block), torch.randn(ROWS, WIDTH).to(dtype)
    fusion.enable(block, {"profile": False})
    result, count = products(lambda: block(x))
    assert count == 2 and torch.equal(result, eager(x))
    (scope,) = fusion.report(block).scopes
    assert scope.state == "fused"


def test_so_does_one_at_sizes_that_are_new() -> None:
    block = Block().eval()
    eager = copy.deepcopy(block)
    fusion.enable(block, {"profile": False})
    block(torch.randn(ROWS, WIDTH))
    x = torch.randn(8 * ROWS, WIDTH)
    result, count = products(lambda: block(x))
    assert count == 2 and torch.equal(result, eager(x))
    block(x)
    (scope,) = fusion.report(block).scopes
    assert (scope.recordings, scope.fused_calls) == (1, 1)


def test_an_equal_module_too() -> None:
    blocks = torch.nn.Sequential(Block(), Block()).eval()
    eager, x = copy.deepcopy(blocks), torch.randn(ROWS, WIDTH)
    for block in blocks:
        fusion.enable(block, {"profile": False})
    result, count = products(lambda: blocks(x))
    assert count == 4 and torch.equal(result, eager(x))
    assert [fusion.report(block).scopes[0].state for block in blocks] == ["fused", "fused"]


def test_hooks_of_a_linear_module_run_in_the_call_that_is_the_users() -> None:
    block = Block().eval()
    block.up.register_forward_hook(lambda module, args, result: result * 2)
    eager, x = copy.deepcopy(block), torch.randn(ROWS, WIDTH)
    fusion.enable(block)
    assert torch.equal(block(x), eager(x))
