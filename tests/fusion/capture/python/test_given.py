"""Dicts that a call is given and sets items of: a plan sets the same ones, once, last, and only where that is sound."""

from __future__ import annotations

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tiny import no_grad, planned, scopes

import fusion

pytestmark = pytest.mark.usefixtures("without_gradients")

ROWS = (3, 4, 5, 3, 4, 6)


def rand(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(10 * seed + rows))


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


def alike(found: Any, expected: Any) -> None:
    """Two dicts with the same keys in the same order, and equal values of the same types."""
    assert type(found) is type(expected) and list(found) == list(expected)
    for key, value in expected.items():
        if isinstance(value, (dict, collections.UserDict)):
            alike(found[key], value)
        else:
            assert type(found[key]) is type(value)
            close(found[key], value)


def one(x: torch.Tensor, given: Any) -> torch.Tensor:
    y = torch.exp(x) * 2
    given["y"] = y + 1
    return y.tanh() * 3


def several(x: torch.Tensor, given: Any) -> torch.Tensor:
    y = torch.sigmoid(x) * given["scale"]
    given["pair"] = (y, (y * 2).exp())
    given[3] = x
    given["rows"] = x.shape[0]
    given["scale"] = y.amax() + 1
    return y + 1


def nested(x: torch.Tensor, given: Any) -> torch.Tensor:
    y = torch.exp(x) * given["inner"]["factor"]
    given["inner"]["y"] = y
    return y.tanh() + 1


KINDS = {"dict": dict, "UserDict": collections.UserDict}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("function", [one, several, nested])
def test_items_are_set(kind: str, function: Callable[..., Any], quick: fusion.FusionConfig) -> None:
    fused = fusion.fuse(function, quick)

    def fresh() -> Any:
        inner = KINDS[kind](factor=torch.tensor(0.5))
        return KINDS[kind](scale=torch.tensor(2.0), inner=inner, other=torch.ones(2))

    for rows in ROWS:
        mine, theirs = fresh(), fresh()
        before = {k: v for k, v in mine.items() if k not in ("scale",)}
        close(fused(rand(rows), mine), function(rand(rows), theirs))
        alike(mine, theirs)
        assert all(mine[k] is v for k, v in before.items()), "what is not set stays the same object"
    (row,) = fusion.report(fused).scopes
    assert (row.fused_calls, row.fallbacks, row.state) == (len(ROWS) - 2, 0, "fused"), row.reason


def test_a_dict_that_is_kept_between_calls(quick: fusion.FusionConfig) -> None:
    fused = fusion.fuse(one, quick)
    mine, theirs = {}, {}
    for rows in (*ROWS, *ROWS):
        close(fused(rand(rows), mine), one(rand(rows), theirs))
        alike(mine, theirs)
    (row,) = fusion.report(fused).scopes
    assert row.fused_calls >= len(ROWS) and row.state == "fused"


def deletes(x: torch.Tensor, given: Any, _: Any) -> torch.Tensor:
    given.pop("old", None)
    return torch.exp(x) * 2 + 1


def moves(x: torch.Tensor, given: Any, _: Any) -> torch.Tensor:
    given["first"] = given.pop("first")
    return torch.exp(x) * 2 + 1


def puts_a_list(x: torch.Tensor, given: Any, _: Any) -> torch.Tensor:
    given["new"] = [x]
    return torch.exp(x) * 2 + 1


def grows_a_list(x: torch.Tensor, given: Any, held: list[Any]) -> torch.Tensor:
    given["new"] = x * 2
    held.append([])
    return torch.exp(x) * 2 + 1


def an_odd_key(x: torch.Tensor, given: Any, _: Any) -> torch.Tensor:
    given["k", 1] = x * 2
    return torch.exp(x) * 2 + 1


@pytest.mark.parametrize("function", [deletes, moves, puts_a_list, grows_a_list, an_odd_key])
def test_other_changes_are_left_to_eager(function: Callable[..., Any], quick: fusion.FusionConfig) -> None:
    fused = fusion.fuse(function, quick)
    for rows in ROWS:
        (mine, my_list), (theirs, their_list) = (({"first": rand(2), "old": rand(2)}, []) for _ in range(2))
        close(fused(rand(rows), mine, my_list), function(rand(rows), theirs, their_list))
        assert list(mine) == list(theirs) and my_list == their_list
        assert type(mine.get("new")) is type(theirs.get("new"))
    (row,) = fusion.report(fused).scopes
    assert row.state == "eager" and "python_state" in row.reason


def two(x: torch.Tensor, first: dict[str, Any], second: dict[str, Any]) -> torch.Tensor:
    first["y"] = torch.exp(x) * 2
    return first["y"] * 3 + second.get("y", 1)


def test_two_dicts_and_one_dict_twice(quick: fusion.FusionConfig) -> None:
    fused = fusion.fuse(two, quick)
    for rows in ROWS:
        mine, theirs = ({}, {}), ({}, {})
        close(fused(rand(rows), *mine), two(rand(rows), *theirs))
        alike(mine[0], theirs[0])
        assert not mine[1]
    assert fusion.report(fused).scopes[0].fused_calls == len(ROWS) - 2
    for rows in ROWS:
        mine, theirs = {}, {}
        close(fused(rand(rows), mine, mine), two(rand(rows), theirs, theirs))
        alike(mine, theirs)
    assert fusion.report(fused).scopes[0].fused_calls == len(ROWS) - 2, "one dict twice is another call"


def test_a_size_comes_out_as_a_number_of_a_refused_call(quick: fusion.FusionConfig) -> None:
    @fusion.fuse(config=quick)
    def call(x: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        given["rows"] = x.shape[0]
        given["list"] = [x.shape[0]]
        return torch.exp(x) * 2

    for rows in ROWS:
        given: dict[str, Any] = {}
        call(rand(rows), given)
        assert type(given["rows"]) is int and type(given["list"][0]) is int and given["rows"] == rows


def test_a_plan_that_fails_has_set_nothing(quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    class Sets(torch.nn.Module):
        def forward(self, x: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
            return one(x, given)

    model = fusion.enable(Sets().eval(), quick)
    for rows in ROWS:
        no_grad(model, rand(rows), {})
    assert planned(model)["Sets"]
    seen: list[list[str]] = []
    mine: dict[str, Any] = {}

    def broken(*_: Any) -> Any:
        seen.append(list(mine))
        raise RuntimeError("launch failed")

    (scope,) = scopes(model).values()
    for known in scope.known:
        for _, plan in known.plans.values():
            monkeypatch.setitem(plan.run.__globals__, "kernel0", broken)
    theirs: dict[str, Any] = {}
    close(no_grad(model, rand(4), mine), one(rand(4), theirs))
    alike(mine, theirs)
    assert seen == [[]]


class Layer(torch.nn.Module):
    """Shares what it computes, or reads what an earlier layer shared."""

    def __init__(self, reads: bool) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)
        self.reads = reads

    def forward(self, x: torch.Tensor, shared: Any) -> torch.Tensor:
        if self.reads:
            state, _ = shared["state"]
        else:
            state = torch.tanh(self.linear(x) * 2)
            shared["state"] = (state, state + 1)
        return F.silu(x) * state + x


class Shares(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList([Layer(False), Layer(True), Layer(True)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shared = collections.UserDict()
        x = torch.exp(x) * 0.1
        for layer in self.layers:
            x = layer(x, shared)
        return torch.sigmoid(x) * 2


def test_layers_that_share_states(quick: fusion.FusionConfig) -> None:
    fused, eager = fusion.enable(Shares().eval(), quick), Shares().eval()
    for rows in (*ROWS, *ROWS):
        close(no_grad(fused, rand(rows)), no_grad(eager, rand(rows)))
    before = planned(fused)
    assert set(before) == {"Shares", "layers.0", "layers.1", "layers.2"}
    close(no_grad(fused, rand(7)), no_grad(eager, rand(7)))
    assert {name: count - before[name] for name, count in planned(fused).items()} == dict.fromkeys(before, 1)
    assert all(row.state == "fused" and not row.fallbacks for row in fusion.report(fused).scopes)


class Peeks(Shares):
    """Its forward looks into what the layers share."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shared = collections.UserDict()
        for layer in self.layers:
            x = layer(x, shared)
        return torch.sigmoid(x) * shared["state"][1]


def test_a_forward_that_looks_at_what_its_layers_share(quick: fusion.FusionConfig) -> None:
    fused, eager = fusion.enable(Peeks().eval(), quick), Peeks().eval()
    for rows in (*ROWS, *ROWS):
        close(no_grad(fused, rand(rows)), no_grad(eager, rand(rows)))
    assert planned(fused)["Peeks"] >= 2 * len(ROWS) - 3
