"""What a forward finds inside the objects it is given: a plan looks again, and takes what is there then."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import normal as rand
from tiny import no_grad, planned, scopes

import fusion

WIDTH = 8


class Layer:
    """A layer's states, as a cache of recurrent models holds them."""

    def __init__(self) -> None:
        self.states: dict[int, torch.Tensor] = {0: torch.ones(2, WIDTH)}
        self.limit = 4


class Other(Layer):
    """Another kind of layer."""


class Store:
    """Layers, and an opaque call that overwrites a layer's state in place."""

    def __init__(self, kind: type = Layer, depth: int = 3) -> None:
        self.layers = [kind() for _ in range(depth)]
        self.extra = {"scale": torch.full((WIDTH,), 0.5), "pair": (torch.ones(WIDTH), 3), "on": True}
        self.steps = 0

    def put(self, value: torch.Tensor, layer: int) -> torch.Tensor:
        self.steps += 1
        self.layers[layer].states[0].copy_(value)
        return self.layers[layer].states[0]

    def count(self) -> int:
        return self.steps


fusion.register_island(Store, "put")
fusion.register_island(Store, "count", effect=False)


class Forward(torch.nn.Module):
    """Calls a function of (module, x, store); `layer` tells twins apart."""

    def __init__(self, function: Callable[..., torch.Tensor], layer: int = 0) -> None:
        super().__init__()
        self.function, self.layer = function, layer

    def forward(self, x: torch.Tensor, store: Store) -> torch.Tensor:
        return self.function(self, x, store)


def reads(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    state = store.layers[module.layer].states[0]
    return torch.sigmoid(x * 2) + state * store.extra["scale"]


def reads_pairs(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    weight, power = store.extra["pair"]
    return torch.tanh(x * weight) * power + 1 if store.extra.get("on") and "off" not in store.extra else x * 2


def reads_all(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    for layer in store.layers:
        x = torch.tanh(x + layer.states[0]) / len(store.layers)
    return x


def overwritten_natively(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    state = store.layers[module.layer].states[0]
    new = torch.tanh(state * 0.5 + x)
    now = store.put(new, module.layer)
    return torch.sigmoid(now) * 2 + new


def read_again(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    before = torch.exp(store.layers[module.layer].states[0] * 0.1)
    store.put(torch.tanh(before + x), module.layer)
    return before * store.layers[module.layer].states[0] + 1


def overwritten_by_operators(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    state = store.layers[module.layer].states[0]
    new = torch.tanh(state * 0.5 + x)
    state.copy_(new)
    return torch.sigmoid(new) * 2 + store.count()


PLANNED = [reads, reads_pairs, reads_all, overwritten_natively, read_again, overwritten_by_operators]


def used_after_it_is_overwritten(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    state = store.layers[module.layer].states[0]
    view = state.t()
    store.put(torch.tanh(state + x), module.layer)
    return torch.sigmoid(x) + view.t() * 2


def written_both_ways(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    state = store.layers[module.layer].states[0]
    state.mul_(0.5)
    return torch.sigmoid(store.put(torch.tanh(state + x), module.layer)) * 2


def sets_an_item(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    states = store.layers[module.layer].states
    states[0] = torch.tanh(states[0] + x)
    return torch.sigmoid(states[0]) * 2


def sorts(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    for layer in sorted(store.layers[1:], key=lambda layer: layer.limit):
        x = torch.tanh(x + layer.states[0])
    return x * 2


def sets_an_attribute(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    store.layers[0].limit += 1
    return torch.sigmoid(x) * store.layers[0].limit


def catches(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    try:
        return torch.sigmoid(x) * store.extra["missing"]
    except KeyError:
        return torch.tanh(x) * 2


def asks_for_the_class(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    return torch.sigmoid(x) * (3 if type(store.layers) is list else 2)


def _is_list(value: Any) -> bool:
    return type(value) in (list, tuple)


def has_the_class_asked_for(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    return torch.sigmoid(x) * (3 if _is_list(store.layers) else 2) * store.layers[0].limit


def hands_out(module: Any, x: torch.Tensor, store: Store) -> Any:
    return torch.sigmoid(x) * 2, store.layers[0].states


REFUSED = [
    used_after_it_is_overwritten, written_both_ways, sets_an_item, sorts, sets_an_attribute, catches, hands_out,
    asks_for_the_class, has_the_class_asked_for,
]  # fmt: skip


def check(fused: torch.nn.Module, eager: torch.nn.Module, mine: Store, theirs: Store, x: torch.Tensor) -> None:
    """One call of both: equal results, and equal stores afterwards."""
    found, expected = no_grad(fused, x, mine), no_grad(eager, x, theirs)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert mine.steps == theirs.steps
    for a, b in zip(mine.layers, theirs.layers, strict=True):
        assert a.limit == b.limit and type(a.states) is dict
        torch.testing.assert_close(a.states[0], b.states[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("function", PLANNED, ids=lambda f: f.__name__)
def test_what_is_found_inside_an_object(function: Any, quick: fusion.FusionConfig) -> None:
    eager = Forward(function).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for start in range(3):
        mine, theirs = Store(), Store()
        for step in range(4):
            check(fused, eager, mine, theirs, rand(2, WIDTH, seed=10 * start + step))
    (scope,) = scopes(fused).values()
    assert planned(fused)["Forward"] >= 9 and scope.statistics.recordings == 1, scope.statistics
    assert any(known.plans and known.template.partition.regions for known in scope.known)


@pytest.mark.parametrize("function", REFUSED, ids=lambda f: f.__name__)
def test_what_no_plan_can_do_again_stays_eager(function: Any, quick: fusion.FusionConfig) -> None:
    eager = Forward(function).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for start in range(2):
        mine, theirs = Store(), Store()
        for step in range(4):
            check(fused, eager, mine, theirs, rand(2, WIDTH, seed=10 * start + step))
    assert planned(fused)["Forward"] == 0
    assert fusion.report(fused).scopes[0].reason


class Part(torch.nn.Module):
    """A layer of a model, which finds its state by its number."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(WIDTH, WIDTH)
        self.layer = layer

    def forward(self, x: torch.Tensor, store: Store) -> torch.Tensor:
        return overwritten_natively(self, self.inner(x), store)


class Stack(torch.nn.Module):
    """Several of them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(map(Part, range(3)))

    def forward(self, x: torch.Tensor, store: Store) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, store)
        return x


def test_twins_take_their_own_items(quick: fusion.FusionConfig, followed: list[bool]) -> None:
    eager = Stack().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for _ in range(3):
        mine, theirs = Store(), Store()
        for step in range(4):
            check(fused, eager, mine, theirs, rand(2, WIDTH, seed=step))
    layers = [scope for name, scope in scopes(fused).items() if name.startswith("layers.")]
    assert len(layers) == 3
    assert followed == [True, True]
    assert all(scope.statistics.planned[0] >= 9 for scope in layers)


def depends_on_the_class(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
    layer = store.layers[0]
    return torch.sigmoid(x) * (3 if isinstance(layer, Other) else 2) + layer.limit


def test_another_class_inside_is_another_call(quick: fusion.FusionConfig) -> None:
    eager = Forward(depends_on_the_class).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for kind in (Layer, Layer, Layer, Other, Layer, Other, Other):
        check(fused, eager, Store(kind), Store(kind), rand(2, WIDTH))
    assert planned(fused)["Forward"] >= 3


def test_another_value_inside_is_another_call(quick: fusion.FusionConfig) -> None:
    eager = Forward(reads_pairs).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for power, on in ((3, True), (3, True), (3, True), (4, True), (3, False), (4, True), (3, True)):
        mine, theirs = Store(), Store()
        for store in (mine, theirs):
            store.extra |= {"pair": (torch.ones(WIDTH), power), "on": on}
        check(fused, eager, mine, theirs, rand(2, WIDTH))
    assert planned(fused)["Forward"] >= 3


class Fails(Store):
    """Tells another count after some effects, which ends a plan that is half done."""

    def count(self) -> int:
        return self.steps % 3


fusion.register_island(Fails, "count", effect=False)


@pytest.mark.parametrize("write", ["natively", "by operators"])
def test_a_plan_that_ends_half_way_leaves_what_eager_leaves(write: str, quick: fusion.FusionConfig) -> None:
    def function(module: Any, x: torch.Tensor, store: Store) -> torch.Tensor:
        state = store.layers[0].states[0]
        new = torch.tanh(state * 0.5 + x)
        if write == "by operators":
            state.copy_(new)
            store.put(new, 1)
        else:
            store.put(new, 0)
        return torch.sigmoid(new) * (2 if store.count() == 1 else 3) + torch.exp(new)

    eager = Forward(function).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    mine, theirs = Fails(), Fails()
    for step in range(14):
        check(fused, eager, mine, theirs, rand(2, WIDTH, seed=step))
    (scope,) = scopes(fused).values()
    assert scope.statistics.fallbacks and planned(fused)["Forward"], scope.statistics
