"""Copies of modules under fusion that had a forward of their own, and calls while a module is being enabled."""

from __future__ import annotations

import copy
import pickle
import types
from collections.abc import Callable

import pytest
import torch

import fusion
from fusion.patterns.errors import FusionError
from fusion.signature import Signature


class Scaled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.weight

    def other(self, x: torch.Tensor) -> torch.Tensor:
        return torch.exp(x) * self.weight + 1


def free(x: torch.Tensor) -> torch.Tensor:
    return torch.exp(x) - 1


def pickled(module: torch.nn.Module) -> torch.nn.Module:
    loaded: torch.nn.Module = pickle.loads(pickle.dumps(module))
    return loaded


@pytest.mark.parametrize("way", [copy.deepcopy, pickled])
@pytest.mark.parametrize("bound", [True, False])
@torch.no_grad()
def test_a_forward_of_its_own_goes_with_copies(
    quick: fusion.FusionConfig, way: Callable[[torch.nn.Module], torch.nn.Module], bound: bool
) -> None:
    module = Scaled().eval()
    own = module.other if bound else free
    module.forward = own  # type: ignore[method-assign]
    fusion.enable(module, quick)
    x = torch.linspace(-1, 1, 4)
    twin = way(module)
    twin.weight.mul_(3)
    torch.testing.assert_close(twin(x), torch.exp(x) * 3 + 1 if bound else torch.exp(x) - 1)
    if bound:
        assert isinstance(twin.forward, types.MethodType) and twin.forward.__self__ is twin
    torch.testing.assert_close(module(x), torch.exp(x) + 1 if bound else torch.exp(x) - 1)
    fusion.disable(module)
    assert vars(module)["forward"] is own


@torch.no_grad()
def test_a_call_before_there_is_a_snapshot() -> None:
    entry = Signature(free).entry([], [0], free)
    x = torch.ones(2)
    assert torch.equal(entry(x), free(x))


class Pipeline:
    def __init__(self) -> None:
        self.unet, self.vae, self.steps = Scaled(), Scaled(), 3


def test_what_cannot_be_enabled_says_what_can() -> None:
    with pytest.raises(FusionError, match="unet, vae"):
        fusion.enable(Pipeline())  # type: ignore[arg-type]
    with pytest.raises(FusionError, match="For a function"):
        fusion.enable(free)  # type: ignore[arg-type]
    for made in (torch.jit.trace(Scaled().eval(), torch.ones(4)), torch.jit.script(torch.nn.SiLU())):
        with pytest.raises(FusionError, match="made from"):
            fusion.enable(made)


def test_a_wrapper_reports_what_is_enabled_inside(quick: fusion.FusionConfig) -> None:
    wrapper = torch.nn.Sequential(fusion.enable(Scaled().eval(), quick))
    assert [row.name for row in fusion.report(wrapper).scopes] == ["Scaled"]
    with pytest.raises(FusionError, match="not under fusion"):
        fusion.report(torch.nn.Sequential(Scaled()))
