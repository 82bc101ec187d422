"""Forwards that look at data: a condition of the plan, or refused by code and line; right results either way."""

from __future__ import annotations

import copy
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from function_modules import Module, input_of
from tiny import line_of, no_grad, planned, reason, scopes

import fusion

OUTSIDE = torch.linspace(0.5, 1.5, 8)


def item(self: Module, y: torch.Tensor) -> Any:
    return y * y.sum().item()  # here


def truth(self: Module, y: torch.Tensor) -> Any:
    if y.sum() > 0:  # here
        return y + 1
    return y - 1


def listed(self: Module, y: torch.Tensor) -> Any:
    return y * y[0].tolist()[0]  # here


def number(self: Module, y: torch.Tensor) -> Any:
    return y * float(y.max())  # here


def index(self: Module, y: torch.Tensor) -> Any:
    return y[:, : int((y > -100).sum()) // y.numel() + 3]  # here


def nonzero(self: Module, y: torch.Tensor) -> Any:
    return y[y > 0]  # here


def unique(self: Module, y: torch.Tensor) -> Any:
    return torch.unique(y)  # here


def equal(self: Module, y: torch.Tensor) -> Any:
    return y + 1 if torch.equal(y, y * 1) else y  # here


def allclose(self: Module, y: torch.Tensor) -> Any:
    return y + 1 if torch.allclose(y, y * 1) else y  # here


def through_numpy(self: Module, y: torch.Tensor) -> Any:
    return torch.from_numpy(numpy.tanh(y.numpy())) * 2  # here


def asarray(self: Module, y: torch.Tensor) -> Any:
    return y * torch.as_tensor(numpy.asarray(y))  # here


def outer(self: Module, y: torch.Tensor) -> Any:
    return y * OUTSIDE  # here


def dropped(self: Module, y: torch.Tensor) -> Any:
    torch.manual_seed(3)
    return F.dropout(y, 0.5, training=True)  # here


def drawn(self: Module, y: torch.Tensor) -> Any:
    torch.manual_seed(3)
    return y + torch.rand(8)  # here


def pointer(self: Module, y: torch.Tensor) -> Any:
    return y * (1 if y.data_ptr() else 2)  # here


def iterated(self: Module, y: torch.Tensor) -> Any:
    return sum(float(v) for v in y[0]) * y  # here


CONDITIONS = [item, truth, number, index, iterated, nonzero, unique]
READS = [
    (listed, "data_read"),
    (equal, "data_read"),
    (allclose, "data_read"),
    (through_numpy, "numpy"),
    (asarray, "numpy"),
    (outer, "unknown_tensor"),
    (dropped, "random"),
    (drawn, "random"),
    (pointer, "data_read"),
]


@pytest.mark.parametrize("step", CONDITIONS)
def test_a_value_of_a_tensor_is_a_condition_of_the_plan(step: Any, quick: fusion.FusionConfig) -> None:
    module = Module(step).eval()
    eager = copy.deepcopy(module)
    fusion.enable(module, quick)
    for value in (1.0, 1.0, 1.0, -1.0, -1.0, 1.0, -1.0, 2.0, 0.5, 0.5, 1.0, -3.0):
        x = input_of(value)
        torch.testing.assert_close(no_grad(module, x), no_grad(eager, x), rtol=1e-6, atol=1e-7)
    assert planned(module)["Module"] >= 2, fusion.report(module).scopes[0].reason


@pytest.mark.parametrize(("step", "code"), READS, ids=[step.__name__ for step, _ in READS])
def test_forwards_that_look_at_data(step: Any, code: str, quick: fusion.FusionConfig) -> None:
    module = Module(step).eval()
    eager = copy.deepcopy(module)
    fusion.enable(module, quick)
    for value in (1.0, -1.0, 2.0, 0.5, -3.0):
        x = input_of(value)
        assert torch.equal(no_grad(module, x), no_grad(eager, x))
    found = reason(module)
    assert found is not None and found.code == code
    assert line_of(found.origin).endswith("# here"), found
    assert planned(module) == {"Module": 0}
    assert scopes(module)["Module"].statistics.recordings == 1, "a refused structure is not recorded again"
    (row,) = fusion.report(module).scopes
    assert row.state == "eager" and found.code in row.reason
