"""Every reduction row over every kind of dimensions: what its LoopNest means, and what C++ kernels of it compute."""

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
    regions,
)

from fusion.kernels import compiler
from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import lower
from fusion.kernels.toolchain.cpp import find_toolchain
from fusion.patterns import reference
from fusion.patterns.graph import SubGraph
from fusion.patterns.verify import accept

Case = tuple[Callable[..., Any], tuple[torch.Tensor, ...]]


def cases() -> Iterator[tuple[str, list[Case]]]:
    """Functions and their inputs, by what they have in common."""
    for name, fn in OVER_ANY.items():
        for dtype in FLOATS:
            yield (
                f"{name} {dtype}",
                [
                    ((lambda x, f=fn, d=dims, k=keep: f(x, d, k)), (x,))
                    for keep, (layout, x) in zip((False, True, True, False), layouts(dtype).items(), strict=True)
                    for dims in (0, 1, -1, (0, 2), (1, 2), (-3, -2), (0, 1, 2))
                ],
            )
    for name, fn in OVER_ONE.items():
        for dtype in FLOATS:
            yield (
                f"{name} {dtype}",
                [
                    ((lambda x, f=fn, d=dim: f(x, d, d == 0)), (x,))
                    for x in layouts(dtype).values()
                    for dim in (0, 1, -1)
                ],
            )
    for name, along in ALONG.items():
        for dtype in FLOATS:
            yield (
                f"{name} {dtype}",
                [((lambda x, f=along, d=dim: f(x, d)), (x,)) for x in layouts(dtype).values() for dim in (0, 1, -1)],
            )
    for name, whole in OF_WHOLE.items():
        for dtype in WHOLE:
            yield (
                f"{name} {dtype}",
                [((lambda x, f=whole, d=dim: f(x, d)), (x,)) for x in layouts(dtype).values() for dim in (0, -1)],
            )
    for name, every in OVER_ALL.items():
        yield f"{name} of all", [(every, (x,)) for x in layouts(torch.float32).values()]
    for name, region in regions().items():
        yield name, [region]


CASES = dict(cases())
Kernels = dict[str, list[tuple[SubGraph, LoopNest, tuple[torch.Tensor, ...]]]]


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


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return {name: [(*lowered(*case), case[1]) for case in group] for name, group in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_what_the_loops_mean(name: str, kernels: Kernels) -> None:
    for graph, nest, inputs in kernels[name]:
        assert not judge(graph, evaluate(nest, *inputs), inputs), nest


needs_compiler = pytest.mark.skipif(find_toolchain() is None, reason="no C++ compiler")


@pytest.fixture(scope="module")
def compiled(kernels: Kernels) -> dict[str, list[compiler.CompiledKernel]]:
    """A case of each group, as one unit: another of its dimensions and layouts for each."""
    chosen = {name: [group[5 * k % len(group)]] for k, (name, group) in enumerate(kernels.items())}
    made = iter(compiler.compile_cpp([nest for group in chosen.values() for _, nest, _ in group], None))
    return {name: [next(made) for _ in group] for name, group in chosen.items()}


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_what_compiled_kernels_compute(
    name: str, kernels: Kernels, compiled: dict[str, list[compiler.CompiledKernel]]
) -> None:
    by_nest = {id(nest): (graph, inputs) for graph, nest, inputs in kernels[name]}
    assert compiled[name]
    for kernel in compiled[name]:
        graph, inputs = by_nest[id(kernel.nest)]
        before = [x.clone() for x in inputs]
        assert not judge(graph, compiler.run_ctypes(kernel, inputs), inputs), kernel.source
        assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))
