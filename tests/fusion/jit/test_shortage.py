"""Memory that runs out while a call is recorded, proved, measured or run: eager's result, and another try later."""

import weakref
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest
import torch

import fusion
from fusion.choices import heuristics
from fusion.choices.decision import Decision
from fusion.jit.cache_entry import CacheEntry, PlanStopped
from fusion.jit.lifecycle import _PAUSE
from fusion.patterns.shortage import is_shortage, without_frames

ERRORS = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] data. DefaultCPUAllocator: can't allocate memory"),
]


def _once(error: Exception, otherwise: Callable[..., Any]) -> Callable[..., Any]:
    """Raises the first time."""
    left = [error]

    def call(*args: Any, **kwargs: Any) -> Any:
        if left:
            raise left.pop()
        return otherwise(*args, **kwargs)

    return call


def config(tmp_path: Path, *, profile: bool = False) -> dict[str, Any]:
    return {"profile": profile, "cache_dir": tmp_path / "cache", "min_nodes": 1, "min_tensor_elements": 0}


class Plain(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x) * 2 + torch.sigmoid(x)


def settles(model: torch.nn.Module, plain: torch.nn.Module, calls: int) -> str:
    """Every call is eager's to the bit or a rounding; the scope's state in the end."""
    with torch.no_grad():
        for k in range(calls):
            x = torch.randn(3 + k % 4, 64)
            torch.testing.assert_close(model(x), plain(x))
    return str(fusion.report(model).scopes[0].state)


class Hungry(torch.nn.Module):
    """Has no memory to spare while it is recorded; tells whether what it made then is still there afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.made: SimpleQueue[weakref.ref[torch.Tensor]] = SimpleQueue()  # nobody puts back what is in it
        self.left_over: SimpleQueue[bool] = SimpleQueue()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.tanh(x)
        if torch._C._len_torch_dispatch_stack():
            self.made.put(weakref.ref(y))
            raise ERRORS[2]
        if not self.made.empty():
            self.left_over.put(self.made.get()() is not None)
        return y * 2 + torch.sigmoid(x)


def test_recording(tmp_path: Path) -> None:
    model = Hungry().eval()
    fusion.enable(model, config(tmp_path))
    settles(model, Plain(), 1)
    assert model.left_over.get_nowait() is False
    assert "out_of_memory" in str(fusion.report(model).scopes[0].reason)
    settles(model, Plain(), _PAUSE + 1)
    assert model.left_over.get_nowait() is False  # it was tried again, once
    assert model.left_over.empty()


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("where", ["prove", "compare"])
def test_proving_and_measuring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str, error: Exception) -> None:
    monkeypatch.setattr(heuristics, where, _once(error, getattr(heuristics, where)))
    model = Plain().eval()
    fusion.enable(model, config(tmp_path, profile=where == "compare"))
    assert settles(model, Plain(), 1) != "fused"
    assert "out_of_memory" in str(fusion.report(model).scopes[0].reason)
    entries = [entry.read_bytes() for entry in (tmp_path / "cache").glob("*.json.entry")]
    assert not any(b'"fused"' in entry for entry in entries)  # its trial's verdict, but no decision
    assert settles(model, Plain(), _PAUSE + 8) in ("fused", "unfused plan")  # whatever was measured


@pytest.mark.parametrize("call", [0, 1])
def test_running_the_plan_without_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    run, calls = CacheEntry.checked_run, []

    def checked_run(self: CacheEntry, *args: Any) -> Any:
        calls.append(args)
        if len(calls) == call + 1:
            raise PlanStopped(MemoryError(), []) from MemoryError()
        return run(self, *args)

    monkeypatch.setattr(CacheEntry, "checked_run", checked_run)
    model = Plain().eval()
    fusion.enable(model, config(tmp_path))
    settles(model, Plain(), 2)
    assert "out_of_memory" in str(fusion.report(model).scopes[0].reason)
    assert settles(model, Plain(), _PAUSE + 8) == "fused"


def test_a_planned_call_that_finds_no_memory_does_not_cost_the_plan(tmp_path: Path) -> None:
    model = Plain().eval()
    fusion.enable(model, config(tmp_path))
    assert settles(model, Plain(), 6) == "fused"
    scope = fusion.api._enabled(model)[""].scopes[0][1]
    fail, _ = scope._validator.on_failure(scope.known[0])
    x = torch.randn(3, 64)
    for _ in range(5):
        torch.testing.assert_close(fail(MemoryError(), [], (x,), None), Plain()(x))
    assert scope.known[0].refusal is None and scope.statistics.fallbacks == 5


def test_a_launch_without_memory_is_no_decision(tmp_path: Path) -> None:
    def launch(*_: Any) -> Any:
        raise ERRORS[2]

    graph = fusion.create_swiglu_pattern().graph if hasattr(fusion.create_swiglu_pattern(), "graph") else None
    graph = graph or fusion.create_swiglu_pattern()
    judge = fusion.FusionHeuristics(fusion.FusionConfig.resolve(config(tmp_path))).judge
    with pytest.raises(RuntimeError, match="can't allocate"):
        judge(graph, [torch.ones(2, 4)] * len(graph.inputs), dict.fromkeys(graph.symbols, 2), launch, ())

    def broken(*_: Any) -> Any:
        raise ValueError("no")

    found = judge(graph, [torch.ones(2, 4)] * len(graph.inputs), dict.fromkeys(graph.symbols, 2), broken, ())
    assert isinstance(found, Decision) and found.code == "launch_error"


def test_what_counts_as_a_shortage() -> None:
    assert all(map(is_shortage, ERRORS)) and is_shortage(OSError(12, "Cannot allocate memory"))
    assert not any(
        map(is_shortage, [ValueError("out of memory"), RuntimeError("size mismatch"), OSError(2, "x"), None])
    )
    try:
        try:
            raise ERRORS[0]
        finally:
            raise KeyError("on the way")
    except KeyError as error:
        assert is_shortage(error)
        without_frames(error)
        assert error.__traceback__ is None and error.__context__.__traceback__ is None  # type: ignore[union-attr]
