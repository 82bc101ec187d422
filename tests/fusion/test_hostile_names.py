"""Strings from outside at every door: they are words of the call, never words of a generated text."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import fusion

HOSTILE = [
    "a b",
    "a=1, z",
    "x if __import__('pathlib').Path('{}').touch() else r.x",
    "a=1, **{{str(__import__('pathlib').Path('{}').touch()): 2}}, z",
    "')\n    __import__('pathlib').Path('{}').touch()\n    (",
    "*/ \\\n#include </etc/passwd> //",
    "for",
    "a\0b",
    "é[0]",
]


@pytest.fixture(params=HOSTILE)
def word(request: Any, tmp_path: Path) -> Iterator[str]:
    """A hostile string; if it ever runs, a file is there afterwards."""
    mark = tmp_path / "touched"
    yield request.param.format(mark)
    assert not mark.exists()


class Store:
    """An object with a method that is called natively."""

    def put(self, x: torch.Tensor, **options: int) -> torch.Tensor:
        return x * len(options)


class Cache:
    """An object whose attributes a forward reads."""

    def update(self, x: torch.Tensor) -> torch.Tensor:
        return x * 1.0


fusion.register_island(Store, "put")
fusion.register_island(Cache, "update")


def _agrees(module: torch.nn.Module, make: Any) -> None:
    """A plan answers calls at several sizes as eager does."""
    fused = fusion.enable(module.eval(), {"profile": False})
    with torch.no_grad():
        for rows in (3, 4, 5, 3):
            x = torch.linspace(-1, 1, rows * 8).reshape(rows, 8)
            found = fused(x, *make())
        report = fusion.report(fused).scopes[0]
        fusion.disable(fused)
        expected = module(x, *make())
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-6)
    assert report.fused_calls > 0, report.reason


def test_a_keyword_of_an_island(word: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, store: Store, options: dict[str, int]) -> torch.Tensor:
            return torch.tanh(store.put(torch.tanh(x) * 2, **options)) + 1

    _agrees(Model(), lambda: (Store(), {word: 1}))


def test_an_attribute_read_off_an_argument(word: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, cache: Cache) -> torch.Tensor:
            held = getattr(cache, word)
            return torch.tanh(cache.update(torch.tanh(x) * held)) + 1

    def made() -> tuple[Cache]:
        cache = Cache()
        setattr(cache, word, torch.ones(8) * 3)
        return (cache,)

    _agrees(Model(), made)


def test_a_key_of_an_argument_and_of_the_result(word: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, given: dict[str, torch.Tensor]) -> torch.Tensor:
            return torch.tanh(x * given[word]) + torch.tanh(x)

    _agrees(Model(), lambda: ({word: torch.full((8,), 3.0)},))

    class Named(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {word: torch.tanh(x) * 2 + 1}

    fused = fusion.enable(Named().eval(), {"profile": False})
    with torch.no_grad():
        for rows in (3, 4, 3):
            found = fused(torch.ones(rows, 8))
    assert list(found) == [word] and fusion.report(fused).scopes[0].fused_calls > 0


def test_an_item_that_a_forward_sets(word: str) -> None:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, shared: dict[str, torch.Tensor]) -> torch.Tensor:
            shared[word] = torch.tanh(x) * 2
            return shared[word] + 1

    _agrees(Model(), lambda: ({},))


def test_a_module_a_parameter_and_a_buffer(word: str) -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self._modules[word] = torch.nn.LayerNorm(8)
            self._parameters[word + "p"] = torch.nn.Parameter(torch.ones(8))
            self._buffers[word + "b"] = torch.ones(8)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self._modules[word](torch.tanh(x) * self._parameters[word + "p"]) + self._buffers[word + "b"]

    _agrees(Model(), tuple)


def test_a_field_of_a_dataclass(word: str) -> None:
    fields = [("value", torch.Tensor)]
    kind = dataclasses.make_dataclass("Held", fields)

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor, held: Any) -> torch.Tensor:
            return torch.tanh(x) * getattr(held, word)

    def made() -> tuple[Any]:
        held = kind(torch.ones(8))
        setattr(held, word, torch.full((8,), 2.0))
        return (held,)

    fused, (held,) = fusion.enable(Model().eval(), {"profile": False}), made()
    with torch.no_grad():  # eager or fused: such an object may be refused
        for rows in (3, 4, 3):
            assert torch.equal(fused(torch.zeros(rows, 8), held), torch.zeros(rows, 8))


def test_a_file_name(word: str) -> None:
    source = "import torch\ndef f(x):\n    return torch.tanh(x) * 2 + 1\n"
    names: dict[str, Any] = {"__name__": "user"}
    exec(compile(source, (word + ".py").replace("\0", "?"), "exec"), names)
    fused = fusion.fuse(names["f"], {"profile": False})
    with torch.no_grad():
        for rows in (3, 4, 3):
            x = torch.linspace(-1, 1, rows * 8)
            assert torch.allclose(fused(x), names["f"](x), rtol=1e-5)
    assert fused.report().scopes[0].fused_calls > 0


def test_a_value_in_the_configuration(word: str) -> None:
    with pytest.raises(fusion.FusionError):
        fusion.FusionConfig(backend=word)
    with pytest.raises(fusion.FusionError):
        fusion.FusionConfig(**{word: 1})


def test_the_name_of_an_operator_or_input(word: str) -> None:
    with pytest.raises((fusion.FusionError, ValueError, TypeError)):
        fusion.register_op(word)
    if not word.isidentifier() or word == "for":
        with pytest.raises(fusion.FusionError), fusion.record(**{word: torch.ones(3)}):
            pass
