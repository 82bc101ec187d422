"""Functions under fusion: nested arguments and results, what they find outside, recordings by hand."""

from __future__ import annotations

import collections
import dataclasses
import functools
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from tiny import no_grad

import fusion
from fusion.patterns.errors import FusionError, StructureMismatch
from fusion.runtime.pytrees import flatten

pytestmark = pytest.mark.usefixtures("without_gradients")

ROWS = (3, 4, 5, 3, 4)
WITHIN = 16 * torch.finfo(torch.float32).eps  # some roundings, relative to the largest value
WEIGHT = torch.linspace(0.5, 2.0, 8)
SCALE = 2.0


def rand(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


def same(found: Any, expected: Any) -> None:
    (ours, tree), (theirs, wanted) = flatten(found), flatten(expected)
    assert tree == wanted
    for a, b in zip(ours, theirs, strict=True):
        if isinstance(b, torch.Tensor):
            assert (a.dtype, a.shape, a.stride()) == (b.dtype, b.shape, b.stride())
            torch.testing.assert_close(a, b, rtol=0, atol=WITHIN * max(1.0, float(b.abs().max())))
        else:
            assert a == b


def ran_fused(function: Any, calls: int) -> None:
    (row,) = fusion.report(function).scopes
    assert (row.fused_calls, row.fallbacks, row.state) == (calls, 0, "fused"), row.reason
    assert fusion.kernels_in_use(function)


@dataclasses.dataclass
class Inputs:
    x: torch.Tensor
    factor: float
    more: Any = None


@dataclasses.dataclass(frozen=True, slots=True)
class Frozen:
    x: torch.Tensor
    parts: tuple[torch.Tensor, ...]


class Pair(NamedTuple):
    first: torch.Tensor
    second: float


def dataclass_in_and_out(given: Inputs, frozen: Frozen) -> Any:
    return Inputs(torch.exp(given.x) * given.factor + 1, 3.0, {"k": [torch.sigmoid(frozen.x) * 2 + frozen.parts[0]]})


def tuples_and_mappings(pair: Pair, user: Any, ordered: Any, *, flag: bool = True) -> Any:
    y = torch.exp(pair.first) * pair.second + (1 if flag else 2)
    return Pair(y, 2.0), collections.OrderedDict(z=user["w"] * 2 + ordered["w"]), Frozen(pair.first, (y,))


def any_number(*tensors: torch.Tensor, **named: torch.Tensor) -> Any:
    return sum(tensors) * 2 + named["z"], tensors[0], [tensors[0], None, "text"]


def nests(rows: int) -> list[tuple[Any, tuple[Any, ...], dict[str, Any]]]:
    x, y = rand(rows), rand(rows, 1)
    return [
        (dataclass_in_and_out, (Inputs(x, 2.0), Frozen(y, (x, y))), {}),
        (tuples_and_mappings, (Pair(x, 0.5), collections.UserDict(w=y), collections.OrderedDict(w=x)), {}),
        (tuples_and_mappings, (Pair(x, 0.5), collections.UserDict(w=y), collections.OrderedDict(w=x)), {"flag": False}),
        (any_number, (x, y), {"z": x}),
    ]


@pytest.mark.parametrize("which", range(4))
def test_nests_go_in_and_come_out(which: int, quick: fusion.FusionConfig) -> None:
    fused = fusion.fuse(nests(2)[which][0], quick)
    for rows in ROWS:
        function, args, kwargs = nests(rows)[which]
        same(fused(*args, **kwargs), function(*args, **kwargs))
    ran_fused(fused, len(ROWS) - 2)


def test_arguments_come_back_as_themselves(quick: fusion.FusionConfig) -> None:
    @fusion.fuse(config=quick)
    def call(x: torch.Tensor, held: list[Any], named: dict[str, Any]) -> Any:
        return held, named, torch.exp(x) * held[0] + 1, x

    for rows in ROWS:
        x, held, named = rand(rows), [rand(rows, 1)], {"a": rand(rows, 2)}
        found = call(x, held, named)
        assert found[0] is held and found[1] is named and found[3] is x
    ran_fused(call, len(ROWS) - 2)


def test_plain_leaves_are_conditions(quick: fusion.FusionConfig) -> None:
    @fusion.fuse(config=quick)
    def call(x: torch.Tensor, mode: Any = None) -> Any:
        y = torch.exp(x) * 2 + 1
        return y if mode is None else y * mode if mode == mode else y - 1

    def expected(x: torch.Tensor, mode: Any) -> Any:
        y = torch.exp(x) * 2 + 1
        return y if mode is None else y * mode if mode == mode else y - 1

    for mode in (None, 2, 2.0, True, float("nan")):
        before = fusion.report(call).scopes[0].fused_calls
        for rows in ROWS:
            same(call(rand(rows), mode), expected(rand(rows), mode))
        assert fusion.report(call).scopes[0].fused_calls == before + len(ROWS) - 2, mode


# ---- what a function finds outside


def with_globals(x: torch.Tensor) -> torch.Tensor:
    return helper(F.silu(x) * WEIGHT) + 1


def helper(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(-x) * SCALE


def test_global_names_are_watched(quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    fused = fusion.fuse(with_globals, quick)

    def several() -> None:
        for rows in ROWS:
            same(fused(rand(rows)), with_globals(rand(rows)))

    several()
    ran_fused(fused, len(ROWS) - 2)
    for name, value in (("WEIGHT", torch.ones(8)), ("SCALE", 5.0), ("helper", lambda x: x * 3 - 1)):
        monkeypatch.setitem(with_globals.__globals__, name, value)
        several()
    ran_fused(fused, 4 * (len(ROWS) - 2))


def test_closures_are_watched(quick: fusion.FusionConfig) -> None:
    net = torch.nn.Linear(8, 8).requires_grad_(False).eval()
    weight, scale = torch.ones(8), 2.0

    def call(x: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(net(x)) * weight * scale + 1

    fused = fusion.fuse(call, quick)
    for change in range(3):
        if change == 1:
            scale = 3.0
        if change == 2:
            weight = torch.linspace(0, 1, 8)
            net.bias.mul_(2)
        for rows in ROWS:
            same(fused(rand(rows)), call(rand(rows)))
    ran_fused(fused, 3 * (len(ROWS) - 2))


def test_a_bound_method(quick: fusion.FusionConfig) -> None:
    class Layer(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("total", torch.zeros(8))

        def step(self, x: torch.Tensor) -> torch.Tensor:
            self.total.add_(x.sum(0))
            return torch.exp(x) * 2 + self.total

    mine, theirs = Layer().eval(), Layer().eval()
    fused = fusion.fuse(mine.step, quick)
    for rows in ROWS:
        same(fused(rand(rows)), theirs.step(rand(rows)))
        same(mine.total, theirs.total)
    ran_fused(fused, len(ROWS) - 2)


@torch.enable_grad()
def test_the_callers_grad_mode_stays(quick: fusion.FusionConfig) -> None:
    weight = torch.ones(8, requires_grad=True)
    held = [weight]
    modes: list[bool] = []

    @fusion.fuse(config=quick)
    def call(x: torch.Tensor) -> torch.Tensor:
        modes.append(torch.is_grad_enabled())
        return torch.exp(x) * held[0] + 1

    x = rand(3)
    call(x).sum().backward()  # of a tensor found outside
    same(weight.grad, torch.exp(x).sum(0))
    x.requires_grad_()
    call(x).sum().backward()
    same(x.grad, torch.exp(x.detach()))
    assert modes == [True, True]
    (row,) = fusion.report(call).scopes
    assert row.fused_calls == 0 and "grad_enabled" in row.reason and "torch.no_grad()" in row.reason

    @fusion.fuse(config=quick)
    def inside(x: torch.Tensor) -> torch.Tensor:
        made = x.detach().requires_grad_()
        return torch.autograd.grad((made * made).sum(), made)[0]

    same(inside(x), 2 * x.detach())

    @fusion.fuse(config=quick)
    def switch(x: torch.Tensor) -> torch.Tensor:
        torch.set_grad_enabled(False)
        return x * 2

    switch(x)
    assert not torch.is_grad_enabled()


def test_a_function_without_a_module(quick: fusion.FusionConfig) -> None:
    def call(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(x) * 2 + 1

    call.__module__ = None  # type: ignore[assignment]
    fused = fusion.fuse(call, quick)
    for turn, rows in enumerate(ROWS):
        same(fused(rand(rows, turn)), call(rand(rows, turn)))
    ran_fused(fused, len(ROWS) - 2)


def test_a_module_is_enabled(quick: fusion.FusionConfig) -> None:
    module = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Sigmoid()).eval()
    assert fusion.fuse(module, quick) is module
    fusion.report(module)
    with pytest.raises(FusionError, match="takes a function"):
        fusion.fuse(3)


# ---- recordings by hand


def test_one_tensor_given_twice(quick: fusion.FusionConfig) -> None:
    a = rand(4)
    with fusion.record(g=a, u=a, config=quick) as recording:
        torch.sigmoid(a) * a + 1
    call = recording.compile()
    assert recording.input_names == ("g", "u")
    x = rand(5)
    same(call(x, x), torch.sigmoid(x) * x + 1)
    same(call(g=x, u=x), torch.sigmoid(x) * x + 1)
    with pytest.raises(StructureMismatch, match="same tensor as g"):
        call(x, x.clone())


def test_the_wrong_number_of_inputs(quick: fusion.FusionConfig) -> None:
    a, b = rand(4), rand(4, 1)
    with fusion.record(a=a, b=b, config=quick) as recording:
        torch.sigmoid(a) * b + 1
    call = recording.compile()
    for args, kwargs in (((a,), {}), ((a, b, a), {}), ((a,), {"a": b}), ((a,), {"c": b}), ((), {})):
        with pytest.raises(StructureMismatch, match=r"\['a', 'b'\]"):
            call(*args, **kwargs)


def test_a_tensor_without_dimensions_made_by_reshaping(quick: fusion.FusionConfig) -> None:
    @fusion.fuse(config=quick)
    def call(x: torch.Tensor) -> torch.Tensor:
        total = (x * x).sum((0, 1), keepdim=True)
        return torch.exp(x) * total.reshape(()) + total.view(()) * 2

    for rows in ROWS:
        x = rand(rows)
        same(call(x), torch.exp(x) * (x * x).sum() + (x * x).sum() * 2)
    ran_fused(call, len(ROWS) - 2)


def test_a_recorded_block_that_writes(quick: fusion.FusionConfig) -> None:
    x, total = rand(4), torch.zeros(8)
    with fusion.record(x=x, total=total, config=quick) as recording:
        total.add_(x.sum(0))
        torch.exp(x) * total + 1
    once = total.clone()
    same(once, rand(4).sum(0))
    call = recording.compile()
    assert torch.equal(total, once), "compiling runs the block again, and takes that back"
    for rows in (4, 5, 6, 5):
        mine, theirs = torch.zeros(8), torch.zeros(8)
        found = call(rand(rows), mine)
        theirs.add_(rand(rows).sum(0))
        expected = torch.exp(rand(rows)) * theirs + 1
        same(found["output1"] if isinstance(found, dict) else found, expected)
        same(mine, theirs)
    assert recording.kernels


def a_method_with_a_closure() -> tuple[Any, Any]:
    scale = [2.0]

    class ReachableState:
        def times(self, x: torch.Tensor) -> torch.Tensor:
            return x.exp() * scale[0]

    held = ReachableState()
    return (lambda x: held.times(x).tanh() + 1), lambda: scale.append(scale.pop() + 1)


def a_default_of_a_function_it_calls() -> tuple[Any, Any]:
    state = {"scale": 2.0}

    def inner(x: torch.Tensor, *, state: dict[str, float] = state) -> torch.Tensor:
        return x.exp() * state["scale"]

    return (lambda x: inner(x).tanh() + 1), lambda: state.update(scale=state["scale"] + 1)


def a_function_in_a_list() -> tuple[Any, Any]:
    scale = [2.0]
    held = [functools.partial(lambda x, y: x * scale[0] + y, y=1)]
    return (lambda x: held[0](x.exp()).tanh() + 1), lambda: scale.append(scale.pop() + 1)


@pytest.mark.parametrize("make", [a_method_with_a_closure, a_default_of_a_function_it_calls, a_function_in_a_list])
def test_what_functions_reach_is_watched(make: Any, quick: fusion.FusionConfig) -> None:
    function, change = make()
    fused = fusion.fuse(function, quick)
    for turn in range(4):
        for rows in (3, 4, 3):
            same(no_grad(fused, rand(rows, turn)), no_grad(function, rand(rows, turn)))
        change()
    assert fused.report().scopes[0].fused_calls >= 2
