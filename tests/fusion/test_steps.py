"""Whole forwards as scopes: blocks and data-dependent modules are steps, objects are made, reads are conditions."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import no_grad, planned, scopes, transformer
from torch.utils import _pytree as pytree

import fusion


class Block(torch.nn.Module):
    """A projection and a gate, with something that a test puts in."""

    def __init__(self, inner: torch.nn.Module | None = None) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(16, 16)
        self.inner = inner if inner is not None else torch.nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.inner(F.silu(self.linear(x)) * x) + x


class Model(torch.nn.Module):
    """Arithmetic around blocks."""

    def __init__(self, count: int = 3, inner: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(Block(inner() if inner else None) for _ in range(count))
        self.scale = 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = (x * self.scale).tanh() + 1
        for layer in self.layers:
            x = layer(x)
        return F.softplus(x) * self.scale


def rand(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, 16, generator=torch.Generator().manual_seed(seed + rows))


def agree(fused: torch.nn.Module, eager: torch.nn.Module, *args: Any) -> Any:
    """Some ten float32 roundings apart at most: kernels round where eager does, exp and tanh within 2 ulp of it."""
    found, expected = no_grad(fused, *args), no_grad(eager, *args)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    return found


def warmed(quick: fusion.FusionConfig, **options: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """A model whose scopes all have trusted plans, and its eager twin."""
    eager = Model(**options).eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (3, 3, 5, 5, 4, 4):
        agree(fused, eager, rand(rows))
    assert all(planned(fused)[name] for name in ("Model", "layers.0", "layers.1")), "plans answer by now"
    return fused, eager


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


class Picks(torch.nn.Module):
    """Routes rows by their data, in Python."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = [row * 2 if row > 0 else row for row in x.sum(-1).tolist()]
        return x * torch.tensor(kept).unsqueeze(-1)


def test_a_module_that_reads_data_becomes_a_step_of_its_block(quick: fusion.FusionConfig) -> None:
    fused, eager = warmed(quick, inner=Picks)
    before = planned(fused)
    agree(fused, eager, rand(7))
    agree(fused, eager, rand(7, seed=3))
    assert all(planned(fused)[f"layers.{i}"] > before[f"layers.{i}"] for i in range(3))
    rows = {s.name: s for s in fusion.report(fused).scopes}
    assert all(rows[f"layers.{i}"].state == "fused" for i in range(3))
    assert rows["layers.0.inner"].state == "eager" and "data_read: tolist" in rows["layers.0.inner"].reason


class Splits(torch.nn.Module):
    """Reads data in its own forward; its parts can be recorded."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = Block(), Block()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x)
        return self.second(y * y[0].tolist()[0])


def test_a_forward_that_reads_data_leaves_its_parts_as_scopes(quick: fusion.FusionConfig) -> None:
    eager = Splits().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for rows in (3, 3, 5, 5, 4):
        agree(fused, eager, rand(rows))
    assert list(scopes(fused)) == ["Splits", "first", "second"]
    before = planned(fused)
    agree(fused, eager, rand(4))
    after = planned(fused)
    assert (after["Splits"], after["first"] - before["first"], after["second"] - before["second"]) == (0, 1, 1)
    assert "data_read" in fusion.report(fused).scopes[0].reason


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


class Counted(torch.nn.Module):
    """Counts its calls in Python, and reads data so that it is a step."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return x * 2 if x[0].tolist()[0] > 0 else x


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
    assert planned(fused)["Around"] >= 2 and "inner" in fusion.api._enabled(fused).eager


class Pads(Memory):
    """Hands back what it was given, or something longer where that is short: as caches of convolutions do."""

    def add(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.shape[0] >= 4 else torch.cat([x, x.new_zeros(4 - x.shape[0], x.shape[1])])


fusion.register_island(Pads, "add", grows=(0,))


class Padded(torch.nn.Module):
    """Uses what an island hands back."""

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


class Widens(Counted):
    """Returns another dtype for large values, after its effect."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        return y.double() if y.max().tolist() > 60 else y


class Chain(torch.nn.Module):
    """Steps in a row, then perhaps a condition on data, which leads to where the first one's result is read."""

    def __init__(self, look: bool = False) -> None:
        super().__init__()
        self.steps = torch.nn.ModuleList([Counted(), Counted(), Counted(), Widens()])
        self.look = look

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = first = self.steps[0](torch.exp(x) + 1)
        if not self.look:
            del first
        for step in self.steps[1:]:
            y = step(y)
        if self.look and y.sum() > 1500:
            return y * 2 + first
        return y + 3


@pytest.mark.parametrize("look", [False, True])
def test_what_steps_hand_on_is_not_kept(look: bool, quick: fusion.FusionConfig) -> None:
    fused, eager = fusion.enable(Chain(look).eval(), quick), Chain(look).eval()
    for value in (1.0, 1.0, 1.0, 1.0, 1.0):
        agree(fused, eager, torch.full((2, 16), value))
    (known,) = scopes(fused)["Chain"].known
    ((_, plan),) = known.plans.values()
    assert plan.source.count("] = gone") == (1 if look else 2), "the forward holds what it may still read"
    for k, value in enumerate((3.0, 1.0, 1.0, 3.0, 1.0, 1.0, 1.0), start=6):
        agree(fused, eager, torch.full((2, 16), value))
        assert [step.calls for step in fused.steps] == [k] * 4
    assert scopes(fused)["Chain"].statistics.fallbacks > 0


class Hands(Counted):
    """Returns what it was given, or something new, by its data."""

    def __init__(self, above: bool) -> None:
        super().__init__()
        self.above = above

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if (x.max().tolist() > 10) == self.above else x.clone()


def writes_to_the_result(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) + 1
    z = m.step(y)
    w = y.sin() * 3
    z.add_(1)
    return z * 2 + y.tanh() * w


def writes_to_a_view_of_the_result(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) + 1
    m.step(y)[0].mul_(3)
    return y.tanh() * 2


def writes_to_the_argument(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) + 1
    z = m.step(y)
    y.add_(1)
    return z.tanh() * 2


def writes_to_the_callers(m: Any, x: torch.Tensor) -> Any:
    m.step(x).mul_(0.5)
    return x.exp() + 1


def reads_both(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) + 1
    z = m.step(y)
    return (z.tanh() * 2, y.sin() + 1), z


class Lends(torch.nn.Module):
    """Gives a step a tensor and goes on with it, and with what came back."""

    def __init__(self, function: Any, above: bool) -> None:
        super().__init__()
        self.step = Hands(above)
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


@pytest.mark.parametrize("above", [False, True], ids=["recorded as its argument", "recorded as another"])
@pytest.mark.parametrize(
    "function",
    [writes_to_the_result, writes_to_a_view_of_the_result, writes_to_the_argument, writes_to_the_callers, reads_both],
)
def test_a_step_that_hands_its_argument_back_now_and_then(
    function: Any, above: bool, quick: fusion.FusionConfig
) -> None:
    fused, eager = fusion.enable(Lends(function, above).eval(), quick), Lends(function, above).eval()
    for k, value in enumerate((1.0, 1.0, 1.0, 1.0, 3.0, 30.0, 1.0, 3.0, 30.0, 1.0)):
        mine, theirs = torch.full((2 + k % 3, 16), value), torch.full((2 + k % 3, 16), value)
        found, expected = no_grad(fused, mine), no_grad(eager, theirs)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(mine, theirs)
    if function is reads_both:
        assert planned(fused)["Lends"] >= 4
    else:
        assert "outer_write" in fusion.report(fused).scopes[0].reason


class Balks(Counted):
    """Raises for large values, after its effect."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = super().forward(x)
        if y.max().tolist() > 100:
            raise ValueError("too large")
        return y


def hands_out_the_first(m: Any, x: torch.Tensor) -> Any:
    first = m.steps[0](torch.exp(x) + 1)
    try:
        last = m.steps[2](m.steps[1](first))
    except ValueError:
        return first
    return last.tanh() * 2


def reads_what_it_has(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) + 1
    try:
        for step in m.steps:
            y = step(y)
    except ValueError:
        return (y * 2).tanh()
    return y.tanh() * 2


def keeps_all(m: Any, x: torch.Tensor) -> Any:
    every = [torch.exp(x) + 1]
    try:
        for step in m.steps:
            every.append(step(every[-1]))
    except ValueError:
        return [y * 2 for y in every]
    return [every[-1].tanh() * 2]


def catches_around_each(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) + 1
    for step in m.steps:
        before = y
        try:
            y = step(y)
        except ValueError:
            y = before - 1
    return y.tanh() * 2


def looks_at_the_last(m: Any, x: torch.Tensor) -> Any:
    first = m.steps[0](torch.exp(x) + 1)
    last = m.steps[2](m.steps[1](first))
    return first * 2 if last.dtype is torch.float64 else last.tanh() * 2


class Careful(torch.nn.Module):
    """A way of going on after steps that may fail, or return something else."""

    def __init__(self, function: Any, last: Any) -> None:
        super().__init__()
        self.steps = torch.nn.ModuleList([Counted(), Counted(), last()])
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


@pytest.mark.parametrize(
    ("function", "last"),
    [
        (hands_out_the_first, Balks),
        (reads_what_it_has, Balks),
        (keeps_all, Balks),
        (catches_around_each, Balks),
        (looks_at_the_last, Widens),
    ],
)
def test_a_forward_that_goes_on_with_what_earlier_steps_gave(
    function: Any, last: Any, quick: fusion.FusionConfig
) -> None:
    fused, eager = fusion.enable(Careful(function, last).eval(), quick), Careful(function, last).eval()
    for value in (1.0, 1.0, 1.0, 1.0, 1.0, 1.0):
        agree(fused, eager, torch.full((2, 16), value))
    assert planned(fused)["Careful"] >= 1
    for value in (3.0, 3.0, 1.0, 3.0, 1.0, 1.0, 3.0):
        agree(fused, eager, torch.full((2, 16), value))
        assert [step.calls for step in fused.steps] == [step.calls for step in eager.steps]


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


class Reader(torch.nn.Module):
    """Reads data in Python when it is told to: then its scope cannot be recorded with it inside."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, through_numpy: bool = False) -> torch.Tensor:
        y = torch.tanh(self.linear(x)) * 2
        return torch.from_numpy(np.sort(y.numpy())) if through_numpy else y


class ReadsFirst(torch.nn.Module):
    """A module that becomes a step late, before blocks that were steps from the start."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.reader = Reader()
        inner = [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.SiLU()) for _ in range(2)]
        self.blocks = torch.nn.ModuleList(inner)

    def forward(self, x: torch.Tensor, through_numpy: bool = False) -> torch.Tensor:
        y = self.reader(x, through_numpy) + x
        for block in self.blocks:
            y = block(y) * 0.5 + y
        return y


def test_a_module_that_becomes_a_step_later_does_not_answer_in_older_logs(quick: fusion.FusionConfig) -> None:
    eager, model = ReadsFirst().eval(), fusion.enable(ReadsFirst().eval(), quick)
    calls = [(4, False)] * 3 + [(4, True)] * 3 + [(6, False)] * 2 + [(7, False)]
    for number, (rows, through_numpy) in enumerate(calls):
        x = torch.randn(2, rows, 8, generator=torch.Generator().manual_seed(number))
        with torch.no_grad():
            torch.testing.assert_close(model(x, through_numpy), eager(x, through_numpy))
    root = next(scope for scope in fusion.report(model).scopes if scope.name == "ReadsFirst")
    assert root.fused_calls >= 3 and root.fallbacks == 0, root


class Fills(Counted):
    """Writes to a buffer of another module's."""

    def forward(self, x: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
        buffer.copy_(x.sum(0))
        return super().forward(x)


class Filled(torch.nn.Module):
    """Reads its buffer only after a step has written to it."""

    def __init__(self) -> None:
        super().__init__()
        self.step = Fills()
        self.register_buffer("total", torch.zeros(16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.step(torch.exp(x) + 1, self.total)
        return (self.total * 2).tanh() + y


def test_a_buffer_that_a_step_writes_to_is_read_afterwards(quick: fusion.FusionConfig) -> None:
    fused, eager = fusion.enable(Filled().eval(), quick), Filled().eval()
    for seed, rows in enumerate((3, 3, 4, 4, 5, 5, 3, 4)):
        agree(fused, eager, rand(rows, seed))
        torch.testing.assert_close(fused.total, eager.total)


class Experts(torch.nn.Module):
    """Rows go to the expert that data names, one expert at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.ModuleList(torch.nn.Linear(16, 16) for _ in range(8))

    def forward(self, x: torch.Tensor, choice: torch.Tensor) -> torch.Tensor:
        out = torch.zeros_like(x)
        for expert in torch.unique(choice).unbind():
            rows = (choice == expert).nonzero().squeeze(-1)
            out.index_add_(0, rows, torch.sigmoid(self.up[int(expert.item())](x[rows])) * 2)
        return out


class Routed(torch.nn.Module):
    """A block whose middle is led by data, and whose ends are not."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = Experts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(x * 2 + 1)
        return x + self.experts(y, (x[:, 0] * 4).long().clamp(-4, 3) + 4) * torch.sigmoid(y)


def test_experts_that_data_chooses_call_by_call_become_an_eager_step(quick: fusion.FusionConfig) -> None:
    eager = Routed().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for seed in range(12):
        agree(fused, eager, rand(5, seed=seed))
    report = {scope.name: scope for scope in fusion.report(fused).scopes}
    assert "data_read" in report["experts"].reason
    assert report["Routed"].fused_calls, "the ends run in a plan"
    assert sum(scope.recordings for scope in report.values()) <= 4, "not one recording for each choice"
    for linear in fused.experts.up:
        linear.weight = torch.nn.Parameter(linear.weight * 2)
    for linear in eager.experts.up:
        linear.weight = torch.nn.Parameter(linear.weight * 2)
    agree(fused, eager, rand(5, seed=3))


class Part(torch.nn.Module):
    """Reads data in calls of one structure only."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0

    def forward(self, x: torch.Tensor, listed: bool) -> torch.Tensor:
        return x * self.scale + (len(x.tolist()) if listed else 0)


class Whole(torch.nn.Module):
    """Around such a part."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Part()

    def forward(self, x: torch.Tensor, listed: bool = False) -> torch.Tensor:
        return torch.tanh(self.part(x, listed) + 1) * 2


@pytest.mark.parametrize("first", [False, True])
def test_a_module_is_a_step_only_in_calls_that_cannot_be_recorded_through_it(
    first: bool, quick: fusion.FusionConfig
) -> None:
    eager = Whole().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for listed in (first, not first):
        for _ in range(4):
            agree(fused, eager, rand(4), listed)
    assert "part" in {scope.name for scope in fusion.report(fused).scopes}
    fused_calls = sorted(c.coverage for k in scopes(fused)["Whole"].known for c, _ in k.plans.values())
    assert fused_calls == [(3, 3), (5, 5)], "one plan calls the part, one looks into it"
    before = planned(fused)["Whole"]
    agree(fused, eager, rand(4), False)
    agree(fused, eager, rand(4), True)
    assert planned(fused)["Whole"] == before + 2
    fused.part.scale = eager.part.scale = 3.0  # still watched, for the calls that look into it
    agree(fused, eager, rand(4), False)
    agree(fused, eager, rand(4), True)


class Counts(torch.nn.Module):
    """Tells in Python how many rows go first."""

    def forward(self, x: torch.Tensor) -> int:
        return int((x[:, 0] > 0).sum().tolist())


class Parts(torch.nn.Module):
    """Goes by what such a step tells."""

    def __init__(self) -> None:
        super().__init__()
        self.counts = Counts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        ordered, first = torch.tanh(x + 1)[x[:, 0].argsort(descending=True)], self.counts(x)
        return torch.cat([ordered[:first] * 2, ordered[first:] * 3])


class AroundSplits(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.splits = Parts()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.sin(x * 2)
        return torch.sigmoid(self.splits(y)) + y


def test_a_part_that_goes_by_numbers_of_a_step_becomes_a_step(quick: fusion.FusionConfig) -> None:
    eager = AroundSplits().eval()
    fused = fusion.enable(copy.deepcopy(eager), quick)
    for seed in range(16):
        agree(fused, eager, rand(3, seed=seed))  # 0 to 3 rows each
    report = {scope.name: scope for scope in fusion.report(fused).scopes}
    assert "data_read" in report["splits"].reason
    assert report["AroundSplits"].fused_calls > 4
    assert report["AroundSplits"].recordings <= 6, "not one for each division of the rows"
