"""A forward that switches a mode of torch's around what its plan would call as it is, or leaves one switched."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from step_models import Block, rand
from tiny import no_grad, scopes
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import fusion


class FunctionMode(TorchFunctionMode):
    """Takes relu for silu, and counts."""

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        type(self).calls += 1
        return torch.relu(args[0]) if func is torch.nn.functional.silu else func(*args, **(kwargs or {}))


class DispatchMode(TorchDispatchMode):
    """Takes relu for silu."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return torch.relu(args[0]) if func is torch.ops.aten.silu.default else func(*args, **(kwargs or {}))


@contextlib.contextmanager
def in_double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


SWITCHES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "function mode": FunctionMode,
    "dispatch mode": DispatchMode,
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "gradients": torch.enable_grad,
    "inference mode": torch.inference_mode,
    "default dtype": in_double,
}


class Asking(torch.nn.Module):
    """A block whose result tells how torch is switched."""

    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        told = torch.is_grad_enabled() + 2 * torch.is_inference_mode_enabled() + 4 * torch.is_autocast_enabled("cpu")
        return self.block(x).float() + told + torch.ones(1).element_size()


class Model(torch.nn.Module):
    """Arithmetic around blocks, the second of which is called with something switched."""

    def __init__(self, switch: Callable[[], AbstractContextManager[Any]], block: Callable[[], torch.nn.Module]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(block() for _ in range(3))
        self.switch = switch

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(x * 0.5) + 1
        for number, layer in enumerate(self.layers):
            with self.switch() if number == 1 else contextlib.nullcontext():
                x = layer(x)
        return torch.sigmoid(x.float()) * 0.5


@pytest.mark.parametrize("block", [Block, Asking])
@pytest.mark.parametrize("switch", SWITCHES)
def test_blocks_are_called_as_the_forward_calls_them(
    quick: fusion.FusionConfig, switch: str, block: Callable[[], torch.nn.Module]
) -> None:
    eager = Model(SWITCHES[switch], block).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (4, 4, 4, 6, 6, 4):
        found, expected = no_grad(fused, rand(rows)), no_grad(eager, rand(rows))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        assert found.requires_grad == expected.requires_grad
    whole = scopes(fused)["Model"]
    refusal = next(iter(whole.refused.values()))
    assert refusal.code == "active_mode" and __file__.rpartition("/")[2] in refusal.origin
    assert switch.split()[-1] in refusal.sentence or "mode" in refusal.sentence


def test_a_device_that_is_the_default_already_changes_nothing(quick: fusion.FusionConfig) -> None:
    eager = Model(lambda: torch.device("cpu"), Block).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (4, 4, 4, 6):
        torch.testing.assert_close(no_grad(fused, rand(rows)), no_grad(eager, rand(rows)), rtol=1e-5, atol=1e-6)
    assert not scopes(fused)["Model"].refused and fusion.report(fused).scopes[-1].fused_calls > 0


def test_a_mode_of_the_users_sees_every_call(quick: fusion.FusionConfig) -> None:
    class Counting(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with FunctionMode():
                return torch.tanh(x * 0.5) + torch.sigmoid(x)

    eager = Counting().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    FunctionMode.calls = 0
    no_grad(eager, rand(4))
    alone = FunctionMode.calls
    for _ in range(4):
        FunctionMode.calls = 0
        no_grad(fused, rand(4))
        assert FunctionMode.calls == alone


@pytest.mark.parametrize("leave", ["gradients", "default dtype"])
def test_what_a_forward_leaves_switched(quick: fusion.FusionConfig, leave: str) -> None:
    class Leaving(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = torch.tanh(x * 0.5) + 1
            if leave == "gradients":
                torch.set_grad_enabled(True)
            else:
                torch.set_default_dtype(torch.float64)
            return y

    fused = fusion.enable(Leaving().eval(), quick)
    try:
        for _ in range(4):
            torch.set_grad_enabled(False)
            torch.set_default_dtype(torch.float32)
            fused(rand(4))
            assert torch.is_grad_enabled() == (leave == "gradients")
            assert torch.get_default_dtype() is (torch.float64 if leave == "default dtype" else torch.float32)
    finally:
        torch.set_grad_enabled(True)
        torch.set_default_dtype(torch.float32)


def test_what_a_block_leaves_switched_and_the_forward_puts_back(quick: fusion.FusionConfig) -> None:
    class Leaves(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = super().forward(x)
            torch.set_grad_enabled(True)
            return y

    class Guarded(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                with torch.no_grad():
                    x = layer(x)
            return torch.sigmoid(x) * 0.5

    eager = Guarded(torch.no_grad, Leaves).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (4, 4, 4, 6, 6, 4):
        with torch.no_grad():
            found, left = fused(rand(rows)), torch.is_grad_enabled()
            expected = eager(rand(rows))
            assert left == torch.is_grad_enabled()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert any("leaves it so" in refusal.sentence for refusal in scopes(fused)["Guarded"].refused.values())


@pytest.mark.parametrize("kept", [False, True])
def test_a_block_that_asks_for_gradients_itself(quick: fusion.FusionConfig, kept: bool) -> None:
    class Asks(Block):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.enable_grad():
                asked = x.detach().requires_grad_()
                y: torch.Tensor = super().forward(asked)
                (slope,) = torch.autograd.grad(y.sum(), asked, create_graph=kept)
            return slope

    class Last(Model):
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            for layer in self.layers:
                x = layer(x)
            return x, torch.sigmoid(x) * 0.5

    eager = Last(contextlib.nullcontext, Asks).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (4, 4, 4, 6, 6, 4):
        found, expected = no_grad(fused, rand(rows)), no_grad(eager, rand(rows))
        assert [t.requires_grad for t in found] == [t.requires_grad for t in expected] == [kept, False]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    whole = fusion.report(fused).scopes[-1]
    assert whole.reason.startswith("opaque_output") if kept else whole.fused_calls > 0
