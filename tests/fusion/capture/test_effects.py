"""In-place writes and random draws: after every call the state is eager's, and kernels run where they may."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from stateful import ROWS, Stateful, assert_fused, beside_eager, rand, same
from tiny import no_grad, planned, scopes

import fusion

# ---- temporaries


def in_place_chain(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) * 2
    y.add_(1).mul_(0.5)
    y.masked_fill_(y > 3, 0.0)
    return y * 2 + x


def out_of_a_temporary(m: Any, x: torch.Tensor) -> Any:
    y = torch.empty_like(x)
    torch.mul(x, 3, out=y)
    return torch.exp(y) + 1


def cast_by_the_write(m: Any, x: torch.Tensor) -> Any:
    half = x.half()
    half.add_(x)
    return torch.sigmoid(half) * 2


def filled_and_copied(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) + 1
    z = torch.empty_like(y)
    z.copy_(y)
    z.clamp_(max=2.0)
    y.zero_()
    return z * 3 + y


def through_a_view_that_is_the_last_user(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) * 2
    flat = y.view(-1)
    return flat.add_(1) * 3


def views_made_after_the_write(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) * 2
    y.add_(1)
    half = y[:, :4]
    return half * 3 + y[:, 4:]


@pytest.mark.parametrize(
    "function",
    [
        in_place_chain, out_of_a_temporary, cast_by_the_write, filled_and_copied, through_a_view_that_is_the_last_user,
        views_made_after_the_write,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_writes_to_temporaries_fuse(function: Any, quick: fusion.FusionConfig) -> None:
    scope = beside_eager(function, quick)
    assert_fused(scope)
    (known,) = scope.known
    assert not known.graph.mutated, "no write is left"
    assert not any(node.op.split(".")[1].endswith("_") for node in known.graph.ops)


def alias_read_later(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) * 2
    half = y[:, :4]
    before = half + 1
    y.mul_(3)
    return before * half + y[:, :4]


def part_written(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) * 2
    y[:, :2] = torch.sigmoid(x[:, :2]) * 3 + 1
    return torch.tanh(y) * 2 + x


def base_read_after_a_view_is_written(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) + 1
    y.t().mul_(2)
    return torch.sigmoid(y) * 2 + 1


def constant_written(m: Any, x: torch.Tensor) -> Any:
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    part = scale[:2]
    scale += x.sum(0)
    part.mul_(2)
    return torch.exp(x) * scale + 1, scale


def constant_written_through_a_view(m: Any, x: torch.Tensor) -> Any:
    constant = torch.tensor([0.5, 2.0])
    before = torch.exp(x[..., :2]) + 1
    scaled = before * constant
    constant[..., 1:] = 0.25
    return scaled, torch.sigmoid(before) * 2, before * constant


def handed_out_constant(m: Any, x: torch.Tensor) -> Any:
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0])
    return torch.exp(x) * scale + 1, scale


def reshaped_in_place(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) + 1
    y.unsqueeze_(0)
    return (y * 2 + 1).squeeze_(0).t_()


@pytest.mark.parametrize(
    "function",
    [
        alias_read_later, part_written, base_read_after_a_view_is_written, constant_written,
        constant_written_through_a_view, handed_out_constant,
        reshaped_in_place,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_writes_that_others_see_stay_in_order(function: Any, quick: fusion.FusionConfig) -> None:
    assert_fused(beside_eager(function, quick))


def test_a_handed_out_constant_is_a_new_one_each_time(quick: fusion.FusionConfig) -> None:
    model = fusion.enable(Stateful(handed_out_constant).eval(), quick)
    for seed, rows in enumerate(ROWS):
        _, scale = no_grad(model, rand(rows, seed))
        same(scale, torch.arange(1.0, 9.0))
        scale.zero_()
    assert planned(model) == {"Stateful": len(ROWS) - 2}


# ---- what outlives the call


def argument_written(m: Any, x: torch.Tensor) -> Any:
    x.mul_(2)
    y = F.silu(x) * 3 + 1
    x.add_(y)
    return torch.exp(-y) - x


def view_of_argument_written(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(x) * 2 + 1
    x[:, 1:3].copy_(y[:, 1:3])
    return torch.sigmoid(x) * 2 + y


def argument_handed_back(m: Any, x: torch.Tensor) -> Any:
    y = torch.exp(-x) * 2
    return torch.add(y, 1, out=x), y


def running_statistics(m: Any, x: torch.Tensor) -> Any:
    m.steps += 1
    m.total.mul_(0.9).add_(x.mean(0), alpha=0.1)
    return torch.sigmoid(x - m.total) * 2 + m.steps


def view_of_buffer_written(m: Any, x: torch.Tensor) -> Any:
    m.window[:-1].copy_(m.window[1:].clone())
    m.window[-1] = torch.sigmoid(x.sum(0)) * 2
    return torch.exp(x) * m.window.mean(0) + 1


def rows_of_buffer_written(m: Any, x: torch.Tensor) -> Any:
    m.window.index_copy_(0, torch.tensor([1, 4]), torch.sigmoid(x[:2]) * 2)
    m.window[torch.tensor([0, 2])] = torch.tanh(x[:2]) * 3
    return torch.exp(x) * m.window.sum(0) + 1


@pytest.mark.parametrize(
    "function",
    [
        argument_written, view_of_argument_written, argument_handed_back, running_statistics, view_of_buffer_written,
        rows_of_buffer_written,
    ],
    ids=lambda f: f.__name__,
)  # fmt: skip
def test_outer_writes_happen_once_a_call(function: Any, quick: fusion.FusionConfig) -> None:
    assert_fused(beside_eager(function, quick))


def test_an_argument_written_to_comes_back_as_itself(quick: fusion.FusionConfig) -> None:
    model = fusion.enable(Stateful(argument_handed_back).eval(), quick)
    for seed, rows in enumerate(ROWS):
        x = rand(rows, seed)
        assert no_grad(model, x)[0] is x
    assert planned(model) == {"Stateful": len(ROWS) - 2}


def second_reads_what_the_first_writes(m: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
    z = torch.exp(y) * 2 + 1
    x.add_(z)
    return torch.sigmoid(y) * z + 1


def test_arguments_that_came_apart_and_come_together(quick: fusion.FusionConfig) -> None:
    """Recorded with memory of their own, then called with one tensor over the other."""
    eager = Stateful(second_reads_what_the_first_writes).eval()
    model = fusion.enable(copy.deepcopy(eager), quick)
    for seed, rows in enumerate(ROWS):
        args = [rand(rows, seed), rand(rows, seed + 20)]
        theirs = [a.clone() for a in args]
        same([no_grad(model, *args), *args], [no_grad(eager, *theirs), *theirs])
    before = planned(model)["Stateful"]
    for seed in range(4):
        for offset in (0, 1):
            memory = rand(9, seed)
            other = memory.clone()
            mine = memory[offset : offset + 4], memory[1:5]
            theirs = other[offset : offset + 4], other[1:5]
            same([no_grad(model, *mine), memory], [no_grad(eager, *theirs), other])
    x = rand(4, 5)
    y = x.clone()
    same([no_grad(model, x, x), x], [no_grad(eager, y, y), y])
    assert before == len(ROWS) - 2
    assert scopes(model)["Stateful"].statistics.fallbacks == 0


def test_an_argument_that_is_a_parameter(quick: fusion.FusionConfig) -> None:
    def call(m: Any, x: torch.Tensor) -> Any:
        z = torch.sigmoid(m.window) * 2 + 1
        x.add_(1)
        return torch.exp(m.window) * z + x

    eager = Stateful(call).eval()
    model = fusion.enable(copy.deepcopy(eager), quick)
    for seed in range(4):
        x, y = rand(6, seed), rand(6, seed)
        same([no_grad(model, x), x], [no_grad(eager, y), y])
    for _ in range(3):
        same(no_grad(model, model.window), no_grad(eager, eager.window))
        same(model.window, eager.window)


# ---- failures on the way


def fails_after_a_write(m: Any, x: torch.Tensor) -> Any:
    m.steps += 1
    y = torch.exp(x) * 2 + 1
    m.total.add_(y.sum(0))
    noise = torch.rand(8)
    return torch.tanh(x) * m.total + noise


def test_a_kernel_that_raises_after_a_write(quick: fusion.FusionConfig) -> None:
    """Its operators stand in for it: the write is not made again."""
    eager = Stateful(fails_after_a_write).eval()
    model = fusion.enable(copy.deepcopy(eager), quick)
    (scope,) = scopes(model).values()

    def broken(*args: Any) -> Any:
        raise RuntimeError("launch failed")

    for seed, rows in enumerate((3, 4, 5, 3, 4, 3, 5, 4)):
        if seed == 4:
            for known in scope.known:
                for compiled, _ in known.plans.values():
                    for kernel in compiled.kernels:
                        object.__setattr__(kernel, "launch", broken)
        torch.manual_seed(seed)
        expected = no_grad(eager, rand(rows, seed))
        after = torch.get_rng_state()
        torch.manual_seed(seed)
        same(no_grad(model, rand(rows, seed)), expected)
        same([model.steps, model.total], [eager.steps, eager.total])
        assert torch.equal(torch.get_rng_state(), after)
    assert scope.statistics.planned[0] >= 2 and scope.statistics.fallbacks >= 1


def test_a_plan_that_stops_after_a_write_takes_it_back(
    quick: fusion.FusionConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    eager = Stateful(fails_after_a_write).eval()
    model = fusion.enable(copy.deepcopy(eager), quick)
    (scope,) = scopes(model).values()

    def broken(*args: Any) -> Any:
        raise RuntimeError("launch failed")

    for seed, rows in enumerate((3, 4, 5, 3, 4, 3, 5)):
        if seed == 4:
            for known in scope.known:
                for compiled, plan in known.plans.values():
                    monkeypatch.setitem(plan.run.__globals__, f"kernel{len(compiled.calls) - 1}", broken)
        torch.manual_seed(seed)
        expected = no_grad(eager, rand(rows, seed))
        after = torch.get_rng_state()
        torch.manual_seed(seed)
        same(no_grad(model, rand(rows, seed)), expected)
        same([model.steps, model.total], [eager.steps, eager.total])
        assert torch.equal(torch.get_rng_state(), after)
    assert scope.statistics.planned[0] >= 2 and scope.statistics.fallbacks >= 1


def test_an_error_of_the_users_after_a_write(quick: fusion.FusionConfig) -> None:
    def call(m: Any, x: torch.Tensor, where: torch.Tensor) -> Any:
        m.steps += 1
        y = torch.exp(x) * 2 + m.steps
        return y.index_select(0, where) * 2 + 1

    eager = Stateful(call).eval()
    model = fusion.enable(copy.deepcopy(eager), quick)
    for seed, rows in enumerate((3, 4, 5, 3)):
        args = rand(rows, seed), torch.tensor([0, 2])
        same(no_grad(model, *args), no_grad(eager, *args))
    for module in (model, eager):
        with pytest.raises((IndexError, RuntimeError), match="index"):
            no_grad(module, rand(3, 1), torch.tensor([0, 7]))
    same(model.steps, eager.steps)
    args = rand(3, 1), torch.tensor([0, 1])
    same(no_grad(model, *args), no_grad(eager, *args))


class Overlapping(torch.nn.Module):
    """Writes to an expanded view of what it was given, by index: torch lets it, `copy_` it would not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x[:2, 0].unsqueeze(1).expand(-1, 3).index_fill_(0, torch.tensor([0]), -1.5)
        return torch.sqrt(x.abs() + 1) * 2


def test_an_indexed_write_to_overlapping_memory(quick: fusion.FusionConfig) -> None:
    fused, eager = fusion.enable(Overlapping().eval(), quick), Overlapping().eval()
    for rows in (3, 3, 5, 4):
        mine, theirs = torch.ones(rows, 8) * 3, torch.ones(rows, 8) * 3
        torch.testing.assert_close(no_grad(fused, mine), no_grad(eager, theirs), rtol=1e-6, atol=1e-6)
        assert torch.equal(mine, theirs)
