"""Gradients, training, autocast, other modes and hooks: a scope steps aside."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from graphs import normal as rand
from pair import Block, Norm, Pair
from tiny import no_grad, planned

import fusion

# ---- modes


def test_calls_under_autograd_run_eagerly_and_give_gradients(pair: Pair) -> None:
    before = planned(pair.fused)
    x = rand(4, 16).requires_grad_()
    pair.fused(x).sum().backward()
    other = x.detach().clone().requires_grad_()
    pair.eager(other).sum().backward()
    assert torch.equal(x.grad, other.grad)
    assert torch.equal(pair.fused.gate.weight.grad, pair.eager.gate.weight.grad)
    assert planned(pair.fused) == before
    assert pair.scope.statistics.last_reason.code == "grad_enabled"
    pair.fused.zero_grad()
    pair.warm()


def test_training_mode(pair: Pair) -> None:
    before = planned(pair.fused)
    pair.fused.train()
    pair(rand(4, 16))
    assert planned(pair.fused) == before and pair.scope.statistics.last_reason.code == "training"
    pair.fused.eval()
    pair.warm()
    pair.fused.norm.train()
    before = planned(pair.fused)
    pair(rand(4, 16))
    assert planned(pair.fused) == before and pair.scope.statistics.last_reason.code == "training"


def test_dropout_in_training_mode_is_random(quick: fusion.FusionConfig) -> None:
    module = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Dropout(0.5)).eval()
    fusion.enable(module, quick)
    x = torch.ones(4, 64)
    for _ in range(3):
        assert torch.equal(no_grad(module, x), F.silu(x))
    module[1].train()
    first, second = no_grad(module, x), no_grad(module, x)
    assert not torch.equal(first, second) and (first == 0).any()
    module[1].eval()
    assert torch.equal(no_grad(module, x), F.silu(x))


def test_autocast(pair: Pair) -> None:
    x = rand(4, 16)
    before = planned(pair.fused)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found, eager = pair.fused(x), pair.eager(x)
    assert found.dtype == eager.dtype and torch.equal(found, eager)
    assert planned(pair.fused) == before and pair.scope.statistics.last_reason.code == "autocast"
    pair.warm()


def test_another_mode(pair: Pair) -> None:
    from torch.overrides import TorchFunctionMode
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils.flop_counter import FlopCounterMode

    class Functions(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    class Operators(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append(func)
            return func(*args, **(kwargs or {}))

    x = rand(4, 16)
    for mode in (Functions(), Operators()):
        seen: list[Any] = []
        before = planned(pair.fused)
        with mode, torch.no_grad():
            found = pair.fused(x)
        assert torch.equal(found, no_grad(pair.eager, x)) and len(seen) > 8
        assert planned(pair.fused) == before and pair.scope.statistics.last_reason.code == "active_mode"
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        pair.fused(x)
    assert counter.get_total_flops() == 2 * 2 * 4 * 16 * 16
    pair.warm()


def test_inference_mode_and_no_grad_take_turns(pair: Pair) -> None:
    for mode in (torch.inference_mode, torch.no_grad, torch.inference_mode, torch.no_grad):
        with mode():
            x = rand(4, 16)
            found = pair.fused(x)
            assert found.is_inference() == pair.eager(x).is_inference()
        with torch.no_grad():
            pair.fused(x)
    fresh = rand(4, 16)
    found = no_grad(pair.fused, fresh)
    assert not found.is_inference()
    (found.requires_grad_() * 2).sum().backward()


def test_vmap_and_functional_calls(pair: Pair) -> None:
    x = rand(2, 4, 16)
    with torch.no_grad():
        torch.testing.assert_close(torch.vmap(pair.fused)(x), torch.vmap(pair.eager)(x), rtol=1e-5, atol=1e-6)
        swapped = {"gate.weight": rand(16, 16, seed=4)}
        found = torch.func.functional_call(pair.fused, swapped, (x,))
        expected = torch.func.functional_call(pair.eager, swapped, (x,))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    pair.warm()


def test_a_subclass_argument(pair: Pair) -> None:
    class Tagged(torch.Tensor):
        pass

    x = rand(4, 16).as_subclass(Tagged)
    for _ in range(3):
        found, eager = no_grad(pair.fused, x), no_grad(pair.eager, x)
        assert type(found) is type(eager)
        torch.testing.assert_close(
            found.as_subclass(torch.Tensor), eager.as_subclass(torch.Tensor), rtol=1e-5, atol=1e-6
        )


# ---- hooks


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("where", ["", "norm", "gate"])
@pytest.mark.parametrize("pre", [False, True], ids=["forward", "pre"])
def test_hooks_run(when: str, where: str, pre: bool, quick: fusion.FusionConfig) -> None:
    pair = Pair(quick)
    if when == "after":
        pair.warm()

    def hook(module: Any, args: Any, *rest: Any) -> Any:
        return (args[0] * 2, *args[1:]) if pre else rest[0] * 2

    handles = []
    for module in (pair.eager, pair.fused):
        inner = module.get_submodule(where)
        handles.append(inner.register_forward_pre_hook(hook) if pre else inner.register_forward_hook(hook))
    for rows in (3, 4, 5, 4):
        pair(rand(rows, 16))
    for handle in handles:
        handle.remove()
    pair.warm()


def test_a_global_hook_runs(pair: Pair) -> None:
    calls: list[Any] = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda m, a, r: calls.append(type(m)))
    try:
        no_grad(pair.fused, rand(4, 16))
    finally:
        handle.remove()
    assert Norm in calls and Block in calls
    pair.warm()
