"""What a plan was recorded with, beside tensors: classes, methods, code, the default dtype, Python's generators."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import pytest
import torch
from torch import nn

import fusion
from fusion.runtime.snapshots import PythonSnapshot, make_snapshot

X = torch.linspace(-1, 1, 24).reshape(3, 8)


@pytest.fixture(autouse=True)
def without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def _classes() -> tuple[type[nn.Module], type[nn.Module], type[nn.Module]]:
    """Fresh classes for each test, which may change them."""

    class Inner(nn.Module):
        def act(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x) * 2

        @property
        def factor(self) -> float:
            return 3.0

        @staticmethod
        def shift(x: torch.Tensor, by: float = 1) -> torch.Tensor:
            return x + by

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.shift(self.act(x) * self.factor)

    class Other(Inner):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(x) * 7

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x) + 1

    return Inner, Other, Outer


def _swap_class(module: Any, inner: Any, other: Any) -> None:
    module.inner.__class__ = other


def _patch_method(module: Any, inner: Any, other: Any) -> None:
    inner.act = lambda self, x: torch.tanh(x) * 9


def _patch_property(module: Any, inner: Any, other: Any) -> None:
    inner.factor = property(lambda self: 5.0)


def _patch_static(module: Any, inner: Any, other: Any) -> None:
    inner.shift = staticmethod(lambda x: x - 4)


def _replace_code(module: Any, inner: Any, other: Any) -> None:
    inner.act.__code__ = (lambda self, x: torch.tanh(x) * 11).__code__


def _patch_call(module: Any, inner: Any, other: Any) -> None:
    inner.__call__ = lambda self, x: x * 6


def _replace_defaults(module: Any, inner: Any, other: Any) -> None:
    inner.shift.__defaults__ = (5,)


@pytest.mark.parametrize(
    "change",
    [
        _swap_class,
        _patch_method,
        _patch_property,
        _patch_static,
        _replace_code,
        _patch_call,
        _replace_defaults,
    ],
)
def test_a_class_or_method_that_changes_after_recording(change: Callable[..., None]) -> None:
    inner, other, outer = _classes()
    plain = outer().eval()
    fused = fusion.enable(outer().eval(), {"profile": False})
    for _ in range(3):
        fused(X)
    before = fused(X)
    planned = fusion.report(fused).scopes[0].fused_calls
    assert planned > 0
    change(plain, inner, other)
    if change is _swap_class:
        change(fused, inner, other)
    assert torch.equal(fused(X), plain(X)) and not torch.allclose(before, plain(X))
    for _ in range(3):
        assert torch.allclose(fused(X), plain(X), rtol=1e-5, atol=1e-6)
    assert fusion.report(fused).scopes[0].fused_calls > planned


def test_a_class_whose_bases_are_replaced() -> None:
    class Base(nn.Module):
        def act(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x) * 2

    class Other(nn.Module):
        def act(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x) * 9

    class Inner(Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(x) + 1

    fused = fusion.enable(Inner().eval(), {"profile": False})
    for _ in range(3):
        fused(X)
    assert fusion.report(fused).scopes[0].fused_calls > 0
    Inner.__bases__ = (Other,)
    assert torch.equal(fused(X), torch.tanh(X) * 9 + 1)


def test_what_the_closure_of_a_method_holds() -> None:
    factor = 2.0

    class Inner(nn.Module):
        def act(self, x: torch.Tensor) -> torch.Tensor:
            return torch.tanh(x) * factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.act(x) + 1

    fused = fusion.enable(Inner().eval(), {"profile": False})
    for _ in range(3):
        fused(X)
    assert fusion.report(fused).scopes[0].fused_calls > 0
    factor = 9.0
    assert torch.equal(fused(X), torch.tanh(X) * 9 + 1)


def test_a_helper_whose_code_is_replaced() -> None:
    def helper(x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * 2

    fused = fusion.fuse(lambda x: helper(x) + 1, {"profile": False})
    for _ in range(3):
        fused(X)
    assert fused.report().scopes[0].fused_calls > 0
    helper.__code__ = (lambda x: torch.tanh(x) * 3).__code__
    assert torch.equal(fused(X), torch.tanh(X) * 3 + 1)


def test_the_default_dtype_is_a_guard() -> None:
    fused = fusion.fuse(lambda i: torch.tanh(i / 2), {"profile": False})
    whole = torch.arange(8)
    for _ in range(3):
        fused(whole)
    assert fused.report().scopes[0].fused_calls > 0
    torch.set_default_dtype(torch.float64)
    try:
        found = fused(whole)
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.dtype is torch.float64 and torch.equal(found, torch.tanh(whole.double() / 2))


@pytest.mark.parametrize("draw", [random.random, numpy.random.rand], ids=["Python", "NumPy"])
def test_a_generator_of_python_decides(draw: Callable[[], float]) -> None:
    def flips(x: torch.Tensor) -> torch.Tensor:
        return x.flip(0) * 2 if draw() < 0.5 else x * 2

    fused, x = fusion.fuse(flips, {"profile": False}), torch.arange(4.0)
    for seed in range(12):
        random.seed(seed)
        numpy.random.seed(seed)
        expected, after = flips(x), draw()
        random.seed(seed)
        numpy.random.seed(seed)
        assert torch.equal(fused(x), expected) and draw() == after  # drawn once, as in eager
    row = fused.report().scopes[0]
    assert row.state == "eager" and "draws" in row.reason


@pytest.mark.parametrize("make", [random.Random, numpy.random.default_rng, numpy.random.RandomState])
def test_a_generator_of_the_users_own(make: Callable[[int], Any]) -> None:
    def flipping(generator: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: x.flip(0) * 2 if generator.random() < 0.5 else x * 2

    class Flips(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.generator = make(0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return flipping(self.generator)(x)

    plain, fused, x = flipping(make(0)), fusion.fuse(flipping(make(0)), {"profile": False}), torch.arange(4.0)
    module = fusion.enable(Flips().eval(), {"profile": False})
    for _ in range(12):
        expected = plain(x)
        assert torch.equal(fused(x), expected) and torch.equal(module(x), expected)
    assert fused.report().scopes[0].reason.startswith("random")


@pytest.mark.parametrize("make", [make_snapshot, PythonSnapshot], ids=["C", "Python"])
def test_entries_of_a_snapshot(make: Any) -> None:
    first, _, _ = _classes()
    second = type("Second", (first,), {})
    held, answers = first(), [1]

    def function() -> int:
        return 1

    def answer() -> Any:
        return answers[0]

    entries = [("class", held, first), ("code", function, function.__code__), ("call", answer, 1)]
    snapshot = make(entries)
    assert snapshot()
    held.__class__ = second
    assert not snapshot()
    held.__class__ = first
    function.__code__, code = (lambda: 2).__code__, function.__code__
    assert not snapshot()
    function.__code__ = code
    answers[0] = 2
    assert not snapshot()
    answers[0] = 1
    assert snapshot()
    for wrong in (("class", held, 1), ("code", held, code), ("call", 1, 1)):
        with pytest.raises((ValueError, TypeError)):
            make([wrong])
