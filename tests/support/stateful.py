"""A module with buffers beside an eager one: after every call, all that lasts is as eager leaves it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from tiny import no_grad, scopes

import fusion
from fusion.jit.scope import Scope

ROWS = (3, 4, 5, 3, 4, 6, 3)  # the first is recorded, the second proves the plan at another shape
# Some ten roundings in float32, and exponentials that are a few units off, relative to the largest value.
WITHIN = 32 * torch.finfo(torch.float32).eps


class Stateful(torch.nn.Module):
    """A function of a module with buffers."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("total", torch.zeros(8))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("window", torch.zeros(6, 8))

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def rand(rows: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


def same(found: Any, expected: Any) -> None:
    if isinstance(expected, (tuple, list)):
        for a, b in zip(found, expected, strict=True):
            same(a, b)
        return
    assert (found.dtype, found.shape, found.stride()) == (expected.dtype, expected.shape, expected.stride())
    scale = max(1.0, float(expected.double().abs().max()))
    torch.testing.assert_close(found.double(), expected.double(), rtol=0, atol=WITHIN * scale)


def beside_eager(
    function: Callable[..., Any],
    config: Any,
    arguments: Callable[[int, int], list[torch.Tensor]] = lambda rows, seed: [rand(rows, seed)],
) -> Scope:
    """Calls a module under fusion beside an eager one over several shapes; compares everything that lasts."""
    eager = Stateful(function).eval()
    fused = fusion.enable(copy.deepcopy(eager), config)
    torch.manual_seed(7)
    for seed, rows in enumerate(ROWS):
        mine, theirs = arguments(rows, seed), arguments(rows, seed)
        before = torch.get_rng_state()
        expected = no_grad(eager, *theirs)
        after = torch.get_rng_state()
        torch.set_rng_state(before)
        found = no_grad(fused, *mine)
        same(found, expected)
        same(mine, theirs)
        for name, buffer in eager.named_buffers():
            same(fused.get_buffer(name), buffer)
        assert torch.equal(torch.get_rng_state(), after), "the generator is where eager leaves it"
    (scope,) = scopes(fused).values()
    return scope


def assert_fused(scope: Scope, calls: int = len(ROWS) - 2) -> None:
    assert scope.statistics.planned[0] == calls, (scope.refused, [k.refusal for k in scope.known])
    assert scope.statistics.fallbacks == 0
    assert all(compiled.kernels for known in scope.known for compiled, _ in known.plans.values())


def ops_in_kernels(scope: Scope) -> set[str]:
    return {
        node.op
        for known in scope.known
        for compiled, _ in known.plans.values()
        for candidate in compiled.candidates
        if candidate.kernel is not None
        for node in candidate.region.subgraph.nodes
    }
