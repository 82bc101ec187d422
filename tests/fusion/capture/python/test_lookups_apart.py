"""What was apart when a call was recorded, and is one and the same in a later call: tensors and objects that are found
inside objects, what is given beside them, and what the forward writes to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import normal as rand
from tiny import no_grad, planned, scopes

import fusion
from fusion.runtime.aliasing import Memory, storages

WIDTH = 8


class Layer:
    """A layer's states."""

    def __init__(self, number: int) -> None:
        self.state = torch.full((2, WIDTH), 0.5 + number)
        self.scale = torch.linspace(0.5, 1.5, WIDTH)


class Store:
    """Layers, an opaque call that writes to one of them, and one that writes and says nothing of where."""

    def __init__(self) -> None:
        self.layers = [Layer(number) for number in range(3)]
        self.hidden = torch.zeros(2, WIDTH)

    def put(self, value: torch.Tensor, layer: int) -> torch.Tensor:
        self.layers[layer].state.copy_(value)
        return self.layers[layer].state

    def keep(self, value: torch.Tensor) -> None:
        self.hidden.copy_(value)


fusion.register_island(Store, "put")
fusion.register_island(Store, "keep")


class Forward(torch.nn.Module):
    """Calls a function of (module, x, store)."""

    def __init__(self, function: Callable[..., torch.Tensor]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("shift", torch.linspace(-1, 1, 2 * WIDTH).reshape(2, WIDTH))

    def forward(self, x: torch.Tensor, store: Store) -> torch.Tensor:
        return self.function(self, x, store)


def writes_a_state(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    state = store.layers[0].state
    y = torch.tanh(x)
    state.mul_(0.5)
    return y * 2 + state * 3


def reads_another_state(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    state, other = store.layers[0].state, store.layers[1].state
    y = torch.tanh(other + x)
    state.mul_(0.5)
    return y * 2 + other


def writes_what_is_given(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    y = torch.tanh(store.layers[0].state)
    x.add_(1)
    return y * 2 + x


def reads_a_buffer(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    state = store.layers[0].state
    y = torch.tanh(module.shift + x)
    state.mul_(0.5)
    return y * 2 + state


def overwritten_natively(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    state, other = store.layers[0].state, store.layers[1].state
    y = torch.tanh(x) + torch.sigmoid(other)
    now = store.put(torch.tanh(state + x), 0)
    return y * 2 + now


def overwritten_out_of_sight(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    y = torch.tanh(store.layers[0].state)
    store.keep(x)
    return y * 2 + x


def is_one_object(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    return torch.tanh(x) * (2 if store.layers[0] is store.layers[1] else 3)


def is_one_tensor(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    return torch.tanh(x) * (2 if store.layers[0].scale is store.layers[1].scale else 3)


def is_what_is_given(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    return torch.tanh(x) * (2 if store.layers[0].state is x else 3)


def gives_the_state(store: Store) -> torch.Tensor:
    return store.layers[0].state


def gives_a_view(store: Store) -> torch.Tensor:
    return store.layers[0].state.view(2, WIDTH)


def one_state(store: Store) -> None:
    store.layers[1].state = store.layers[0].state


def one_memory(store: Store) -> None:
    store.layers[1].state = store.layers[0].state.view(2, WIDTH)


def one_layer(store: Store) -> None:
    store.layers[1] = store.layers[0]


def one_scale(store: Store) -> None:
    store.layers[1].scale = store.layers[0].scale


def hidden_is_found(store: Store) -> None:
    store.hidden = store.layers[0].state


CASES: list[tuple[Callable[..., Any], Callable[[Store], Any]]] = [
    (writes_a_state, gives_the_state), (writes_a_state, gives_a_view), (writes_what_is_given, gives_a_view),
    (reads_another_state, one_state), (reads_another_state, one_memory), (reads_another_state, one_layer),
    (overwritten_natively, gives_a_view), (overwritten_natively, one_memory), (overwritten_natively, one_layer),
    (overwritten_out_of_sight, hidden_is_found), (is_one_object, one_layer), (is_one_tensor, one_scale),
    (is_what_is_given, gives_the_state),
]  # fmt: skip


def _compare(fused: Any, eager: Any, mine: Store, theirs: Store, given: Callable[[Store], Any], step: int) -> None:
    """One call of both, each with its own store: equal results, equal stores."""
    x = rand(2, WIDTH, seed=step)
    found, expected = (
        no_grad(model, tensor if isinstance(tensor := given(store), torch.Tensor) else x.clone(), store)
        for model, store in ((fused, mine), (eager, theirs))
    )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(mine.layers, theirs.layers, strict=True):
        torch.testing.assert_close(a.state, b.state, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(mine.hidden, theirs.hidden, rtol=1e-5, atol=1e-5)


def _name(case: Any) -> str:
    return str(case.__name__)


@pytest.mark.parametrize("order", ["apart first", "together first"])
@pytest.mark.parametrize(("function", "together"), CASES, ids=_name)
def test_what_was_apart_comes_together(function: Any, together: Any, order: str, quick: fusion.FusionConfig) -> None:
    eager = Forward(function).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    phases: list[Callable[[Store], Any]] = [lambda store: None, together]
    for given in phases if order == "apart first" else [*phases[::-1], phases[1]]:
        before = planned(fused)["Forward"]
        for start in range(2):
            mine, theirs = Store(), Store()
            for step in range(4):
                _compare(fused, eager, mine, theirs, given, 10 * start + step)
        if given is phases[0] and order == "apart first":
            assert planned(fused)["Forward"] - before >= 5, scopes(fused)["Forward"].statistics
            assert any(known.plans and known.template.partition.regions for known in scopes(fused)["Forward"].known)


def test_a_state_that_becomes_a_buffer(quick: fusion.FusionConfig) -> None:
    eager = Forward(reads_a_buffer).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    mine, theirs = Store(), Store()
    for step in range(8):
        if step == 4:
            mine.layers[0].state, theirs.layers[0].state = fused.shift, eager.shift
        _compare(fused, eager, mine, theirs, lambda store: None, step)
        torch.testing.assert_close(fused.shift, eager.shift)
    assert planned(fused)["Forward"] >= 3


def test_memory_is_admitted_to_its_own_group_alone() -> None:
    written, other, held, new = torch.zeros(4), torch.zeros(4), torch.zeros(4), torch.zeros(4)
    memory = Memory(((written,), ()), (other,), storages([held]))
    assert memory.may_alias(written[1:], 0) and not memory.may_alias(written, 1) and not memory.may_alias(written, -1)
    assert memory.may_alias(other, -1) and not memory.may_alias(other, 0)
    assert memory.may_alias(held, -1) and not Memory(((), ()), (), storages([held])).may_alias(held, 0)
    assert memory.may_alias(new, 1) and memory.may_alias(new[:2], 1) and not memory.may_alias(new, -1)
