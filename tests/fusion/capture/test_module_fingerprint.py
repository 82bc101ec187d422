"""Which modules are so alike that one may follow the other's recording."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from good_recording import GOOD

from fusion.capture import hooks
from fusion.capture.module_fingerprint import fingerprint, isomorphic
from fusion.patterns.python_nodes import Method, OpaqueCall

SHARED = object()


class Part(torch.nn.Linear): ...


class Layer(torch.nn.Module):
    def __init__(self, number: int = 0, width: int = 4) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(width, width)
        self.number = number
        self.heads = 2
        self.scale, self.name, self.causal, self.bias = 0.5, "layer", True, None
        self.sizes = {"rows": [1, 2], "dtype": torch.float32}
        self.shared = SHARED

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x)


class Other(Layer):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(x) + 1


def _set(name: str, value: Any) -> Callable[[Layer], None]:
    return lambda layer: setattr(layer, name, value)


def test_equal_modules_have_one_structure_whatever_their_weights_and_numbers_are() -> None:
    one, other = Layer(0), Layer(5)
    assert fingerprint(one).structure == fingerprint(other).structure
    assert dict(fingerprint(other).integers)[".number"] == 5
    hash(fingerprint(one).structure)


DIFFERENCES: dict[str, Callable[[Layer], Any]] = {
    "a number that is no integer": _set("scale", 0.25),
    "a text": _set("name", "other"),
    "a switch": _set("causal", False),
    "something for nothing": _set("bias", "b"),
    "what a container holds": _set("sizes", {"rows": [1, 3], "dtype": torch.float32}),
    "a container of objects": _set("sizes", [object()]),
    "an object": _set("shared", object()),
    "another attribute": _set("further", 1.0),
    "the dtype of a weight": lambda layer: layer.inner.half(),
    "the shape of a weight": _set("inner", torch.nn.Linear(4, 4, bias=False)),
    "the strides of a weight": lambda layer: setattr(layer.inner.weight, "data", layer.inner.weight.data.t()),
    "the class of a part": _set("inner", Part(4, 4)),
    "a hook": lambda layer: layer.inner.register_forward_hook(lambda *_: None),
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_modules_that_may_do_something_else_have_another(name: str) -> None:
    layer = Layer()
    DIFFERENCES[name](layer)
    assert fingerprint(layer).structure != fingerprint(Layer()).structure


def test_classes_and_their_forwards_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(Layer())
    assert before.structure != fingerprint(Other()).structure
    monkeypatch.setattr(Layer, "forward", Other.forward)
    assert before.structure != fingerprint(Layer()).structure


def test_idle_hooks_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    def collects(*_: Any) -> None: ...

    monkeypatch.setattr(hooks, "_KNOWN", [hooks.Collecting(__name__, collects.__qualname__, lambda: False)])
    layer = Layer()
    layer.inner.register_forward_hook(collects)
    assert fingerprint(layer).structure == fingerprint(Layer()).structure


# ---- who may follow whom


def given(*numbers: int) -> Any:
    """A recording whose opaque call is given some numbers."""
    return replace(GOOD, nodes=(OpaqueCall(Method(("cache",), "update"), numbers, (), ("n2",), True, "leaf"),))


def follows(one: Layer, other: Layer, *numbers: int) -> bool:
    return isomorphic(fingerprint(one), fingerprint(other), given(*numbers))


def test_a_module_follows_one_that_differs_in_a_number_given_to_opaque_calls() -> None:
    assert follows(Layer(3), Layer(3))
    assert follows(Layer(3), Layer(4), 3)
    assert not follows(Layer(3), Layer(4)), "the recording is given no such number"
    assert not follows(Layer(3), Layer(4), 4)


def test_a_module_follows_none_that_differs_in_two_numbers() -> None:
    one, other = Layer(3), Layer(4)
    one.heads, other.heads = 3, 4
    assert not follows(one, other, 3), "one and the same, but of two names"
    one, other = Layer(3), Layer(4)
    one.inner.number, other.inner.number = 3, 4  # type: ignore[assignment]
    assert follows(one, other, 3), "one number, which two parts have"
    other.inner.number = 5  # type: ignore[assignment]
    assert not follows(one, other, 3)


def test_a_module_follows_none_of_another_structure() -> None:
    assert not follows(Layer(3), Layer(3, width=8), 3)
    one, other = Layer(3), Layer(3)
    other.further = 3
    assert not follows(one, other, 3), "one more number"


def test_a_module_whose_weights_come_with_its_first_call_has_one_too() -> None:
    first, second = torch.nn.LazyLinear(4), torch.nn.LazyLinear(4)
    assert fingerprint(first) != fingerprint(second), "nobody knows yet what shapes they are going to have"
    first(torch.rand(2, 3))
    assert fingerprint(first) != fingerprint(torch.nn.Linear(4, 4))
