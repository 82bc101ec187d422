"""Kernels of few long rows: what they compute of [rows, columns], and in how many levels of reductions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from graphs import LENGTH, normal, trace
from torch.nn.functional import layer_norm, rms_norm

from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import lower
from fusion.patterns.graph import SubGraph

ROWS = 5  # as many as examples have, to be told apart


class Case(NamedTuple):
    """A function of a tensor [rows, columns].

    Attributes:
        fn: what is computed.
        levels: reductions that stand one upon the other.
        dtype: of the input.
        along: the dimension that is reduced.
    """

    fn: Callable[[torch.Tensor], Any]
    levels: int
    dtype: torch.dtype = torch.float32
    along: int = 1


def _several(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Row outputs and element outputs."""
    mean = x.mean(-1, keepdim=True)
    return (x - mean).bfloat16(), mean.bfloat16(), x.amax(-1)


# Results in bfloat16 where eager's CPU kernels sum float32 in double and a GPU does not: last bits are not the matter.
LONG_ROWS = {
    "sum": Case(lambda x: x.sum(-1).bfloat16(), 1),
    "sum of all": Case(lambda x: x.sum().bfloat16(), 1),
    "mean": Case(lambda x: x.mean(-1).bfloat16(), 1),
    "amax": Case(lambda x: x.amax(-1), 1),
    "amin": Case(lambda x: x.amin(-1), 1),
    "prod": Case(lambda x: x.sign().prod(-1), 1),
    "any": Case(lambda x: (x > 9).any(-1), 1),
    "max and where": Case(lambda x: tuple(x.max(-1)), 2),
    "argmax": Case(lambda x: x.argmax(-1), 2),
    "argmin": Case(lambda x: x.argmin(-1), 2),
    "softmax": Case(lambda x: x.softmax(-1).bfloat16(), 2),
    "softmax of bfloat16": Case(lambda x: x.softmax(-1) * 2.0, 2, torch.bfloat16),
    "softmax of float16": Case(lambda x: x.softmax(-1), 2, torch.float16),
    "log_softmax": Case(lambda x: x.log_softmax(-1).bfloat16(), 2),
    "logsumexp": Case(lambda x: x.logsumexp(-1).bfloat16(), 2),
    "var": Case(lambda x: x.var(-1, correction=0).bfloat16(), 2),
    "layer_norm": Case(lambda x: layer_norm(x, (x.shape[-1],)).bfloat16(), 2),
    "rms_norm": Case(lambda x: rms_norm(x, (x.shape[-1],)).bfloat16(), 1),
    "rms_norm of bfloat16": Case(lambda x: rms_norm(x, (x.shape[-1],)), 1, torch.bfloat16),
    "softmax of a norm": Case(lambda x: layer_norm(x, (x.shape[-1],)).softmax(-1).bfloat16(), 4),
    "several outputs": Case(_several, 1),
    "sum of float64": Case(lambda x: x.sum(-1).float(), 1, torch.float64),
    "sum of integers": Case(lambda x: x.sum(-1), 1, torch.int64),
    "max of integers": Case(lambda x: x.amax(-1), 1, torch.int32),
    "sum over rows": Case(lambda x: x.sum(0).bfloat16(), 1, along=0),
    "softmax over rows": Case(lambda x: x.softmax(0).bfloat16(), 2, along=0),
}


def lowered(name: str) -> tuple[SubGraph, LoopNest]:
    """The kernel of a case for any number of rows of any length."""
    graph = trace(LONG_ROWS[name].fn, values(name, ROWS, LENGTH), dynamic={LENGTH: "s0", ROWS: "s1"})
    return graph, lower(graph)


def values(name: str, rows: int, columns: int) -> torch.Tensor:
    """Rows for a case, laid along its dimension; with NaN and infinities among them where the dtype has any."""
    case = LONG_ROWS[name]
    x = normal(rows, columns) * 4 + 3
    if case.dtype.is_floating_point and rows > 1 and columns > 1:
        x[0, 0], x[0, -1], x[1, columns // 2] = float("-inf"), float("inf"), float("nan")
    elif not case.dtype.is_floating_point:
        x = x * 1e9
    x = x.to(case.dtype)
    return x if case.along else x.t().contiguous()
