"""What models write, recorded: its regions have their patterns' names, and their kernels meet the fp64 rule.

By default each function is taken in one dtype, the next one in the next; `make test-all` takes each in both.
"""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from model_code import WRITTEN
from partitions import check_complete, check_values, recorded
from thorough import combined

from fusion.kernels.backends.cpp import compile as cpp_compile
from fusion.kernels.backends.cpp.compile import CompiledKernel
from fusion.kernels.backends.cpp.toolchain import find_toolchain
from fusion.kernels.lower import given_symbols, lower
from fusion.partition.partitioner import partition
from fusion.patterns import SubGraph, accept_all, match, ops, run, run_fp64, symbols
from fusion.patterns.graph import canonicalize

DTYPES = (torch.float32, torch.bfloat16)
CASES = combined(WRITTEN, DTYPES)
LENGTH = 7
Case = tuple[str, torch.dtype]


class Region(NamedTuple):
    """A region of a recording, and the values it met there."""

    graph: SubGraph
    inputs: tuple[torch.Tensor, ...]
    sizes: dict[str, int]


def regions_of(name: str, dtype: torch.dtype) -> list[Region]:
    written = WRITTEN[name]
    inputs = written.inputs(dtype, LENGTH)
    with torch.no_grad():
        recording = recorded(written.fn, *inputs.values())
    assert recording.graph is not None, recording.refusal
    parts = partition(recording.graph, values=recording.values)
    check_complete(recording.graph, parts)
    check_values(recording, parts, parts.order)
    return [Region(r.subgraph, tuple(recording.run.real[n] for n in r.inputs), recording.values) for r in parts.regions]


@pytest.fixture(scope="module")
def regions() -> dict[Case, list[Region]]:
    return {case: regions_of(*case) for case in CASES}


@pytest.fixture(scope="module")
def kernels(regions: dict[Case, list[Region]]) -> dict[Case, list[CompiledKernel]]:
    """A kernel for each region that has a name, all compiled as one unit."""
    if find_toolchain() is None:
        pytest.skip("no C++ compiler")
    named = [(case, lower(r.graph)) for case, found in regions.items() for r in found if match(r.graph)]
    made: dict[Case, list[CompiledKernel]] = {}
    for (case, _), kernel in zip(named, cpp_compile.compile_cpp([nest for _, nest in named], None), strict=True):
        made.setdefault(case, []).append(kernel)
    return made


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_regions_have_names(regions: dict[Case, list[Region]], name: str, dtype: torch.dtype) -> None:
    """All but single operators and conversions, which library calls leave between them."""
    found = [(match(r.graph), r.graph) for r in regions[name, dtype]]
    assert sorted(n for n, _ in found if n) == sorted(WRITTEN[name].names)
    for unnamed in (graph for n, graph in found if not n):
        computing = [n for n in unnamed.nodes if ops.kind_of(n.op) is not ops.Kind.VIEW and ".to." not in n.op]
        assert len(computing) <= 1, str(unnamed)


@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_named_regions_are_kernels_that_meet_the_rule(
    regions: dict[Case, list[Region]], kernels: dict[Case, list[CompiledKernel]], name: str, dtype: torch.dtype
) -> None:
    named = [r for r in regions[name, dtype] if match(r.graph)]
    assert len(named) == len(WRITTEN[name].names)
    for region, kernel in zip(named, kernels[name, dtype], strict=True):
        inputs = dict(zip(region.graph.inputs, region.inputs, strict=True))
        before = [t.clone() for t in region.inputs]
        stands_for = canonicalize(region.graph)[2]
        given = [symbols.evaluate(stands_for[s], region.sizes) for s in given_symbols(kernel.nest)]
        made = cpp_compile.run_ctypes(kernel, region.inputs, given)
        eager, exact = (with_torch(region.graph, inputs, region.sizes) for with_torch in (run, run_fp64))
        verdict = accept_all({o: (f, eager[o], exact[o]) for o, f in zip(region.graph.outputs, made, strict=True)})
        assert verdict.ok, verdict.reason
        for output, fused in zip(region.graph.outputs, made, strict=True):
            assert (fused.dtype, fused.shape) == (eager[output].dtype, eager[output].shape)
        assert all(map(torch.equal, region.inputs, before))
