"""torch.nn's own attention, transformers and recurrent layers: eager's path, one recording for all sizes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from many_sizes import WIDTH, agree, batch, many
from torch import nn
from torch.overrides import TorchFunctionMode

import fusion


class Attends(nn.Module):
    def __init__(self, weights: bool, batch_first: bool) -> None:
        super().__init__()
        self.weights = weights
        self.attention = nn.MultiheadAttention(WIDTH, 4, batch_first=batch_first)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + self.attention(x, x, x, need_weights=self.weights)[0])


class Recurs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(WIDTH, WIDTH, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.lstm(x)[0]) * 2 + x


class Decodes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.whole = nn.Transformer(WIDTH, 4, 2, 2, 32, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.whole(x, x * 0.5)


class Encodes(nn.Module):
    """Its layers are called with nested tensors where positions are masked, which have no sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.TransformerEncoder(nn.TransformerEncoderLayer(WIDTH, 4, 32, batch_first=True), 2)

    def forward(self, x: torch.Tensor, masked: torch.Tensor | None = None) -> torch.Tensor:
        return torch.tanh(self.layers(x, src_key_padding_mask=masked)) * 2


MODULES = {
    "attention": lambda: Attends(False, True),
    "attention and its weights": lambda: Attends(True, True),
    "attention over the first dimension": lambda: Attends(False, False),
    "lstm": Recurs,
    "transformer": Decodes,
    "encoder": Encodes,
}


@pytest.mark.parametrize("name", MODULES)
def test_one_recording_serves_all_sizes(name: str, tmp_path: object) -> None:
    kind: Callable[[], nn.Module] = MODULES[name]
    eager = kind().eval()
    before, after, fused = many(eager, tmp_path, kind)
    assert after == before
    root = fusion.report(fused).scopes
    assert all(s.state in ("fused", "unfused plan") for s in root), [(s.name, s.reason) for s in root]
    assert any(s.fused_ops for s in root)


def test_a_recording_takes_the_path_that_eager_takes() -> None:
    """torch's encoder layer is one operator where no mode watches; a recording must not make it take the other path."""
    layers = fusion.enable(Encodes().eval(), {"enable_cache": False, "profile": False})
    with torch.inference_mode():
        for _ in range(3):
            layers(batch(2, 7))
    assert "aten._transformer_encoder_layer_fwd.default is a library call" in str(fusion.report(layers))


def test_nested_tensors_run_eagerly_and_leave_plans_alone() -> None:
    eager = Encodes().eval()
    fused = fusion.enable(Encodes().eval(), {"enable_cache": False, "profile": False})
    fused.load_state_dict(eager.state_dict())
    masked = torch.zeros(2, 7, dtype=torch.bool)
    masked[0, -2:] = True
    for _ in range(4):
        for mask in (None, masked, None):
            with torch.inference_mode():
                torch.testing.assert_close(fused(batch(2, 7), mask), eager(batch(2, 7), mask), rtol=1e-5, atol=1e-5)
    layer = next(s for s in fusion.report(fused).scopes if s.name.startswith("layers.layers.0"))
    assert layer.fused_calls > 0 and layer.eager_calls > 0
    agree(fused, eager, batch(3, 11))


class Kind(torch.Tensor):
    """A subclass of a tensor, which torch's functions take apart before they ask for overrides again."""


class Halves(TorchFunctionMode):
    """A mode of the user's own."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        return result / 2 if func is nn.functional.softmax else result


class Library:
    """Methods that are called natively, and use what torch's Python code asks about."""

    def of_a_subclass(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.softmax(x.as_subclass(Kind), -1).as_subclass(torch.Tensor)

    def under_a_mode(self, x: torch.Tensor) -> torch.Tensor:
        with Halves():
            return nn.functional.softmax(x, -1)


for _name in ("of_a_subclass", "under_a_mode"):
    fusion.register_island(Library, _name)


class Calls(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def forward(self, x: torch.Tensor, library: Library) -> torch.Tensor:
        return torch.sigmoid(getattr(library, self.name)(torch.tanh(x) * 2)) * x


@pytest.mark.parametrize("name", ["of_a_subclass", "under_a_mode"])
def test_native_calls_while_recording_are_answered_as_ever(name: str) -> None:
    eager, fused = Calls(name), fusion.enable(Calls(name).eval(), {"enable_cache": False, "profile": False})
    with torch.inference_mode():
        for shape in ((2, 7), (2, 7), (2, 7), (3, 11), (3, 11)):
            x = batch(*shape)
            torch.testing.assert_close(fused(x, Library()), eager(x, Library()))
    (scope,) = fusion.report(fused).scopes
    assert scope.fused_calls >= 2, scope.reason


def test_other_threads_are_answered_as_ever_during_a_recording() -> None:
    asked: list[bool] = []

    class Asks(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            def ask() -> None:
                with Halves():
                    asked.append(torch.overrides.has_torch_function((x,)))
                asked.append(torch.overrides.has_torch_function((x,)))
                asked.append(torch.overrides.has_torch_function((torch.zeros(1).as_subclass(Kind),)))

            thread = threading.Thread(target=ask)
            thread.start()
            thread.join()
            return torch.sigmoid(x) * 2 + 1

    fused = fusion.enable(Asks().eval(), {"enable_cache": False, "profile": False})
    with torch.inference_mode():
        for _ in range(3):
            fused(batch(2, 7))
    assert fusion.report(fused).scopes[0].recordings >= 1
    assert asked == [True, False, True] * (len(asked) // 3)
