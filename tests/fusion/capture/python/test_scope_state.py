"""State that a module keeps elsewhere than in its attributes: a change after recording counts."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import no_grad, planned, scopes

import fusion


class Scales(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


class Slotted:
    __slots__ = ("scale",)

    def __init__(self) -> None:
        self.scale = 2.0


class Calls(torch.nn.Module):
    """Calls what a test puts somewhere."""

    def __init__(self, call: Callable[..., Any], held: Any = None) -> None:
        super().__init__()
        self.held = held
        self.call = call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(self, torch.exp(x) + 1).tanh() * 2


def rand(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed)) - 2


def _raise(inner: Any) -> Callable[[], None]:
    return lambda: setattr(inner, "scale", inner.scale + 1)


def in_a_list() -> tuple[Any, Any]:
    inner = Scales()
    return Calls(lambda m, x: m.held[0](x), [inner]), _raise(inner)


def deep_inside() -> tuple[Any, Any]:
    inner = Scales()
    return Calls(lambda m, x: m.held["a"][1][0](x), {"a": (1, torch.nn.Sequential(inner))}), _raise(inner)


def in_a_closure() -> tuple[Any, Any]:
    inner = Scales()
    return Calls(lambda m, x: inner(x)), _raise(inner)


ELSEWHERE = {"inner": Scales()}


def in_a_global() -> tuple[Any, Any]:
    return Calls(lambda m, x: ELSEWHERE["inner"](x)), _raise(ELSEWHERE["inner"])


def weights_in_a_list() -> tuple[Any, Any]:
    torch.manual_seed(0)
    inner = torch.nn.Linear(8, 8)
    return Calls(lambda m, x: m.held[0](x), [inner]), lambda: inner.weight.data.mul_(2)


def bound_method() -> tuple[Any, Any]:
    inner = Scales()
    return Calls(lambda m, x: m.held(x), inner.forward), _raise(inner)


def partial_arguments() -> tuple[Any, Any]:
    inner = Scales()
    return Calls(lambda m, x: m.held(x), functools.partial(lambda x, inner: x * inner.scale, inner=inner)), _raise(
        inner
    )


def default_arguments() -> tuple[Any, Any]:
    inner = Scales()

    def held(x: torch.Tensor, *, inner: Scales = inner) -> torch.Tensor:
        return x * inner.scale

    return Calls(lambda m, x: m.held(x), held), _raise(inner)


def slots() -> tuple[Any, Any]:
    inner = Slotted()
    return Calls(lambda m, x: x * m.held.scale, inner), _raise(inner)


def class_attribute() -> tuple[Any, Any]:
    class Own:
        scale = 2.0

    return Calls(lambda m, x: x * m.held.scale, Own()), _raise(Own)


def members_of_a_set() -> tuple[Any, Any]:
    held = {1}

    def change() -> None:
        held.symmetric_difference_update({1, 2})

    return Calls(lambda m, x: x * (2.0 if 1 in m.held else 3.0), held), change


@pytest.mark.parametrize(
    ("make", "fuses"),
    [
        (in_a_list, True), (deep_inside, True), (in_a_closure, True), (in_a_global, False), (weights_in_a_list, False),
        (bound_method, True), (partial_arguments, True), (default_arguments, True), (slots, True),
        (class_attribute, True), (members_of_a_set, True),
    ],
)  # fmt: skip
def test_state_held_elsewhere_changes(make: Any, fuses: bool, quick: fusion.FusionConfig) -> None:
    eager, change = make()
    model = fusion.enable(eager.eval(), quick)
    for turn in range(4):
        for rows in (3, 4, 3, 5):
            x = rand(rows, turn)
            expected = no_grad(Calls.forward, model, x)
            torch.testing.assert_close(no_grad(model, x), expected, rtol=1e-5, atol=1e-6)
        change()
    (scope, *_) = scopes(model).values()
    assert bool(planned(model)["Calls"]) == fuses, (scope.refused, scope.statistics)


class MakesItsOwn(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.Softmax(dim=-1)(torch.exp(x) + 1) * 2


def test_a_module_that_the_forward_makes(quick: fusion.FusionConfig) -> None:
    model, eager = fusion.enable(MakesItsOwn().eval(), quick), MakesItsOwn().eval()
    for rows in (3, 4, 3, 5):
        x = rand(rows, 0)
        torch.testing.assert_close(no_grad(model, x), no_grad(eager, x), rtol=1e-5, atol=1e-6)
    assert planned(model)["MakesItsOwn"] >= 2


_LIBRARY = """
import torch

class Wave(torch.nn.Module):
    def forward(self, x):
        return torch.sin(x) * 2

class Weighted(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(8))

    def forward(self, x):
        return x * self.weight

wave, weighted = Wave(), Weighted()

class Head(torch.nn.Module):
    def forward(self, x, weigh=False):
        return (weighted if weigh else wave)(torch.exp(x)) + 1
"""


@pytest.fixture
def library(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An installed library that keeps modules as globals."""
    folder, name = tmp_path / "site-packages", "keeps_modules_as_globals"
    folder.mkdir()
    (folder / f"{name}.py").write_text(_LIBRARY)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)


def test_a_module_that_a_library_uses_as_a_function_is_looked_into(library: Any, quick: fusion.FusionConfig) -> None:
    eager = library.Head().eval()
    fused = fusion.enable(library.Head().eval(), quick)
    for turn, rows in enumerate((3, 3, 5, 5, 4, 4)):
        x = rand(rows, turn)
        torch.testing.assert_close(no_grad(fused, x), no_grad(eager, x), rtol=1e-5, atol=1e-6)
    report = fusion.report(fused).scopes[0]
    assert report.fused_calls >= 3 and {r.ops for r in report.regions} == {("exp", "sin", "mul", "add")}


def hooks(library: Any) -> None:
    library.wave.register_forward_hook(lambda module, given, result: result + 10)


def other_forward(library: Any) -> None:
    library.Wave.forward = lambda module, x: torch.cos(x) * 3


@pytest.mark.parametrize("change", [hooks, other_forward], ids=lambda f: f.__name__)
def test_a_module_that_a_library_uses_as_a_function_changes(
    change: Any, library: Any, quick: fusion.FusionConfig
) -> None:
    eager = library.Head().eval()
    fused = fusion.enable(library.Head().eval(), quick)

    def check() -> None:
        for turn, rows in enumerate((3, 3, 5, 5)):
            x = rand(rows, turn)
            torch.testing.assert_close(no_grad(fused, x), no_grad(eager, x), rtol=1e-5, atol=1e-6)

    check()
    before = planned(fused)["Head"]
    assert before >= 2
    change(library)
    check()
    after = planned(fused)["Head"]
    assert after > before if change is other_forward else after == before


def test_a_module_with_weights_or_of_the_users_is_no_function(library: Any, quick: fusion.FusionConfig) -> None:
    class Mine(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return library.wave(torch.exp(x)) + 1

    for model, arguments in ((library.Head(), (True,)), (Mine(), ())):
        fused = fusion.enable(model.eval(), quick)
        for turn in range(4):
            no_grad(fused, rand(3, turn), *arguments)
        report = fusion.report(fused).scopes[0]
        assert report.fused_calls == 0 and "that no module of the scope holds" in report.reason
