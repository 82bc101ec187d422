"""Following a twin's recording: what makes two equal layers part, and that the second is recorded by itself then."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from graphs import normal as rand
from tiny import no_grad, planned, scopes

import fusion
from fusion.capture.python.argument_snapshot import ArgumentSnapshot
from fusion.capture.record import record
from fusion.capture.retrace import follow
from fusion.patterns.leaves import Ref
from fusion.patterns.python_nodes import OpaqueCall

WIDTH = 8


class Shared:
    """Tensors that layers look up by their number."""

    def __init__(self, weights: list[torch.Tensor]) -> None:
        self.weights = weights

    def weight(self, layer: int) -> torch.Tensor:
        return self.weights[layer]


fusion.register_island(Shared, "weight")


class Layer(torch.nn.Module):
    """Two parameters alike, one of which it uses, and a look-up that gives one of them."""

    def __init__(self, layer: int, asks: bool, measures: bool) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(WIDTH, WIDTH)
        self.near = torch.nn.Parameter(torch.linspace(0.5, 1.5, WIDTH) + layer)
        self.far = torch.nn.Parameter(torch.linspace(-1.5, -0.5, WIDTH) - layer)
        self.layer, self.asks, self.measures = layer, asks, measures

    def forward(self, x: torch.Tensor, shared: Shared) -> torch.Tensor:
        found = shared.weight(self.layer) if self.asks else shared.weights[self.layer]
        y = torch.tanh(self.inner(x)) * found.shape[0] if self.measures else torch.tanh(self.inner(x) * found)
        return y + torch.sigmoid(self.far * 0.5)


class Stack(torch.nn.Module):
    """Three of them; `shared` gives each one of its own parameters."""

    def __init__(self, *how: bool) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer(number, *how) for number in range(3))

    def forward(self, x: torch.Tensor, shared: Shared) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x, shared)
        return x

    def shared(self, names: tuple[str, str, str]) -> Shared:
        return Shared([getattr(layer, name) for layer, name in zip(self.layers, names, strict=True)])


@pytest.mark.parametrize("measures", [False, True], ids=["computes with it", "asks its size"])
@pytest.mark.parametrize("asks", [False, True], ids=["found inside", "given by an opaque call"])
@pytest.mark.parametrize(
    ("names", "agrees"),
    [(("near",) * 3, [True, True]), (("near", "far", "near"), [False, True]), (("far", "near", "far"), [False, True])],
    ids=["the same", "another", "another than the layer uses"],
)
def test_a_twin_that_gets_another_of_its_parameters(
    names: Any,
    agrees: list[bool],
    asks: bool,
    measures: bool,
    quick: fusion.FusionConfig,
    followed: list[bool],
) -> None:
    eager = Stack(asks, measures).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for step in range(9):
        x = rand(2, WIDTH, seed=step)
        found, expected = (no_grad(model, x, model.shared(names)) for model in (fused, eager))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert followed == agrees
    assert all(planned(fused)[f"layers.{number}"] >= 4 for number in range(3)), planned(fused)
    assert all(known.refusal is None for scope in scopes(fused).values() for known in scope.known)


class Shelf:
    """Keeps a row for each layer."""

    def __init__(self) -> None:
        self.rows: dict[int, torch.Tensor] = {}

    def put(self, row: torch.Tensor, layer: int) -> torch.Tensor:
        self.rows[layer] = row.clone()
        return row * 1


fusion.register_island(Shelf, "put")


class Puts(torch.nn.Module):
    """Hands on a constant that it has written to through a view."""

    def __init__(self, layer: int) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: torch.Tensor, shelf: Shelf) -> torch.Tensor:
        steps = torch.tensor([1.0] * WIDTH)
        steps.view(WIDTH).add_(1.0)
        return x * shelf.put(steps, self.layer)


def test_a_twin_hands_on_the_copy_of_a_constant_that_it_writes_to() -> None:
    x, shelf, modules = rand(2, WIDTH), Shelf(), [Puts(0), Puts(1)]
    with torch.no_grad():
        first = record(
            modules[0], ArgumentSnapshot({"x": x, "shelf": shelf}), lambda: modules[0](x, shelf), {"": modules[0]}
        )
        known = {"x0": x}, {id(shelf): ("shelf",)}
        _, second, why = follow(first, first.values, modules[1], *known, lambda: modules[1](x, shelf))
    assert first.graph is not None and second is not None and second.graph is not None, (first.refusal, why)
    calls = [node for made in (first, second) for node in made.graph.nodes if isinstance(node, OpaqueCall)]
    (copied,) = first.renamed.values()
    assert [call.args for call in calls] == [(Ref(copied), 0), (Ref(copied), 1)]
