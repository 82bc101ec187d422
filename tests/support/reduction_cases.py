"""Calls of every reduction row, for every backend: dimensions, dtypes, layouts and lengths.

By default a row is taken in one dtype, the next row in the next; `make test-all` takes all rows in all dtypes.

Tests of any folder import it by name, as `graphs`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from graphs import normal, trace
from thorough import combined

from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import lower
from fusion.patterns import reference
from fusion.patterns.graph import SubGraph
from fusion.patterns.verify import accept

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
WHOLE = (torch.int64, torch.int32, torch.bool)

Function = Callable[..., Any]

# Over dimensions `d` (one, several or all) of a floating tensor: to one element.
OVER_ANY: dict[str, Function] = {
    "sum": lambda x, d, keep: x.sum(d, keep),
    "sum to float32": lambda x, d, keep: x.sum(d, keep, dtype=torch.float32),
    "nansum": lambda x, d, keep: x.nansum(d, keep),
    "mean": lambda x, d, keep: x.mean(d, keep),
    "amax": lambda x, d, keep: x.amax(d, keep),
    "amin": lambda x, d, keep: x.amin(d, keep),
    "var": lambda x, d, keep: x.var(d, keepdim=keep),
    "var, population": lambda x, d, keep: x.var(d, correction=0, keepdim=keep),
    "var, more than there are": lambda x, d, keep: x.var(d, correction=-1.5, keepdim=keep),
    "std": lambda x, d, keep: x.std(d, unbiased=False, keepdim=keep),
    "var_mean": lambda x, d, keep: torch.var_mean(x, d, keepdim=keep),
    "std_mean": lambda x, d, keep: torch.std_mean(x, d, correction=2, keepdim=keep),
    "logsumexp": lambda x, d, keep: x.logsumexp(d, keep),
    "norm 2": lambda x, d, keep: torch.linalg.vector_norm(x, 2, d, keep),
    "norm 1": lambda x, d, keep: torch.linalg.vector_norm(x, 1, d, keep),
    "norm 0": lambda x, d, keep: torch.linalg.vector_norm(x, 0, d, keep),
    "norm inf": lambda x, d, keep: torch.linalg.vector_norm(x, float("inf"), d, keep),
    "norm -inf": lambda x, d, keep: torch.linalg.vector_norm(x, -float("inf"), d, keep),
    "norm 3": lambda x, d, keep: torch.linalg.vector_norm(x, 3, d, keep, dtype=torch.float32),
    "any": lambda x, d, keep: (x > 1).any(d, keep),
    "all": lambda x, d, keep: (x > -1).all(d, keep),
}

# Over one dimension: to one element.
OVER_ONE: dict[str, Function] = {
    "prod": lambda x, d, keep: x.prod(d, keep),
    "max": lambda x, d, keep: tuple(x.max(d, keep)),
    "min": lambda x, d, keep: tuple(x.min(d, keep)),
    "argmax": lambda x, d, keep: x.argmax(d, keep),
    "argmin": lambda x, d, keep: x.argmin(d, keep),
    "aminmax": lambda x, d, keep: tuple(x.aminmax(dim=d, keepdim=keep)),
    "count_nonzero": lambda x, d, keep: x.count_nonzero(d),
}

# Over one dimension: to as many elements.
ALONG: dict[str, Function] = {
    "softmax": lambda x, d: x.softmax(d),
    "softmax in float32": lambda x, d: F.softmax(x, d, dtype=torch.float32).to(x.dtype),
    "log_softmax": lambda x, d: x.log_softmax(d),
    "cumsum": lambda x, d: x.cumsum(d),
    "cumprod": lambda x, d: x.cumprod(d),
    "cumsum to float32": lambda x, d: x.cumsum(d, dtype=torch.float32) * 2.0,
}

# Of integers and bools.
OF_WHOLE: dict[str, Function] = {
    "sum": lambda x, d: x.sum(d),
    "sum to int32": lambda x, d: x.sum(d, dtype=torch.int32),
    "mean": lambda x, d: x.mean(d, dtype=torch.float32),
    "any": lambda x, d: x.any(d),
    "all": lambda x, d: x.all(d),
    "count_nonzero": lambda x, d: x.count_nonzero(d),
    "amax": lambda x, d: x.amax(d),
    "amin": lambda x, d: x.amin(d),
    "prod": lambda x, d: x.prod(d),
    "cumsum": lambda x, d: x.cumsum(d),
    "argmax": lambda x, d: x.to(torch.int32).argmax(d),
    "max": lambda x, d: tuple(x.max(d)),
}

# Over all dimensions, without naming them.
OVER_ALL: dict[str, Function] = {
    "sum": torch.Tensor.sum,
    "mean": torch.Tensor.mean,
    "max": torch.Tensor.max,
    "min": torch.Tensor.min,
    "argmax": torch.Tensor.argmax,
    "argmin": torch.Tensor.argmin,
    "any": torch.Tensor.any,
    "all": torch.Tensor.all,
    "prod": lambda x: (x * 0.1 + 1.0).prod(),
    "var": torch.Tensor.var,
    "std": torch.Tensor.std,
    "norm": torch.Tensor.norm,
    "aminmax": lambda x: tuple(x.aminmax()),
    "amax": torch.Tensor.amax,
    "count_nonzero": torch.Tensor.count_nonzero,
    "x less its mean": lambda x: x - x.mean(),
}

WEIGHT = normal(4, 5)


def _grouped(x: torch.Tensor) -> torch.Tensor:
    """Four groups of two channels, each normalised over its channels and places."""
    groups = x.view(2, 4, -1)
    centred = groups - groups.mean(-1, keepdim=True)
    return (centred * torch.rsqrt(groups.var(-1, keepdim=True, correction=0) + 1e-5)).view(x.shape) * 2.0


def regions() -> dict[str, tuple[Function, tuple[torch.Tensor, ...]]]:
    """Groups of operators around reductions that real models have: a function and its inputs, by name."""
    x, y = normal(2, 6, 4, 5), normal(2, 6, 4, 5, seed=1)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 1]])
    last = normal(5, seed=2)
    return {
        "softmax over dim 1": (lambda x, y: F.softmax(x * 0.5 + y, 1) * 2.0, (x, y)),
        "layer norm of a sum": (lambda x, y, w: F.layer_norm(x + y, (5,), w, w), (x, y, last)),
        "layer norm over two": (lambda x, y, w: F.layer_norm(x + y, (4, 5), w, w + 1.0) * 0.5, (x, y, WEIGHT)),
        "layer norm without weights": (lambda x: F.layer_norm(x, (5,)) + 1.0, (x,)),
        "layer norm with a bias": (lambda x, b: torch.layer_norm(x, (5,), None, b), (x, last)),
        "rms norm": (lambda x, y, w: F.rms_norm(x + y, (5,), w, 1e-6), (x, y, last)),
        "rms norm over two, no eps": (lambda x, w: F.rms_norm(x, (4, 5), w), (x, WEIGHT)),
        "native layer norm": (lambda x, w: torch.native_layer_norm(x, [5], w, w, 1e-5), (x, last)),
        "mean over the middle": (lambda x: x - x.mean((1, 2), keepdim=True), (x,)),
        "mean over two, dropped": (lambda x: x.relu().mean((1, 2)) * 3.0, (x,)),
        "mean over two apart": (lambda x: x - x.mean((1, 3), keepdim=True), (x,)),
        "argmax after where": (lambda x, y: torch.where(x > 0, x, y).argmax(-1), (x, y)),
        "argmax over dim 1": (lambda x, y: torch.where(x > 0, x, y).argmax(1), (x, y)),
        "position ids": (lambda m: (m.long().cumsum(-1) - 1).masked_fill(m == 0, 1), (mask,)),
        "cumsum over dim 1": (lambda x, y: (x * y).cumsum(1) + y, (x, y)),
        "cumsum of cumsum": (lambda x: x.cumsum(-1).exp().cumsum(-1) * 0.5, (x,)),
        "the largest sum": (lambda x: x.cumsum(-1).amax(-1, keepdim=True) - x, (x,)),
        "normalize": (lambda x: F.normalize(x, dim=-1), (x,)),
        "standardise": (lambda x: (x - x.mean(0)) / x.std(0), (x,)),
        "safe softmax": (lambda x: torch._safe_softmax(x.masked_fill(x < 1.0, -float("inf")), -1), (x,)),
        "two extents": (lambda x, y: x.amax(-1, keepdim=True) + y.sum(-1, keepdim=True), (x, normal(2, 6, 4, 9))),
    }


def flattened() -> dict[str, tuple[Function, tuple[torch.Tensor, ...]]]:
    """Regions whose result has another shape than what they reduce."""
    x, y, last = normal(2, 6, 4, 5), normal(2, 6, 4, 5, seed=1), normal(5, seed=2)
    return {
        "flattened heads": (lambda x, y, w: F.rms_norm(x + y, (5,), w, 1e-6).flatten(2) * 2.0, (x, y, last)),
        "groups of channels": (_grouped, (normal(2, 8, 3, 5),)),
        "a mean beside flattened rows": (lambda x: ((x - x.mean(-1, keepdim=True)).flatten(2) * 2.0, x.mean(-1)), (x,)),
    }


def layouts(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """One shape in every layout an operand may come in."""
    x = values((9, 4, 11), dtype)
    return {
        "contiguous": x,
        "transposed": values((11, 4, 9), dtype).transpose(0, 2),
        "expanded": values((9, 1, 11), dtype).expand(9, 4, 11),
        "sliced": values((18, 4, 15), dtype)[1::2, :, 2:13],
    }


def values(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Numbers with ties in them, so that first positions count; halves of small whole numbers are exact everywhere."""
    x = (normal(*shape) * 4).round() / 2
    return x > 0 if dtype is torch.bool else (x * 2 if not dtype.is_floating_point else x).to(dtype)


# Of rows [3, n]: what is computed, and the least n that it has a meaning for.
OF_ANY_LENGTH: dict[str, tuple[Function, int]] = {
    "sum": (lambda x: x.sum(-1), 0),
    "mean": (lambda x: x.mean(-1), 0),
    "any": (lambda x: (x > 2).any(-1), 0),
    "softmax": (lambda x: x.softmax(-1), 1),
    "logsumexp": (lambda x: x.logsumexp(-1), 1),
    "log_softmax of bfloat16": (lambda x: x.bfloat16().log_softmax(-1), 1),
    "argmax": (lambda x: x.argmax(-1), 1),
    "max": (lambda x: tuple(x.max(-1)), 1),
    "cumsum": (lambda x: x.cumsum(-1), 0),
    "cumsum and its mean": (lambda x: x.cumsum(-1) - x.mean(-1, keepdim=True), 0),
    "layer_norm": (lambda x: F.layer_norm(x, (x.shape[-1],)), 1),
    "var": (lambda x: x.var(-1, correction=0), 1),
    "prod": (lambda x: x.sign().prod(-1), 0),
    "sum over rows": (lambda x: x.sum(0), 0),
    "softmax over rows": (lambda x: x.softmax(0), 0),
    "cumsum over rows": (lambda x: x.cumsum(0) * 2.0, 0),
    "sum of all": (lambda x: x.sum(), 0),
    "sum of integers": (lambda x: x.to(torch.int64).sum(-1), 0),
}


Case = tuple[Callable[..., Any], tuple[torch.Tensor, ...]]


def cases() -> Iterator[tuple[str, list[Case]]]:
    """Functions and their inputs, by what they have in common."""
    for (name, fn), dtype in combined(OVER_ANY.items(), FLOATS):
        yield (
            f"{name} {dtype}",
            [
                ((lambda x, f=fn, d=dims, k=keep: f(x, d, k)), (x,))
                for keep, (layout, x) in zip((False, True, True, False), layouts(dtype).items(), strict=True)
                for dims in (0, 1, -1, (0, 2), (1, 2), (-3, -2), (0, 1, 2))
            ],
        )
    for (name, fn), dtype in combined(OVER_ONE.items(), FLOATS):
        yield (
            f"{name} {dtype}",
            [((lambda x, f=fn, d=dim: f(x, d, d == 0)), (x,)) for x in layouts(dtype).values() for dim in (0, 1, -1)],
        )
    for (name, along), dtype in combined(ALONG.items(), FLOATS):
        yield (
            f"{name} {dtype}",
            [((lambda x, f=along, d=dim: f(x, d)), (x,)) for x in layouts(dtype).values() for dim in (0, 1, -1)],
        )
    for (name, whole), dtype in combined(OF_WHOLE.items(), WHOLE):
        yield (
            f"{name} {dtype}",
            [((lambda x, f=whole, d=dim: f(x, d)), (x,)) for x in layouts(dtype).values() for dim in (0, -1)],
        )
    for name, every in OVER_ALL.items():
        yield f"{name} of all", [(every, (x,)) for x in layouts(torch.float32).values()]
    for name, region in (regions() | flattened()).items():
        yield name, [region]


CASES = dict(cases())
# A variance of float32 is taken in double by eager's CPU kernels, in float32 by kernels of GPUs. Those "of all" are of
# float32.
FAIR = [n for n in CASES if not (n.startswith(("var", "std")) and n.endswith(("float32", "of all")))]


def judge(graph: SubGraph, made: tuple[torch.Tensor, ...], inputs: tuple[torch.Tensor, ...]) -> str:
    """Why the results are not accepted; "" where they are."""
    named = dict(zip(graph.inputs, inputs, strict=True))
    eager, exact = reference.run(graph, named), reference.run_fp64(graph, named)
    assert len(made) == len(graph.outputs)
    verdicts = [accept(m, eager[n], exact[n]) for n, m in zip(graph.outputs, made, strict=True)]
    return "; ".join(v.reason for v in verdicts if not v.ok)


def lowered(fn: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> tuple[SubGraph, LoopNest]:
    graph = trace(fn, *inputs)
    nest = lower(graph)
    assert nest.reductions
    return graph, nest
