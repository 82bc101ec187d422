"""One fault disables no more than itself: what cannot be compiled is left out, and the rest of the scope is fused."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import fusion
from fusion.choices import kernel_cache, select
from fusion.jit.lifecycle import _PAUSE
from fusion.kernels.backend import backend_named
from fusion.kernels.backends.triton import launch
from fusion.patterns import ops

pytestmark = pytest.mark.usefixtures("without_gradients")

Call = Callable[[torch.Tensor], torch.Tensor]


def checked(function: Call, config: fusion.FusionConfig) -> Any:
    """`function` under fusion after three calls, each checked; its report."""
    fused = fusion.fuse(function, config)
    for rows in (3, 4, 3):
        x = torch.linspace(-2, 3, rows * 8).view(rows, 8)
        eager, found = function(x), fused(x)
        assert found.dtype == eager.dtype
        torch.testing.assert_close(found, eager)
    (scope,) = fusion.report(fused).scopes
    return scope


@pytest.mark.parametrize(
    "number",
    [
        lambda x: torch.div(5, 2),
        lambda x: torch.div(x.shape[0], 2),
        lambda x: torch.true_divide(x.shape[0], x.shape[1]),
        lambda x: torch.add(x.shape[0], 2),
        lambda x: torch.sub(3, 2),
        lambda x: torch.mul(3, 2.5),
        lambda x: torch.ops.aten.exp(2),
        lambda x: torch.scalar_tensor(2),
        lambda x: torch.full((), 3.0),
    ],
    ids=["div", "div size", "true_divide", "add", "sub", "mul", "exp", "scalar_tensor", "full"],
)
def test_an_operator_on_numbers_alone_is_called_and_the_rest_fused(number: Call, quick: fusion.FusionConfig) -> None:
    scope = checked(lambda x: F.silu(x) * 2 + number(x), quick)
    assert scope.state == "fused" and scope.fallbacks == 0, scope.reason


def two_chains(x: torch.Tensor) -> torch.Tensor:
    """Two regions, for a product lies between them."""
    return F.silu(F.silu(x) * 2 @ torch.eye(8)) + torch.atan(x).neg()


def fail(*_: Any, **__: Any) -> Any:
    raise KeyError("no such thing")


def raising_for(operator: str, function: Callable[..., Any], ops_of: Callable[..., str]) -> Callable[..., Any]:
    """`function`, which fails where `ops_of` its arguments names an operator."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return fail() if operator in ops_of(*args) else function(*args, **kwargs)

    return call


def test_a_row_that_fails_leaves_out_its_operator(
    monkeypatch: pytest.MonkeyPatch, quick: fusion.FusionConfig, caplog: pytest.LogCaptureFixture
) -> None:
    row = ops.lookup("aten.atan.default")
    assert row is not None
    monkeypatch.setitem(ops.TABLE, row.op, replace(row, covers=fail))
    with caplog.at_level(logging.WARNING, "fusion"):
        scope = checked(two_chains, quick)
    assert scope.state == "fused"
    (refused,) = [r for r in scope.refusals if r.name == "atan"]
    assert refused.code == "compiler_fault" and "KeyError: 'no such thing'" in refused.reason
    assert "aten.atan.default" in caplog.text


@pytest.mark.parametrize("where", ["lower", "launch", "rule", "judge", "pattern", "key"])
def test_what_fails_in_one_region_refuses_it_alone(
    where: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def of_graph(graph: Any, *_: Any, **__: Any) -> str:
        return "+".join(graph.ops)

    heuristics = select.FusionHeuristics
    patched: dict[str, tuple[Any, str, Callable[..., str]]] = {
        "lower": (kernel_cache, "lower_kernel", of_graph),
        "launch": (kernel_cache, "make_launcher", lambda kernel: kernel.name),
        "rule": (heuristics, "should_fuse", lambda _, graph, *__: of_graph(graph)),
        "judge": (heuristics, "judge", lambda _, graph, *__: of_graph(graph)),
        "pattern": (select, "match", of_graph),
        "key": (kernel_cache.Backends, "decision_key", lambda _, graph, *__: of_graph(graph)),
    }
    owner, name, ops_of = patched[where]
    monkeypatch.setattr(owner, name, raising_for("atan", getattr(owner, name), ops_of))
    with caplog.at_level(logging.WARNING, "fusion"):
        scope = checked(two_chains, fusion.FusionConfig(profile=False, cache_dir=tmp_path))
    assert scope.state == "fused" and "KeyError" in caplog.text
    decided = {r.decision for r in scope.regions if "silu" in "".join(r.ops)}
    assert "fused" in decided
    faults = [r for r in scope.regions if r.code == "compiler_fault"]
    assert bool(faults) is (where != "pattern")
    assert all("KeyError: 'no such thing'" in r.reason for r in faults)


def test_a_partition_that_fails_leaves_the_plan_unfused(
    monkeypatch: pytest.MonkeyPatch, quick: fusion.FusionConfig
) -> None:
    monkeypatch.setattr("fusion.jit.stages.partition", fail)
    scope = checked(two_chains, quick)
    assert scope.state == "unfused plan" and scope.fused_calls > 0
    assert {r.code for r in scope.refusals} == {"compiler_fault"}


def test_running_out_of_memory_is_remembered_of_nothing(
    monkeypatch: pytest.MonkeyPatch, quick: fusion.FusionConfig
) -> None:
    def exhausted(*_: Any, **__: Any) -> Any:
        raise MemoryError

    fused = fusion.fuse(two_chains, quick)
    x = torch.randn(3, 8)
    with monkeypatch.context() as patched:
        patched.setattr("fusion.jit.stages.partition", exhausted)
        torch.testing.assert_close(fused(x), two_chains(x))
    for _ in range(_PAUSE + 4):
        torch.testing.assert_close(fused(x), two_chains(x))
    assert fused.scope.statistics.planned[0] > 0


@pytest.mark.parametrize(
    "operator", [lambda x: torch.atan2(x, x + 4), lambda x: torch.tanh(x.double()).float()], ids=["atan2", "tanh64"]
)
def test_a_primitive_that_triton_lacks_refuses_its_region(
    operator: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setattr(kernel_cache.Backends, "backends_for", lambda *_: (backend_named("triton"),))
    monkeypatch.setattr(launch, "make_cuda_launcher", emitted)

    def forward(x: torch.Tensor) -> torch.Tensor:
        return operator(F.silu(x) * 2 @ x.T)

    config = fusion.FusionConfig(profile=False, verify=False, fallback_on_error=False, cache_dir=tmp_path)
    scope = checked(forward, config)
    assert scope.state == "fused", scope.reason
    first, second = scope.regions
    assert "silu" in first.ops and first.decision == "fused"
    assert second.decision == "refused" and "Triton" in second.reason


def emitted(nest: Any, schedule: Any) -> Callable[..., torch.Tensor]:
    """In the place of a launcher of Triton kernels, whose text was made as for a GPU: torch computes."""
    return lambda x: F.silu(x) * 2
