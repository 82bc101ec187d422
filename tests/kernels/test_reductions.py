"""Every reduction row over every kind of dimensions: what its LoopNest means, and what the C++ kernel of it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from evaluate import evaluate
from graphs import trace
from reduction_cases import (
    ALONG,
    FLOATS,
    OF_WHOLE,
    OVER_ALL,
    OVER_ANY,
    OVER_ONE,
    WHOLE,
    layouts,
    lengths,
    regions,
    values,
)

from fusion.kernels import compiler
from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import lower
from fusion.kernels.toolchain.cpp import find_toolchain
from fusion.patterns import reference
from fusion.patterns.graph import SubGraph
from fusion.patterns.verify import accept

Case = tuple[Callable[..., Any], tuple[torch.Tensor, ...]]


def cases() -> Iterator[tuple[str, Case]]:
    """A function and its inputs by name."""
    for name, fn in OVER_ANY.items():
        for dtype in FLOATS:
            for layout, x in layouts(dtype).items():
                for dims in (0, 1, -1, (0, 2), (1, 2), (-3, -2), (0, 1, 2)):
                    for keep in (False, True):
                        if keep == (layout != "contiguous"):
                            yield f"{name}/{dtype}/{layout}/{dims}", (lambda x, f=fn, d=dims, k=keep: f(x, d, k), (x,))
    for name, fn in OVER_ONE.items():
        for dtype in FLOATS:
            for layout, x in layouts(dtype).items():
                for dim in (0, 1, -1):
                    yield f"{name}/{dtype}/{layout}/{dim}", (lambda x, f=fn, d=dim: f(x, d, d == 0), (x,))
    for name, fn in ALONG.items():
        for dtype in FLOATS:
            for layout, x in layouts(dtype).items():
                for dim in (0, 1, -1):
                    yield f"{name}/{dtype}/{layout}/{dim}", (lambda x, f=fn, d=dim: f(x, d), (x,))
    for name, fn in OF_WHOLE.items():
        for dtype in WHOLE:
            for layout, x in layouts(dtype).items():
                for dim in (0, -1):
                    yield f"{name}/{dtype}/{layout}/{dim}", (lambda x, f=fn, d=dim: f(x, d), (x,))
    for name, fn in OVER_ALL.items():
        for layout, x in layouts(torch.float32).items():
            yield f"{name}/all/{layout}", (fn, (x,))
    for name, (fn, inputs) in regions().items():
        yield name, (fn, inputs)


CASES = dict(cases())


def judge(graph: SubGraph, made: tuple[torch.Tensor, ...], inputs: tuple[torch.Tensor, ...]) -> str:
    """Why the results are not accepted; "" where they are."""
    named = dict(zip(graph.inputs, inputs, strict=True))
    eager, exact = reference.run(graph, named), reference.run_fp64(graph, named)
    assert len(made) == len(graph.outputs)
    verdicts = [accept(m, eager[n], exact[n]) for n, m in zip(graph.outputs, made, strict=True)]
    return "; ".join(v.reason for v in verdicts if not v.ok)


def graph_of(fn: Callable[..., Any], inputs: tuple[torch.Tensor, ...]) -> SubGraph:
    return trace(fn, *inputs)


@pytest.fixture(scope="module")
def nests() -> dict[str, tuple[SubGraph, LoopNest]]:
    found = {}
    for name, (fn, inputs) in CASES.items():
        graph = graph_of(fn, inputs)
        found[name] = graph, lower(graph)
    return found


@pytest.mark.parametrize("name", CASES)
def test_what_the_loops_mean(name: str, nests: dict[str, tuple[SubGraph, LoopNest]]) -> None:
    graph, nest = nests[name]
    inputs = CASES[name][1]
    assert nest.reductions
    assert not judge(graph, evaluate(nest, *inputs), inputs)
