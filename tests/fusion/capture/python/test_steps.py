"""Whole forwards as scopes: blocks are steps, objects are made, conditions come after effects."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import pytest
import torch
from step_models import Block, Counted, agree, rand, warmed
from tiny import no_grad, planned, scopes, transformer
from torch.utils import _pytree as pytree

import fusion


def test_the_forward_around_the_blocks_is_fused(quick: fusion.FusionConfig) -> None:
    fused, eager = warmed(quick)
    assert list(scopes(fused)) == ["layers.0", "layers.1", "layers.2", "Model"]
    before = planned(fused)
    agree(fused, eager, rand(7))
    agree(fused, eager, rand(6))
    after = planned(fused)
    assert all(after[n] > before[n] for n in after), after
    whole = fusion.report(fused).scopes[-1]
    assert {r.ops for r in whole.regions if r.decision == "fused"} == {("mul", "tanh", "add"), ("softplus", "mul")}


def test_hooks_of_a_block_run_once_a_call(quick: fusion.FusionConfig) -> None:
    fused, _ = warmed(quick)
    calls: list[int] = []
    handle = fused.layers[1].register_forward_hook(lambda *_: calls.append(1))
    for _ in range(5):
        no_grad(fused, rand(4))
    assert len(calls) == 5
    handle.remove()


def test_a_block_that_is_replaced(quick: fusion.FusionConfig) -> None:
    fused, eager = warmed(quick)
    torch.manual_seed(5)
    other = Block().eval()
    fused.layers[1], eager.layers[1] = other, copy.deepcopy(other)
    for rows in (4, 4, 6, 6, 5):
        agree(fused, eager, rand(rows))


def test_a_block_that_is_taken_out(quick: fusion.FusionConfig) -> None:
    fused, eager = warmed(quick)
    del fused.layers[0], eager.layers[0]
    for rows in (4, 4, 6, 6, 5):
        agree(fused, eager, rand(rows))


def test_weights_inside_a_step_change(quick: fusion.FusionConfig) -> None:
    fused, eager = warmed(quick)
    for model in (fused, eager):
        with torch.no_grad():
            model.layers[2].linear.weight.mul_(2)
            model.layers[0].linear.weight = torch.nn.Parameter(model.layers[0].linear.weight * 0.5)
    for rows in (4, 4, 6):
        agree(fused, eager, rand(rows))


class Raises(torch.nn.Module):
    """Fails for some rows, after it was recorded."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if len(x.tolist()) > 8:
            raise ValueError("too many rows")
        return x * 2


def test_an_error_in_a_step_is_the_users(quick: fusion.FusionConfig) -> None:
    fused, eager = warmed(quick, inner=Raises)
    for _ in range(3):
        with pytest.raises(ValueError, match="too many rows"):
            no_grad(fused, rand(9))
        agree(fused, eager, rand(4))


class Late(torch.nn.Module):
    """A condition on data that comes after a step with an effect."""

    def __init__(self) -> None:
        super().__init__()
        self.step = Counted()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.step(torch.exp(x) + 1)
        return y * 2 if y.sum() > 100 else y + 3


def test_a_condition_that_fails_after_a_step_does_not_repeat_the_step(quick: fusion.FusionConfig) -> None:
    fused = fusion.enable(Late().eval(), quick)
    eager = Late().eval()
    for k, value in enumerate((1.0, 1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0)):
        agree(fused, eager, torch.full((2, 16), value))
        assert fused.step.calls == k + 1


class Memory:
    """An object that a forward makes: keeps what it is given."""

    def __init__(self, start: int = 0) -> None:
        self.held: list[torch.Tensor] = []
        self.start = start

    def add(self, x: torch.Tensor) -> torch.Tensor:
        self.held.append(x)
        return torch.cat(self.held)


fusion.register_made(Memory)
fusion.register_island(Memory, "add", grows=(0,))


class Sometimes(torch.nn.Module):
    """Reads data where it is told to."""

    def forward(self, x: torch.Tensor, look: bool) -> torch.Tensor:
        return x * (x[0].tolist()[0] if look else 2)


class Around(torch.nn.Module):
    """Calls a module that becomes a step only when it is called in another way."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Sometimes()

    def forward(self, x: torch.Tensor, memory: Memory, look: bool = False) -> torch.Tensor:
        kept = memory.add(torch.exp(x))
        return self.inner(kept.tanh() + 1, look) * 3


def test_a_module_that_becomes_a_step_after_it_was_recorded_inside(quick: fusion.FusionConfig) -> None:
    fused, eager = fusion.enable(Around().eval(), quick), Around().eval()
    looks = (False, True, True, False, False, True, False, False, True, True)  # the second voids the first recording
    for rows, look in zip((3, 3, 3, 5, 5, 4, 4, 6, 4, 5), looks, strict=True):
        torch.testing.assert_close(
            no_grad(fused, rand(rows), Memory(), look), no_grad(eager, rand(rows), Memory(), look)
        )
    assert planned(fused)["Around"] >= 2 and "inner" in fusion.api._enabled(fused)[""].eager


class Both:
    """An object made of others that a forward makes, which are found in it again."""

    def __init__(self, first: Memory, second: Memory) -> None:
        self.first = first
        self.second = second


fusion.register_made(Both)


class Pairs(torch.nn.Module):
    """Makes an object of two that it makes, as encoders and decoders share one cache."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        both = Both(Memory(), Memory())
        kept = both.first.add(torch.exp(x) + 1) * 2
        return both.second.add(kept.tanh() + 1) * 3


def test_an_object_made_of_made_objects(quick: fusion.FusionConfig) -> None:
    fused, eager = fusion.enable(Pairs().eval(), quick), Pairs().eval()
    for rows in (3, 3, 3, 5, 5, 4, 4):
        agree(fused, eager, rand(rows))
    assert planned(fused)["Pairs"] >= 3


class Pads(Memory):
    """Hands back what it was given, or something longer where that is short: as caches of convolutions do."""

    def add(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.shape[0] >= 4 else torch.cat([x, x.new_zeros(4 - x.shape[0], x.shape[1])])


fusion.register_island(Pads, "add", grows=(0,))


class Padded(torch.nn.Module):
    """Uses what an opaque call hands back."""

    def forward(self, x: torch.Tensor, memory: Pads) -> torch.Tensor:
        return (memory.add(torch.exp(x) + 1) * 2).cumsum(0).tanh()


def test_an_island_that_hands_back_its_argument_now_and_then(quick: fusion.FusionConfig) -> None:
    fused, eager = fusion.enable(Padded().eval(), quick), Padded().eval()
    for rows in (5, 6, 5, 7, 3, 2, 6, 3):
        agree(fused, eager, rand(rows), Pads())
    assert planned(fused)["Padded"] >= 2


@dataclasses.dataclass
class Result:
    """A result type of the user's own."""

    value: torch.Tensor
    memory: Any = None


pytree.register_dataclass(Result)


class Makes(torch.nn.Module):
    """Makes an object when it is given none, as models make a cache."""

    def forward(self, x: torch.Tensor, memory: Memory | None = None) -> Result:
        if memory is None:
            memory = Memory(start=3)
        y = memory.add(torch.exp(x) * 2)
        return Result(y.tanh() + memory.start, memory)


def test_a_forward_that_makes_an_object(quick: fusion.FusionConfig) -> None:
    fused, eager = fusion.enable(Makes().eval(), quick), Makes().eval()
    made: list[Memory] = []
    for rows in (3, 3, 4, 4, 5, 5):
        mine, theirs = no_grad(fused, rand(rows)), no_grad(eager, rand(rows))
        for _ in range(3):
            torch.testing.assert_close(mine.value, theirs.value)
            assert len(mine.memory.held) == len(theirs.memory.held)
            made.append(mine.memory)
            mine, theirs = no_grad(fused, rand(2), mine.memory), no_grad(eager, rand(2), theirs.memory)
            assert type(mine.memory) is Memory and mine.memory.start == 3
    assert len({id(m.held) for m in made}) == 6, "each forward without a memory made its own"
    assert planned(fused)["Makes"] > 6


def test_generate_gives_eagers_tokens(quick: fusion.FusionConfig) -> None:
    eager, fused = transformer(), fusion.enable(transformer(), quick)
    for seed in range(3):
        ids = torch.randint(3, 90, (2, 5 + seed), generator=torch.Generator().manual_seed(seed))
        for options in ({"do_sample": False}, {"num_beams": 2, "do_sample": False}):
            mine, theirs = (m.generate(ids, max_new_tokens=6, **options) for m in (fused, eager))
            assert torch.equal(mine, theirs)
    whole = scopes(fused)[type(fused).__name__]
    assert whole.statistics.planned[0] > 10 and whole.statistics.fallbacks == 0


def test_hidden_states_asked_for_now_and_then(quick: fusion.FusionConfig) -> None:
    eager, fused = transformer(), fusion.enable(transformer(), quick)
    for k in range(9):
        ids = torch.randint(3, 90, (2, 4 + k % 3), generator=torch.Generator().manual_seed(k))
        wanted = {"output_hidden_states": True} if k % 3 == 2 else {}
        with torch.inference_mode():
            mine, theirs = (m(ids, use_cache=False, **wanted) for m in (fused, eager))
        torch.testing.assert_close(mine.logits, theirs.logits, rtol=1e-5, atol=1e-6)
        assert (mine.hidden_states is None) == (theirs.hidden_states is None)
        for a, b in zip(mine.hidden_states or (), theirs.hidden_states or (), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    assert "hook" in str(scopes(fused)["model.layers.1"].statistics.last_reason), "hooks keep the layers eager"
