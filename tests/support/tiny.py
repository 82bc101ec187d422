"""Tiny models, and the proofs that the tests of the main path share: the fused path ran, and nothing else changed."""

from __future__ import annotations

import linecache
import pathlib
from collections.abc import Callable
from typing import Any

import torch

import fusion
from fusion import api
from fusion.jit.scope import Scope

SIZES: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
}


def transformer(kind: str = "qwen3", dtype: torch.dtype = torch.float32, **changes: Any) -> Any:
    """A Qwen3 or Llama of three layers with random weights, the same on every call."""
    import transformers

    name = {"qwen3": "Qwen3", "llama": "Llama"}[kind]
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **changes})
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config).eval().to(dtype)


def scopes(model: torch.nn.Module) -> dict[str, Scope]:
    """An enabled model's scopes by name."""
    return {scope.name: scope for session in api._enabled(model).values() for _, scope in session.scopes}


def planned(model: torch.nn.Module) -> dict[str, int]:
    """Calls that plans answered, by scope."""
    return {name: scope.statistics.planned[0] for name, scope in scopes(model).items()}


def recordings(model: torch.nn.Module) -> int:
    """Recordings of all scopes together."""
    return sum(scope.statistics.recordings for scope in scopes(model).values())


def assert_fused(model: torch.nn.Module, before: dict[str, int], calls: int = 1) -> None:
    """Every scope answered `calls` calls by a plan since `before`; each plan holds a kernel; nothing fell back."""
    after = planned(model)
    assert {n: after[n] - before[n] for n in after} == dict.fromkeys(after, calls)
    assert all(s.statistics.fallbacks == 0 for s in scopes(model).values())
    for name, scope in scopes(model).items():
        assert scope.known, name
        for known in scope.known:
            assert known.refusal is None, (name, known.refusal)
            assert all(compiled.kernels for compiled, _ in known.plans.values()), name
    assert any(r.decision == "fused" for s in fusion.report(model).scopes for r in s.regions)


def reason(model: torch.nn.Module) -> Any:
    """The Refusal of a model that is one scope."""
    (scope,) = scopes(model).values()
    return next(iter(scope.refused.values()), None) or scope.statistics.last_reason


def line_of(origin: str) -> str:
    """The source line that an origin "folder/file.py:12" of these tests points at."""
    file, _, number = origin.rpartition(":")
    (path,) = pathlib.Path(__file__).parents[1].rglob(file)
    return linecache.getline(str(path), int(number)).strip()


def bits(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Everything a caller can see of a tensor."""
    return (tensor.dtype, tuple(tensor.shape), tensor.stride(), tensor.clone(), tensor._version)


def assert_untouched(tensor: torch.Tensor, before: tuple[Any, ...]) -> None:
    """The tensor is what `bits` saw."""
    dtype, shape, stride, values, version = before
    assert (tensor.dtype, tuple(tensor.shape), tensor.stride()) == (dtype, shape, stride)
    assert torch.equal(tensor, values)
    if not tensor.is_inference():
        assert tensor._version == version


def bound(eager: torch.Tensor, exact: torch.Tensor, steps: int = 1) -> float:
    """The acceptance rule for a chain of kernels: 1.5 times eager's error to double precision plus an ulp a step.

    A step is a place where the orders of summation differ; each may round the other way once, by one unit in the last
    place of the largest value.
    """
    unit = torch.finfo(eager.dtype).eps * float(exact.abs().max())
    return 1.5 * float((eager.double() - exact).abs().max()) + steps * unit


def close(fused: torch.Tensor, eager: torch.Tensor, exact: torch.Tensor, steps: int = 1) -> None:
    """`fused` is no further from `exact` than `bound` allows, and looks like `eager` in all else."""
    assert (fused.dtype, fused.shape, fused.stride()) == (eager.dtype, eager.shape, eager.stride())
    assert torch.equal(fused.isnan(), eager.isnan())
    error = float((fused.double() - exact).abs().max())
    assert error <= bound(eager, exact, steps), f"{error} > {bound(eager, exact, steps)}"


def no_grad(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """A call without autograd."""
    with torch.no_grad():
        return call(*args, **kwargs)
