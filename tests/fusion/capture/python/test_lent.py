"""Lists and dicts that a forward hands to its layers: made anew by a plan, and watched."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tiny import no_grad, planned

import fusion
from fusion.runtime import call_log
from fusion.runtime.call_log import kept

ROWS = (3, 4, 5, 3, 4, 6)


def rand(rows: int, low: float = 0.0) -> torch.Tensor:
    return torch.rand(rows, 8, generator=torch.Generator().manual_seed(rows)) + low


class Layer(torch.nn.Module):
    """Reads what it is handed; counts its calls where a test can see them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, tables: dict[str, Any], states: list[Any]) -> torch.Tensor:
        cos, sin = tables["angles"]
        return F.silu(self.linear(x) * cos) * sin + states[-1] * tables["scale"]


class Writes(Layer):
    """Writes to what it is handed, in calls with large values at least."""

    calls = 0

    def __init__(self, always: bool = False) -> None:
        super().__init__()
        self.always = always

    def forward(self, x: torch.Tensor, tables: dict[str, Any], states: list[Any]) -> torch.Tensor:
        Writes.calls += 1
        y = super().forward(x, tables, states)
        if self.always or max(x.flatten().tolist()) > 3:
            tables["more"] = y * 2
            states.append(y + 1)
        return y


class Raises(Writes):
    """Writes and raises, in calls with large values."""

    def forward(self, x: torch.Tensor, tables: dict[str, Any], states: list[Any]) -> torch.Tensor:
        y = super().forward(x, tables, states)
        if "more" in tables:
            raise ValueError("too large")
        return y


class Model(torch.nn.Module):
    def __init__(self, last: torch.nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList([Layer(), Layer(), last])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.exp(x) * 0.1
        tables: dict[str, Any] = {"angles": (torch.cos(x) * 2, torch.sin(x) + 1), "scale": 0.5}
        states = [x]
        for layer in self.layers:
            try:
                x = layer(x, tables, states) + 0.1
            except ValueError:
                x = x * 3
        return torch.sigmoid(x) * states[-1] + tables.get("more", 1) + len(states)


def twins(last: torch.nn.Module, quick: fusion.FusionConfig) -> tuple[Any, Any]:
    model = Model(last).eval()
    return fusion.enable(copy.deepcopy(model), quick), model


def agree(fused: Any, eager: Any, x: torch.Tensor) -> None:
    """The same result, and each layer run once."""
    Writes.calls = 0
    expected = no_grad(eager, x)
    ran, Writes.calls = Writes.calls, 0
    torch.testing.assert_close(no_grad(fused, x), expected, rtol=1e-5, atol=1e-6)
    assert Writes.calls == ran


def test_layers_that_are_handed_a_dict_and_a_list(quick: fusion.FusionConfig) -> None:
    fused, eager = twins(Layer(), quick)
    for rows in (*ROWS, *ROWS):
        agree(fused, eager, rand(rows))
    before = planned(fused)
    assert set(before) == {"Model", "layers.0", "layers.1", "layers.2"}
    agree(fused, eager, rand(7))
    assert {name: count - before[name] for name, count in planned(fused).items()} == dict.fromkeys(before, 1)
    assert all(row.state == "fused" and not row.fallbacks for row in fusion.report(fused).scopes)


def test_a_layer_that_writes_to_them_leaves_the_forward_eager(quick: fusion.FusionConfig) -> None:
    fused, eager = twins(Writes(always=True), quick)
    for rows in (*ROWS, *ROWS):
        agree(fused, eager, rand(rows))
    row = {row.name: row for row in fusion.report(fused).scopes}["Model"]
    assert row.state == "eager" and "changes a list or dict it is given" in row.reason


@pytest.mark.parametrize("last", [Writes, Raises])
def test_a_layer_that_writes_to_them_now_and_then(last: Any, quick: fusion.FusionConfig) -> None:
    fused, eager = twins(last(), quick)
    for rows in (*ROWS, *ROWS):
        agree(fused, eager, rand(rows))
    assert planned(fused)["Model"], "no plan answered: the test would show nothing"
    for rows in (3, 4, 3):
        agree(fused, eager, rand(rows, low=4.0))
        agree(fused, eager, rand(rows))
    row = {row.name: row for row in fusion.report(fused).scopes}["Model"]
    assert row.fallbacks or last is Raises, "an error of a layer's own is no fallback"


class Twice(Model):
    """Hands one list over twice: what is written through one shows in the other."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.exp(x) * 0.1
        states = [x]
        return torch.sigmoid(self.layers[2](x, {"angles": (x, x), "scale": 1.0, "states": states}, states)) * 2


def test_one_list_handed_over_twice_is_left_to_eager(quick: fusion.FusionConfig) -> None:
    eager = Twice(Layer()).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (*ROWS, *ROWS):
        agree(fused, eager, rand(rows))
    row = {row.name: row for row in fusion.report(fused).scopes}["Twice"]
    assert row.state == "eager" and "a container, which it may change" in row.reason


class State(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


class Kinds(torch.nn.Module):
    """Goes by what kind of tuple it is given; returns one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, state: Any, size: Any, top: Any) -> Any:
        y = F.silu(self.linear(x)) * x + (state.y if isinstance(state, State) else 100)
        return State(y * size.numel(), torch.tanh(y) + top.values.unsqueeze(-1))


class Hands(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList([Kinds(), Kinds(), Kinds()])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = State(x * 0.5, torch.tanh(x) + 1)
        for layer in self.layers:
            state = layer(state.x * 0.1, state, state.x.shape, state.y.max(dim=-1))
        return torch.sigmoid(state.x) * state.y


def test_tuples_of_kinds_of_their_own_stay_what_they_are(quick: fusion.FusionConfig) -> None:
    eager = Hands().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (*ROWS, *ROWS):
        agree(fused, eager, rand(rows))
    before = planned(fused)
    agree(fused, eager, rand(4))
    assert {name: count - before[name] for name, count in planned(fused).items()} == dict.fromkeys(before, 1)
    assert all(row.state == "fused" and not row.fallbacks for row in fusion.report(fused).scopes)


class Odd(tuple):
    """A kind of tuple that nothing can make again."""


def test_what_a_call_changed_is_found_and_taken_over() -> None:
    theirs = ({"a": [1, 2]}, [3])
    mine = ({"a": [1, 2]}, [3])
    inner, outer = mine[0]["a"], mine[1]
    before = call_log.contents(theirs)
    assert call_log.unchanged(before) and call_log.noted("r", before) == "r"
    theirs[0]["b"] = theirs[1]
    theirs[0]["a"].append(4)
    found = call_log.noted("r", before)
    assert isinstance(found, call_log.LoggedContainerChange) and found.result == "r"
    call_log.take_over(mine, found.given)
    assert mine == theirs and mine[0]["a"] is inner and mine[0]["b"] is outer


@pytest.mark.parametrize("odd", [{(1, 2): 3}, {1}, [{2.0: 1}], (frozenset(), {1}), Odd((1, 2))])
def test_what_is_no_plain_nest(odd: Any) -> None:
    assert call_log.is_nest((1, [{"a": (None, [2])}], "text", State(1, [2]), torch.Size((3,))))
    assert not call_log.is_nest(odd)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(4.0).expand(3, 4),
        torch.arange(24.0).reshape(4, 6)[:, 1:3],
        torch.arange(6.0).reshape(2, 3).t(),
        torch.arange(6.0)[2:3].expand(5),
        torch.zeros(0, 3).expand(2, 0, 3),
    ],
)
def test_a_kept_tensor_has_its_strides_and_memory_of_its_own(tensor: torch.Tensor) -> None:
    copy = kept(tensor)
    assert copy.stride() == tensor.stride() and torch.equal(copy, tensor)
    assert copy.untyped_storage()._cdata != tensor.untyped_storage()._cdata
