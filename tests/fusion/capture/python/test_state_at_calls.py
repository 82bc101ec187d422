"""What a forward sets for its blocks, which its plan calls as they are: the plan would not set it."""

from __future__ import annotations

import contextvars
import copy
import itertools
import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from step_models import agree, rand
from tiny import planned, scopes

import fusion
from fusion.capture import torch_modes
from fusion.capture.python import state_changes

G: Any = None
TABLE: dict[str, Any] = {"k": None}
LOCAL = threading.local()
LOCAL.k = None
VARIABLE: contextvars.ContextVar[Any] = contextvars.ContextVar("VARIABLE", default=None)


class Shared:
    """An object that the model and its blocks hold."""

    data: Any = None

    def __init__(self) -> None:
        self.k: Any = None
        self.table: dict[str, Any] = {"k": None}


class Inner(torch.nn.Module):
    """A block's part, which holds something."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(16, 16)
        self.k: Any = None
        self.register_buffer("b", torch.ones(16))


class Block(torch.nn.Module):
    """Adds up whatever is set in the places that it can reach."""

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self.inner, self.shared = Inner(), shared

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        places = (
            self.shared.k, self.shared.table["k"], Shared.data, self.inner.k, G, TABLE["k"], LOCAL.k, VARIABLE.get(),
            os.environ.get("FUSION_TEST_K") and 3,
        )  # fmt: skip
        y = torch.tanh(self.inner.linear(x)) * x * self.inner.b
        for value in places:
            y = y if value is None else y * value
        return y


def set_global(value: Any) -> None:
    global G
    G = value


def set_environment(value: Any) -> None:
    if value is None:
        os.environ.pop("FUSION_TEST_K", None)
    else:
        os.environ["FUSION_TEST_K"] = str(value)


PLACES: dict[str, Callable[[Any, Any, Any], None]] = {
    "attribute": lambda model, layer, value: setattr(model.shared, "k", value),
    "item": lambda model, layer, value: model.shared.table.update(k=value),
    "class": lambda model, layer, value: setattr(Shared, "data", value),
    "part of a block": lambda model, layer, value: setattr(layer.inner, "k", value),
    "global name": lambda model, layer, value: set_global(value),
    "global dict": lambda model, layer, value: TABLE.update(k=value),
    "thread": lambda model, layer, value: setattr(LOCAL, "k", value),
    "environment": lambda model, layer, value: set_environment(value),
    "context": lambda model, layer, value: VARIABLE.set(value) and None,
}


class Model(torch.nn.Module):
    """Sets something before it calls a block: always the number of the layer, or a value that it takes back."""

    def __init__(self, place: str, back: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.shared = Shared()
        self.layers = torch.nn.ModuleList(Block(self.shared) for _ in range(3))
        self.put, self.back = PLACES[place], back

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(x) * 2
        for number, layer in enumerate(self.layers):
            self.put(self, layer, 0.5 + number)
            x = layer(x)
            if self.back:
                self.put(self, layer, None)
        return torch.sigmoid(x) * 2


@pytest.fixture
def as_before() -> Any:
    yield
    for put in PLACES.values():
        model = Model("attribute", back=False)
        put(model, model.layers[0], None)


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("back", [True, False], ids=["taken back", "left"])
@pytest.mark.parametrize("place", PLACES)
def test_blocks_meet_what_the_forward_sets(quick: fusion.FusionConfig, place: str, back: bool) -> None:
    eager = Model(place, back).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (4, 4, 4, 6, 6, 4):
        agree(fused, eager, rand(rows))
    refusal = next(iter(scopes(fused)["Model"].refused.values()), None)
    assert refusal is None or refusal.code == "python_state"
    same = place == "part of a block" and not back  # from the second call on, what is set is there already
    assert same or scopes(fused)["Model"].statistics.planned[0] == 0, "its plan would not set it"


@pytest.mark.usefixtures("as_before")
@pytest.mark.parametrize("place", PLACES)
def test_a_size_that_the_forward_sets_is_a_number_to_the_block(quick: fusion.FusionConfig, place: str) -> None:
    class Sizes(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                self.put(self, layer, x.shape[0])
                x = layer(x)
                self.put(self, layer, None if self.back else x.shape[1])
            return torch.sigmoid(x) * 2

    for back in (True, False):
        eager = Sizes(place, back).eval()
        fused = fusion.enable(copy.deepcopy(eager), quick)
        for rows in (4, 4, 4, 6, 6, 4):
            agree(fused, eager, rand(rows))
    assert not isinstance(VARIABLE.get(), torch.SymInt)


def hook_inside(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    handle = layer.inner.linear.register_forward_hook(lambda m, a, out: out * 2)
    result: torch.Tensor = layer(x)
    handle.remove()
    return result


def hook_everywhere(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    handle = torch.nn.modules.module.register_module_forward_hook(lambda m, a, out: out * 2)
    result: torch.Tensor = layer(x)
    handle.remove()
    return result


def without_bias(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    held, layer.inner.linear.bias = layer.inner.linear.bias, None
    result: torch.Tensor = layer(x)
    layer.inner.linear.bias = held
    return result


def other_forward(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    held, Inner.forward = Inner.forward, lambda self, y: y
    kept, type(layer).forward = type(layer).forward, lambda self, y: y * 3
    result: torch.Tensor = layer(x)
    Inner.forward, type(layer).forward = held, kept
    return result


def other_buffer(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    held = layer.inner._buffers["b"]
    layer.inner._buffers["b"] = layer.inner.linear.weight[0] * 0 + 2
    result: torch.Tensor = layer(x)
    layer.inner._buffers["b"] = held
    return result


def other_autocast(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    torch.set_autocast_dtype("cpu", torch.float16)
    result: torch.Tensor = layer(x)
    torch.set_autocast_dtype("cpu", torch.bfloat16)
    return result


@pytest.mark.parametrize(
    "call", [hook_inside, hook_everywhere, without_bias, other_forward, other_buffer, other_autocast]
)
def test_code_and_weights_that_are_replaced_around_a_block(
    quick: fusion.FusionConfig, call: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]
) -> None:
    class Replacing(Model):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.tanh(x) * 2
            for layer in self.layers:
                x = call(layer, x)
            return torch.sigmoid(x) * 2

    eager = Replacing("attribute", back=True).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (4, 4, 4, 6, 6, 4):
        agree(fused, eager, rand(rows))
    assert scopes(fused)["Replacing"].statistics.planned[0] == 0


class Counting(torch.nn.Module):
    """A block that counts its calls: its own affair."""

    def __init__(self, shared: Shared) -> None:
        super().__init__()
        self.inner, self.shared, self.calls = Inner(), shared, 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return torch.tanh(self.inner.linear(x)) * x


def test_what_blocks_change_themselves_does_not_count(quick: fusion.FusionConfig) -> None:
    class Quiet(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layers = torch.nn.ModuleList(Counting(Shared()) for _ in range(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.tanh(x) * 2
            for layer in self.layers:
                x = layer(x)
            return torch.sigmoid(x) * 2

    eager = Quiet().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (4, 4, 4, 6, 6, 4, 4):
        agree(fused, eager, rand(rows))
    assert [layer.calls for layer in fused.layers] == [7, 7, 7]
    assert planned(fused)["Quiet"] > 0


def test_another_thread_that_changes_a_dict_meanwhile_harms_no_call(quick: fusion.FusionConfig) -> None:
    eager = Model("attribute", back=True).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    done = threading.Event()

    def changes() -> None:
        while not done.is_set():
            for k in range(200):
                fused.shared.table[k] = k
            for k in range(200):
                del fused.shared.table[k]

    thread = threading.Thread(target=changes)
    thread.start()
    try:
        for rows in (4, 4, 4, 6, 6, 4, 5, 5, 7, 7):
            agree(fused, eager, rand(rows))
    finally:
        done.set()
        thread.join()


def grow(held: Any, value: int) -> None:
    if isinstance(held, dict):
        held[value] = value
    else:
        (held.add if isinstance(held, set) else held.append)(value)


@pytest.mark.parametrize("held", [{1: 2, 3: 4}, {1, 3}, [1, 3]], ids=["dict", "set", "list"])
def test_a_container_that_grows_while_it_is_settled(held: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def as_another_thread_would(value: Any) -> bool:
        asked.append(value)
        if len(asked) < 5:
            grow(held, 100 + len(asked))
        return False

    monkeypatch.setattr(state_changes, "_has_symbol", as_another_thread_would)
    state_changes._settle_container(held)
    assert len(asked) >= 2


def test_what_cannot_be_watched_inside_a_block_hides_nothing_else(quick: fusion.FusionConfig) -> None:
    eager = Model("attribute", back=True).eval()
    for layer in eager.layers:
        layer.inner.numbers = itertools.count()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (4, 4, 4, 6, 6, 4):
        agree(fused, eager, rand(rows))
    assert scopes(fused)["Model"].statistics.planned[0] == 0


def test_a_setting_that_torch_does_not_tell_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises() -> None:
        raise RuntimeError("mix of the legacy and new APIs")

    monkeypatch.setattr(torch_modes, "_SETTINGS", [raises])
    before = torch_modes.state()
    assert torch_modes.switched(before) == ""
    monkeypatch.setattr(torch_modes, "_SETTINGS", [lambda: "high"])
    assert torch_modes.switched(before) == "a setting of torch's"
