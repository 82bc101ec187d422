"""What a scope is given and what it writes to: layouts, dtypes, aliases, in-place calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graphs import normal as rand
from pair import Pair
from tiny import assert_fused, assert_untouched, bits, no_grad, planned, scopes

import fusion

# ---- inputs


@pytest.mark.parametrize(
    "x",
    [
        rand(16, 6).t(),
        rand(6, 32)[:, ::2],
        rand(6, 17)[:, 1:],
        rand(12, 16)[::2],
        rand(2, 3, 16).transpose(0, 1),
        rand(1, 16).expand(5, 16),
        rand(16).requires_grad_(),
        rand(4, 16).requires_grad_(),
        rand(0, 16),
        rand(2, 0, 16),
        rand(1, 16),
        rand(16),
        rand(1, 1, 16),
        torch.full((3, 16), float("nan")),
        torch.tensor([float("inf"), -float("inf")]).repeat(3, 8),
        torch.zeros(3, 16),
        rand(3, 16) * 1e30,
    ],
    ids=lambda x: f"{list(x.shape)}-{list(x.stride())}",
)
def test_layouts_and_values(pair: Pair, x: torch.Tensor) -> None:
    for _ in range(3):
        found = no_grad(pair.fused, x)
        eager = no_grad(pair.eager, x)
        assert (found.shape, found.stride(), found.dtype) == (eager.shape, eager.stride(), eager.dtype)
        torch.testing.assert_close(found, eager, rtol=2e-5, atol=1e-6, equal_nan=True)
        assert not found.requires_grad


def test_zero_dimensional(quick: fusion.FusionConfig) -> None:
    module = Call(lambda x, y: torch.exp(x * 2 + 1) * torch.sigmoid(y))
    fusion.enable(module, quick)
    for x, y in (
        (torch.tensor(0.5), torch.tensor(0.25)),
        (torch.tensor(0.5), rand(3)),
        (rand(3), torch.tensor(0.5)),
        (rand(3), rand(3)),
        (torch.tensor(0.5), torch.tensor(0.75)),
        (torch.tensor(2), rand(3)),
        (torch.tensor(0.5, dtype=torch.float64), rand(3)),
        (rand(3), torch.tensor(0.5, dtype=torch.float64)),
        (torch.tensor(0.5, dtype=torch.float64), rand(3)),
    ):
        for _ in range(3):
            found, eager = no_grad(module, x, y), module.function(x, y)
            assert (found.shape, found.dtype) == (eager.shape, eager.dtype)
            torch.testing.assert_close(found, eager, rtol=1e-6, atol=0)


class Call(torch.nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.eval()

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def test_an_argument_given_or_none(pair: Pair) -> None:
    x, bias = rand(4, 16), rand(16)
    for given in (None, bias, None, bias, bias, None, rand(4, 16), None):
        pair(x, given)
        pair(x, bias=given)
    for _ in range(4):
        pair(x, bias, twice=True)
        pair(x, bias, twice=False)
    recorded = pair.scope.statistics.recordings
    assert recorded == 4, "none; one of rank 1; one of rank 2; doubled"
    before = planned(pair.fused)
    pair(x, None)
    pair(x, bias)
    pair(x, bias, twice=True)
    assert_fused(pair.fused, before, 3)


def test_one_tensor_twice_then_two(quick: fusion.FusionConfig) -> None:
    module = fusion.enable(Call(lambda a, b: torch.exp(a) * torch.sigmoid(b)), quick)
    for rows in (3, 4, 5, 3):
        a, b = rand(rows, 8), rand(rows, 8, seed=9)
        for left, right in ((a, a), (a, b), (b, a), (b, b)):
            expected = torch.exp(left) * torch.sigmoid(right)
            torch.testing.assert_close(no_grad(module, left, right), expected, rtol=1e-6, atol=1e-7)


def test_overlapping_views_as_arguments(quick: fusion.FusionConfig) -> None:
    module = fusion.enable(Call(lambda a, b: torch.exp(a) * torch.sigmoid(b)), quick)
    base = rand(8, 8)
    for rows in (3, 4, 5, 3):
        left, right = base[:rows], base[1 : rows + 1]
        expected = torch.exp(left) * torch.sigmoid(right)
        torch.testing.assert_close(no_grad(module, left, right), expected, rtol=1e-6, atol=1e-7)


def test_dtypes_come_and_go(quick: fusion.FusionConfig) -> None:
    module = fusion.enable(Call(lambda a: torch.exp(a) * 2 + 1), quick)
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float32, torch.bfloat16):
        for rows in (3, 4, 3):
            a = rand(rows, 8).to(dtype)
            expected = torch.exp(a) * 2 + 1
            found = no_grad(module, a)
            assert found.dtype == dtype
            # eager rounds each of three steps to the dtype: the exact value is within 3 ulp of either
            torch.testing.assert_close(found, expected, rtol=3 * torch.finfo(dtype).eps, atol=0)
    (scope,) = scopes(module).values()
    assert scope.statistics.recordings == 4


def test_results_alias_what_eagers_alias(quick: fusion.FusionConfig) -> None:
    def call(x: torch.Tensor, y: torch.Tensor) -> Any:
        z = torch.exp(x) * 2 + 1
        return x, z, z.t(), z[1:], y, [z, (x[0], 3)], {"z": z, "none": None}

    module = fusion.enable(Call(call), quick)
    for rows in (3, 4, 5, 3, 4):
        x, y = rand(rows, 8), rand(rows)
        found = no_grad(module, x, y)
        assert found[0] is x and found[4] is y
        assert found[5][0] is found[1] and found[6]["z"] is found[1]
        assert found[5][1][0].data_ptr() == x.data_ptr()
        assert found[2].data_ptr() == found[1].data_ptr() and found[2].stride() == (1, 8)
        assert found[3].data_ptr() == found[1].data_ptr() + 8 * 4
        assert found[5][1][1] == 3 and found[6]["none"] is None
        torch.testing.assert_close(found[1], torch.exp(x) * 2 + 1, rtol=1e-6, atol=0)
    assert planned(module)["Call"] >= 2


def test_a_result_is_fresh_in_every_call(pair: Pair) -> None:
    x = rand(4, 16)
    first = pair(x)
    kept = first.clone()
    second = pair(rand(4, 16, seed=5))
    assert first.data_ptr() != second.data_ptr() and torch.equal(first, kept)
    first.zero_()
    pair(x)


def test_constants_are_not_shared_with_results(quick: fusion.FusionConfig) -> None:
    def call(x: torch.Tensor) -> Any:
        scale = torch.tensor([1.0, 2.0, 3.0, 4.0])
        return torch.exp(x) * scale + 1, scale

    module = fusion.enable(Call(call), quick)
    for rows in (3, 4, 5, 3, 4):
        x = rand(rows, 4)
        y, scale = no_grad(module, x)
        torch.testing.assert_close(y, torch.exp(x) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 1, rtol=1e-6, atol=0)
        scale.zero_()


def test_a_constant_written_in_place_starts_anew(quick: fusion.FusionConfig) -> None:
    def call(x: torch.Tensor) -> Any:
        total = torch.tensor([1.0, 2.0, 3.0, 4.0])
        total += x.sum(0)
        return torch.exp(x) * total + 1

    module = fusion.enable(Call(call), quick)
    for rows in (3, 4, 5, 3, 4):
        x = rand(rows, 4)
        torch.testing.assert_close(no_grad(module, x), call(x), rtol=1e-5, atol=1e-6)


# ---- writes to intermediates


def write_then_read(x: torch.Tensor) -> Any:
    y = torch.exp(x) * 2
    z = y + 1
    y.add_(10)
    return z * 2 + y


def read_view_after_write(x: torch.Tensor) -> Any:
    y = torch.exp(x) * 2
    view = y[:, :4]
    before = view + 1
    y.mul_(3)
    return before * view + y[:, :4]


def setitem(x: torch.Tensor) -> Any:
    y = torch.exp(x) * 2
    y[:, 0] = 7
    z = torch.sigmoid(y) + 1
    y[0] = x[0] * 3
    return z + y


def fill_fresh(x: torch.Tensor) -> Any:
    y = torch.zeros_like(x)
    y[:, 1:] = torch.exp(x[:, 1:]) * 2 + 1
    return y * 2 + x


def chained_inplace(x: torch.Tensor) -> Any:
    return (x * 2).exp_().add_(1).mul_(0.5)


def alias_by_expand(x: torch.Tensor) -> Any:
    y = torch.exp(x[:1]) + 1
    wide = y.expand(x.shape[0], -1)
    first = wide * 2 + 1
    y.mul_(5)
    return first + wide


def out_of_intermediate(x: torch.Tensor) -> Any:
    y = torch.empty_like(x)
    torch.mul(x, 3, out=y)
    z = torch.exp(y) + 1
    torch.add(x, 1, out=y)
    return z + y


@pytest.mark.parametrize(
    "call",
    [
        write_then_read,
        read_view_after_write,
        setitem,
        fill_fresh,
        chained_inplace,
        alias_by_expand,
        out_of_intermediate,
    ],
    ids=lambda f: f.__name__,
)
def test_writes_to_intermediates_keep_their_order(call: Any, quick: fusion.FusionConfig) -> None:
    module = fusion.enable(Call(call), quick)
    for rows in (3, 4, 5, 3, 4, 6):
        x = rand(rows, 8)
        was = bits(x)
        torch.testing.assert_close(no_grad(module, x), call(x), rtol=4e-6, atol=1e-6)
        assert_untouched(x, was)
    (scope,) = scopes(module).values()
    assert scope.refused or planned(module)["Call"] >= 2, scope.statistics
