"""Forwards that a plan could not replay: the code, the line that did it, and the right result on every call."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
import torch.nn.functional as F
from tiny import line_of, no_grad, planned, reason, scopes

import fusion

OUTSIDE = torch.linspace(0.5, 1.5, 8)


class Module(torch.nn.Module):
    """A parameter, a norm-like chain that would fuse, and what a test adds to it."""

    def __init__(self, step: Callable[..., Any]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.linspace(0.5, 2.0, 8))
        self.step = step
        self.count = 0
        self.seen: list[Any] = []
        self.last: Any = None
        self.register_buffer("total", torch.zeros(8))

    def forward(self, x: torch.Tensor) -> Any:
        return self.step(self, F.silu(x) * self.weight)


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


def input_of(value: float) -> torch.Tensor:
    """Values of one sign: their sign decides which way a branch goes."""
    return torch.linspace(0.1, 1.0, 24).reshape(3, 8) * value


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


class Function(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


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


# ---- the user's own errors


class Picky(torch.nn.Module):
    """Raises for negative sizes of the sum, after some work."""

    def __init__(self) -> None:
        super().__init__()
        self.fail = False

    def forward(self, x: torch.Tensor, limit: int = 4) -> torch.Tensor:
        y = torch.exp(x) * 2 + 1
        if x.shape[0] > limit:
            raise ValueError(f"at most {limit} rows")
        return y


def test_the_forwards_own_errors_pass_through(quick: fusion.FusionConfig) -> None:
    module = fusion.enable(Picky().eval(), quick)
    many, few = torch.rand(6, 8), torch.rand(3, 8)
    with pytest.raises(ValueError, match="at most 4 rows"):
        no_grad(module, many)
    for rows in (few, torch.rand(2, 8), few, torch.rand(4, 8)):
        assert torch.allclose(no_grad(module, rows), torch.exp(rows) * 2 + 1, rtol=3e-7, atol=0)
    assert planned(module)["Picky"] >= 1
    with pytest.raises(ValueError, match="at most 4 rows"):
        no_grad(module, many)
    with pytest.raises(RuntimeError, match="size of tensor"):
        no_grad(fusion.enable(Function(lambda x, y: torch.exp(x) + y).eval(), quick), few, torch.rand(5, 7))
    assert torch.allclose(no_grad(module, few), torch.exp(few) * 2 + 1, rtol=3e-7, atol=0)
    with pytest.raises(TypeError, match=r"positional|argument"):
        no_grad(module)


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_while_recording_leaves_nothing_behind(
    kind: type[BaseException], quick: fusion.FusionConfig
) -> None:
    fail = [True]

    def call(x: torch.Tensor) -> torch.Tensor:
        y = torch.exp(x) * 2
        if fail[0]:
            raise kind()
        return y + 1

    module = fusion.enable(Function(call).eval(), quick)
    with pytest.raises(kind):
        no_grad(module, torch.rand(3, 8))
    assert torch._C._len_torch_dispatch_stack() == torch._C._len_torch_function_stack() == 0
    fail[0] = False
    x = torch.rand(3, 8)
    assert torch.allclose(no_grad(module, x), torch.exp(x) * 2 + 1, rtol=3e-7, atol=0)


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

    fused, eager, x = fusion.enable(Catches(item).eval(), quick), Catches(item).eval(), torch.randn(3, 8)
    for _ in range(3):
        torch.testing.assert_close(no_grad(fused, x, Fails()), no_grad(eager, x, Fails()))
    assert reason(fused).code == "step_error" and "update() raised ValueError: no room" in reason(fused).sentence


def test_an_argument_of_another_layout(quick: fusion.FusionConfig) -> None:
    class Dense(Module):
        def forward(self, x: torch.Tensor) -> Any:
            return F.silu(x.to_dense()) * self.weight

    fused, eager, x = fusion.enable(Dense(item).eval(), quick), Dense(item).eval(), torch.eye(8).to_sparse()
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
