"""Operators of an inference library: recorded by what they mean, or kept whole in their place."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import close

import fusion
from fusion.capture import decompositions
from fusion.capture.python import registry
from fusion.integrations import inference_ops
from fusion.patterns.errors import FusionError

pytestmark = pytest.mark.usefixtures("without_gradients")

LIBRARY = "fusiontestlib"
ROWS = (3, 4, 5, 3, 4)


@torch.library.custom_op(f"{LIBRARY}::rms_norm", mutates_args=())
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    return torch.from_numpy(inference_ops.rms_norm(x.double(), weight.double(), eps).numpy()).to(x.dtype)


@torch.library.custom_op(f"{LIBRARY}::fused_add_rms_norm", mutates_args=("x", "residual"))
def fused_add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    residual.add_(x)
    x.copy_(inference_ops.rms_norm(residual.double(), weight.double(), eps))


@torch.library.custom_op(f"{LIBRARY}::silu_and_mul", mutates_args=())
def silu_and_mul(x: torch.Tensor) -> torch.Tensor:
    return inference_ops.swiglu(x.double()).to(x.dtype)


@torch.library.custom_op(f"{LIBRARY}::rope", mutates_args=())
def rope(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = inference_ops.rope(q.double(), k.double(), cos.double(), sin.double())
    return a.to(q.dtype), b.to(k.dtype)


@torch.library.custom_op(f"{LIBRARY}::causal_softmax", mutates_args=())
def causal_softmax(scores: torch.Tensor) -> torch.Tensor:
    return inference_ops.causal_softmax(scores.double()).to(scores.dtype)


@torch.library.custom_op(f"{LIBRARY}::reshape_and_cache", mutates_args=("cache",))
def reshape_and_cache(x: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
    cache[slots] = x


@torch.library.custom_op(f"{LIBRARY}::silu", mutates_args=())
def misnamed(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x)


OPS = getattr(torch.ops, LIBRARY)


@pytest.fixture(autouse=True)
def registrations() -> Iterator[None]:
    """Each test registers what it needs."""
    operators, functions = dict(decompositions._OPERATORS), dict(registry.FUNCTIONS)
    yield
    decompositions._OPERATORS.clear()
    decompositions._OPERATORS.update(operators)
    registry.FUNCTIONS.clear()
    registry.FUNCTIONS.update(functions)


def rand(rows: int, seed: int = 0, width: int = 8) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def fused_ops(function: Any) -> set[str]:
    return {
        node.op
        for known in function.scope.known
        for compiled, _ in known.plans.values()
        for candidate in compiled.candidates
        if candidate.kernel is not None
        for node in candidate.region.subgraph.nodes
    }


def compare(call: Any, quick: Any, dtype: torch.dtype = torch.float32, steps: int = 4) -> Any:
    """Runs a function fused and eagerly; what comes out meets the rule of double precision."""
    fused = fusion.fuse(call, quick)
    for rows in ROWS:
        given = [rand(rows, seed).to(dtype) for seed in range(2)]
        mine, theirs, wide = ([t.clone() for t in given], [t.clone() for t in given], [t.double() for t in given])
        for a, b, c in zip(fused(*mine), call(*theirs), call(*wide), strict=True):
            close(a, b, c, steps)
        for a, b, c in zip(mine, theirs, wide, strict=True):
            close(a, b, c, steps)
    (row,) = fusion.report(fused).scopes
    assert (row.fused_calls, row.fallbacks) == (len(ROWS) - 2, 0), row.reason
    return fused


def a_block(x: torch.Tensor, residual: torch.Tensor) -> Any:
    weight = torch.linspace(0.5, 1.5, 8, dtype=x.dtype)
    y = OPS.rms_norm(torch.exp(-x * x) + residual, weight, 1e-6) * 2
    gate = OPS.silu_and_mul(torch.cat((y, residual), -1))
    return y + 1, gate * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_operators_with_a_meaning_fuse(dtype: torch.dtype, quick: fusion.FusionConfig) -> None:
    found = inference_ops.register_inference_ops(LIBRARY)
    assert {"rms_norm", "fused_add_rms_norm", "silu_and_mul", "rope", "causal_softmax"} <= set(found)
    fused = compare(a_block, quick, dtype)
    assert {"aten.rsqrt.default", "aten.silu.default"} <= fused_ops(fused)
    (known,) = fused.scope.known
    assert not any(node.op.startswith(LIBRARY) for node in known.graph.ops)


def in_place_block(x: torch.Tensor, residual: torch.Tensor) -> Any:
    weight = torch.linspace(0.5, 1.5, 8, dtype=x.dtype)
    y, total = torch.exp(-x * x) + 1, residual * 2
    OPS.fused_add_rms_norm(y, total, weight, 1e-6)
    return y * 2 + 1, total + 1


def test_an_in_place_operator_on_temporaries_fuses(quick: fusion.FusionConfig) -> None:
    inference_ops.register_inference_ops(LIBRARY)
    fused = compare(in_place_block, quick)
    (known,) = fused.scope.known
    assert not known.graph.mutated and "aten.rsqrt.default" in fused_ops(fused)


def in_place_on_arguments(x: torch.Tensor, residual: torch.Tensor) -> Any:
    OPS.fused_add_rms_norm(x, residual, torch.linspace(0.5, 1.5, 8, dtype=x.dtype), 1e-6)
    return torch.sigmoid(x) * 2 + 1, torch.exp(-residual * residual) + 1


def test_an_in_place_operator_on_arguments(quick: fusion.FusionConfig) -> None:
    inference_ops.register_inference_ops(LIBRARY)
    assert fused_ops(compare(in_place_on_arguments, quick))


def rotated(x: torch.Tensor, y: torch.Tensor) -> Any:
    q, k = OPS.rope(torch.tanh(x), y * 2, torch.cos(y), torch.sin(y))
    return q + 1, OPS.causal_softmax(torch.tanh(k @ k.transpose(0, 1))) * 2


def test_rope_and_causal_softmax(quick: fusion.FusionConfig) -> None:
    inference_ops.register_inference_ops(LIBRARY)
    fused = compare(rotated, quick)
    assert "aten.cat.default" in fused_ops(fused)


def test_a_meaning_that_is_wrong_is_refused(quick: fusion.FusionConfig) -> None:
    inference_ops.register_inference_ops(LIBRARY)

    def call(x: torch.Tensor) -> torch.Tensor:
        return OPS.silu(x * 2) + 1

    fused = fusion.fuse(call, quick)
    for rows in ROWS:
        assert torch.equal(fused(rand(rows)), call(rand(rows)))
    (row,) = fusion.report(fused).scopes
    assert row.fused_calls == 0 and "inaccurate" in row.reason


def test_an_opaque_operator_writes_in_its_place(quick: fusion.FusionConfig) -> None:
    def call(x: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> Any:
        keys = torch.exp(x) * 2 + 1
        OPS.reshape_and_cache(keys, cache, slots)
        return torch.sigmoid(cache.sum(0)) * keys + 1

    fused = fusion.fuse(call, quick)
    mine, theirs = torch.zeros(64, 8), torch.zeros(64, 8)
    for step, rows in enumerate(ROWS):
        slots = torch.arange(rows) + 7 * step
        found, expected = fused(rand(rows, step), mine, slots), call(rand(rows, step), theirs, slots)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)  # exp and a sum of 64 rows
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)
    (row,) = fusion.report(fused).scopes
    assert (row.fused_calls, row.fallbacks) == (len(ROWS) - 2, 0), row.reason
    assert fused_ops(fused)


# ---- Python functions


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A module of functions that leave torch, so that only their registration makes them replayable."""
    module = types.ModuleType("fusiontestmodule")
    module.calls = 0  # type: ignore[attr-defined]

    def swiglu(gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        module.calls += 1  # type: ignore[attr-defined]
        return torch.from_numpy(inference_ops.swiglu(gate.double(), up.double()).numpy()).to(gate.dtype)

    def attention(x: torch.Tensor) -> torch.Tensor:
        module.calls += 1  # type: ignore[attr-defined]
        return torch.from_numpy(torch.softmax(x, -1).numpy().copy())

    for function in (swiglu, attention):
        function.__module__ = module.__name__
        setattr(module, function.__name__, function)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


def test_functions_of_a_module(library: Any, quick: fusion.FusionConfig) -> None:
    def call(x: torch.Tensor, y: torch.Tensor) -> Any:
        gate = library.swiglu(torch.tanh(x) * 2, y)
        seen = library.attention(gate)
        return gate + 1, torch.sigmoid(seen) * y + 1

    assert set(inference_ops.register_inference_ops(library)) == {"swiglu", "attention"}
    original = library.swiglu
    fused = fusion.fuse(call, quick)
    for rows in ROWS:
        before = library.calls
        found = fused(rand(rows), rand(rows, 1))
        made = library.calls - before
        for a, b in zip(found, call(rand(rows), rand(rows, 1)), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # a few roundings and an exponential
    assert library.swiglu is original, "the function is back in its place"
    assert made == 1, "a plan calls the opaque function, and not the one with a meaning"
    (row,) = fusion.report(fused).scopes
    assert (row.fused_calls, row.fallbacks) == (len(ROWS) - 2, 0), row.reason
    assert "aten.silu.default" in fused_ops(fused)


def test_a_function_that_writes_to_a_cache(library: Any, quick: fusion.FusionConfig) -> None:
    """It is called once a call, in its place, though what it writes to cannot be seen."""

    def store_kv_cache(keys: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> None:
        library.calls += 1
        cache.numpy()[slots.numpy()] += keys.numpy()

    store_kv_cache.__module__ = library.__name__
    library.store_kv_cache = store_kv_cache
    fusion.register_op(store_kv_cache)

    def call(x: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> Any:
        keys = torch.exp(x) * 2 + 1
        library.store_kv_cache(keys, cache, slots)
        return torch.sigmoid(cache.sum(0)) * keys + 1

    def reads_first(x: torch.Tensor, cache: torch.Tensor, slots: torch.Tensor) -> Any:
        keys = torch.exp(x) * 2 + cache.sum(0)
        library.store_kv_cache(keys, cache, slots)
        return torch.sigmoid(cache.sum(0)) * keys + 1

    for function, planned in ((call, len(ROWS) - 2), (reads_first, 0)):
        fused = fusion.fuse(function, quick)
        mine, theirs = torch.zeros(64, 8), torch.zeros(64, 8)
        for step, rows in enumerate(ROWS):
            slots, before = torch.arange(rows) + 7 * step, library.calls
            found = fused(rand(rows, step), mine, slots)
            assert library.calls == before + 1
            torch.testing.assert_close(found, function(rand(rows, step), theirs, slots), rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=0)  # exp, and sums of a few dozen rows
        (row,) = fusion.report(fused).scopes
        assert (row.fused_calls, row.fallbacks) == (planned, 0), row.reason
        assert planned or "outer_write" in row.reason


def test_what_is_no_operator() -> None:
    with pytest.raises(FusionError, match="no operator"):
        fusion.register_op("fusiontestlib::missing")
    with pytest.raises(FusionError, match="takes an operator's name"):
        fusion.register_op(3)  # type: ignore[arg-type]
