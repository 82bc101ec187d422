"""What a forward changes: Python's state is refused, writes to arguments and buffers happen once."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from function_modules import Function, Module, input_of
from tiny import no_grad, planned, reason

import fusion


def counted(self: Module, y: torch.Tensor) -> Any:
    self.count += 1
    return y + self.count


def kept(self: Module, y: torch.Tensor) -> Any:
    self.last = y
    return y + 1


def appended(self: Module, y: torch.Tensor) -> Any:
    self.seen.append(1)
    return y + len(self.seen)


def replaced(self: Module, y: torch.Tensor) -> Any:
    self.total = self.total + y[0]
    return y + self.total


def removed(self: Module, y: torch.Tensor) -> Any:
    self.extra = 3
    result = y + self.extra
    del self.extra
    return result


@pytest.mark.parametrize("step", [counted, kept, appended, replaced, removed], ids=lambda s: s.__name__)
def test_forwards_that_change_python_state(step: Any, quick: fusion.FusionConfig) -> None:
    module = Module(step).eval()
    eager = copy.deepcopy(module)
    fusion.enable(module, quick)
    for value in (1.0, -1.0, 2.0, 0.5, 0.25):
        x = input_of(value)
        assert torch.equal(no_grad(module, x), no_grad(eager, x))
    assert (module.count, module.seen) == (eager.count, eager.seen)
    assert torch.equal(module.total, eager.total)
    if step is kept:
        assert torch.equal(module.last, eager.last)
    if step is not removed:  # which leaves nothing behind: replaying it is right
        assert reason(module).code == "python_state"
        assert planned(module) == {"Module": 0}


def write_input(x: torch.Tensor) -> Any:
    x.add_(1)
    return x * 2 + 1


def write_view_of_input(x: torch.Tensor) -> Any:
    x[:, :2].mul_(3)
    return torch.exp(x) + 1


def out_argument(x: torch.Tensor) -> Any:
    torch.add(x, 1, out=x)
    return torch.exp(x) + 1


@pytest.mark.parametrize("write", [write_input, write_view_of_input, out_argument], ids=lambda f: f.__name__)
def test_writes_to_an_argument_happen_once(write: Any, quick: fusion.FusionConfig) -> None:
    module = fusion.enable(Function(write).eval(), quick)
    for value in (1.0, -1.0, 2.0, 0.5):
        x, y = input_of(value), input_of(value)
        torch.testing.assert_close(no_grad(module, x), write(y), rtol=4e-6, atol=0)  # exp: some ulps of float32
        assert torch.equal(x, y)
    assert planned(module) == {"Function": 3}


class WritesBuffer(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps.add_(1)
        return torch.exp(x) * self.steps + 1


def test_a_write_to_a_buffer_happens_once(quick: fusion.FusionConfig) -> None:
    module = fusion.enable(WritesBuffer().eval(), quick)
    eager = WritesBuffer().eval()
    for value in (1.0, -1.0, 2.0, 0.5):
        torch.testing.assert_close(
            no_grad(module, input_of(value)), no_grad(eager, input_of(value)), rtol=4e-6, atol=0
        )  # exp: some ulps of float32
    assert torch.equal(module.steps, torch.full((8,), 4.0))
    assert planned(module) == {"WritesBuffer": 3}
