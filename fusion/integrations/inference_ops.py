"""What the operators of an inference library usually compute, in torch's operators.

    register_inference_ops("mylib")       # those of torch.ops.mylib
    register_inference_ops(mylib.ops)     # the functions of a Python module

A recorded call is checked against the library's own operator, so one that computes something else under the same name
is refused with the reason "inaccurate", and the scope stays eager. Attention and writes to a paged cache are opaque:
they are called as they are, in their place.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fusion.capture.decompositions import register_op


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension; rounded once."""
    wide = x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
    normal = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return (normal * weight).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> tuple[Tensor, Tensor]:
    """The norm of x + residual, and the sum."""
    total = x + residual
    return rms_norm(total, weight, eps), total


def add_rms_norm_(x: Tensor, residual: Tensor, weight: Tensor, eps: float = 1e-6) -> None:
    """`add_rms_norm` in place: the norm into x, the sum into residual."""
    residual.add_(x)
    x.copy_(rms_norm(residual, weight, eps))


def silu(x: Tensor) -> Tensor:
    """x * sigmoid(x)."""
    return torch.nn.functional.silu(x)


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """silu(gate) * up; with one argument, of its two halves along the last dimension."""
    if up is None:
        gate, up = gate.chunk(2, dim=-1)
    return torch.nn.functional.silu(gate) * up


def rope(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Rotary embedding of the halves of the last dimension; `cos` and `sin` broadcast against `q` and `k`."""
    return q * cos + _turned(q) * sin, k * cos + _turned(k) * sin


def _turned(x: Tensor) -> Tensor:
    half = x.shape[-1] // 2
    return torch.cat((-x[..., half:], x[..., :half]), dim=-1)


def causal_softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension of [..., queries, keys], where a query sees no key after its own position."""
    queries, keys = scores.shape[-2:]
    rows = torch.arange(queries, device=scores.device).unsqueeze(-1) + (keys - queries)
    hidden = torch.arange(keys, device=scores.device) > rows
    return torch.softmax(scores.masked_fill(hidden, float("-inf")), dim=-1)


def embedding(ids: Tensor, weight: Tensor) -> Tensor:
    """Rows of `weight`."""
    return torch.nn.functional.embedding(ids, weight)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x @ weight^T + bias."""
    return torch.nn.functional.linear(x, weight, bias)


_MEANINGS: dict[str, Callable[..., Any]] = {
    "rms_norm": rms_norm,
    "add_rms_norm": add_rms_norm,
    "fused_add_rms_norm": add_rms_norm,
    "silu": silu,
    "swiglu": swiglu,
    "silu_and_mul": swiglu,
    "rope": rope,
    "causal_softmax": causal_softmax,
    "embedding": embedding,
    "linear": linear,
}
_IN_PLACE = {"add_rms_norm": add_rms_norm_, "fused_add_rms_norm": add_rms_norm_}
_OPAQUE = ("attention", "paged_attention", "reshape_and_cache", "store_kv_cache", "write_paged_cache")


def register_inference_ops(library: str | types.ModuleType) -> tuple[str, ...]:
    """Registers the operators of a library that have one of the usual names.

    Args:
        library: a namespace of `torch.ops`, or a Python module.

    Returns:
        the names that were found.
    """
    found: list[str] = []
    for name in (*_MEANINGS, *_OPAQUE):
        if isinstance(library, types.ModuleType):
            op: Any = vars(library).get(name)
        else:
            op = getattr(getattr(torch.ops, library), name, None)
        if op is not None:
            register_op(op, _meaning(name, op))
            found.append(name)
    return tuple(found)


def _meaning(name: str, op: Any) -> Callable[..., Any] | None:
    packet = isinstance(op, torch._ops.OpOverloadPacket)
    if packet and name in _IN_PLACE and getattr(op, op.overloads()[0])._schema.is_mutable:
        return _IN_PLACE[name]
    return _MEANINGS.get(name)
