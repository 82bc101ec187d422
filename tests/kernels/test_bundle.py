"""Kernels of several loop nests: their form, and C++ values against eager."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from bundles import graph_of, inputs
from compiled_examples import needs_compiler
from graphs import LENGTH, normal, trace

from fusion.kernels import kernel_sources
from fusion.kernels.backends.cpp import compile as cpp_compile
from fusion.kernels.bundle import Bundle, parts_of
from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import lower, lower_kernel
from fusion.patterns import reference
from fusion.patterns.errors import GraphError, StructureMismatch
from fusion.patterns.graph import SubGraph
from fusion.patterns.verify import accept


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    nest = lower_kernel(graph_of())
    assert isinstance(nest, Bundle)
    return nest


def test_each_part_is_what_lowering_it_alone_gives(bundle: Bundle) -> None:
    alone = [lower(part) for part in graph_of().parts]
    for part, other in zip(bundle.parts, alone, strict=True):
        assert [a.extent for a in part.rows] == [a.extent for a in other.rows]
        assert (part.column, len(part.reductions)) == (other.column, len(other.reductions))
        assert [a.dtype for a in part.inputs] == [a.dtype for a in other.inputs]
    assert [[o.name for o in part.outputs] for part in bundle.parts] == [["o0"], ["o1", "o2"], ["o3"]]
    assert [[a.name for a in part.inputs] for part in bundle.parts] == [["a0", "a2"], ["a1", "a2"], ["a3"]]
    assert parts_of(alone[0]) == (alone[0],)


def test_its_text_shows_every_part(bundle: Bundle) -> None:
    text = str(bundle)
    assert text.count("part ") == 3
    assert "in  a3: int64[s0, 3]" in text
    assert "max over j in 16" in text


def test_the_division_counts_in_the_digest() -> None:
    graph = graph_of()
    assert len({graph.digest, replace(graph, bundle=(1, 2, 1)).digest, replace(graph, bundle=(3, 1)).digest}) == 2
    assert SubGraph.from_json(graph.to_json()) == graph
    assert graph.canonical.bundle == graph.bundle


@pytest.mark.parametrize("division", [(4,), (2, 1), (4, 0), (2, 3)])
def test_a_division_that_is_none_is_rejected(division: tuple[int, ...]) -> None:
    with pytest.raises(GraphError, match="no division"):
        replace(graph_of(), bundle=division)


def test_lowering_a_bundle_to_one_nest_is_an_error() -> None:
    with pytest.raises(ValueError, match="lower_kernel"):
        lower(graph_of())


def with_part(bundle: Bundle, k: int, **changes: object) -> tuple[LoopNest, ...]:
    return (*bundle.parts[:k], replace(bundle.parts[k], **changes), *bundle.parts[k + 1 :])  # type: ignore[arg-type]


BREAKS: dict[str, Callable[[Bundle], object]] = {
    "a bundle of 1 parts": lambda b: replace(b, parts=b.parts[:1]),
    "other sizes or numerics": lambda b: replace(b, parts=with_part(b, 1, numerics="fp32")),
    "no tensors of the bundle": lambda b: replace(b, inputs=b.inputs[:-1]),
    "does not store": lambda b: replace(b, parts=with_part(b, 1, stores=b.parts[1].stores[:1])),
    "both write": lambda b: replace(b, parts=(*b.parts, b.parts[0])),
    "no part writes": lambda b: replace(b, parts=b.parts[:2]),
}


@pytest.mark.parametrize("message", BREAKS)
def test_each_mistake_is_named(bundle: Bundle, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        BREAKS[message](bundle)


# ---- C++


@needs_compiler
@pytest.mark.parametrize("length", [LENGTH, 2, 33, 0])
@pytest.mark.parametrize("numerics", ["eager", "fp32"])
def test_values_meet_the_rule_at_every_length_with_one_kernel(length: int, numerics: str) -> None:
    graph, given = graph_of(), inputs(length)
    (kernel,) = cpp_compile.compile_cpp([lower_kernel(graph, numerics=numerics)], None)
    named = dict(zip(graph.inputs, given, strict=True))
    before = [t.clone() for t in given]
    eager, exact = reference.run(graph, named), reference.run_fp64(graph, named)
    results = cpp_compile.run_ctypes(kernel, given)
    assert len(results) == 4
    for name, ours in zip(graph.outputs, results, strict=True):
        verdict = accept(ours, eager[name], exact[name])
        assert verdict.ok, (name, verdict.reason)
        assert (ours.dtype, ours.shape, ours.stride()) == (eager[name].dtype, eager[name].shape, eager[name].stride())
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


@needs_compiler
def test_one_part_without_elements_leaves_the_others_alone() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor, z: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return x + 1, y.amax(-1), z * 2

    given = (normal(3, 4), normal(0, 5), normal(2, 2, 2))
    graph = replace(trace(fn, *given), bundle=(1, 1, 1))
    (kernel,) = cpp_compile.compile_cpp([lower_kernel(graph)], None)
    for ours, theirs in zip(cpp_compile.run_ctypes(kernel, given), fn(*given), strict=True):
        assert torch.equal(ours, theirs)


@needs_compiler
def test_large_parts_run_on_threads() -> None:
    def fn(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.tanh(x), torch.softmax(y, -1)

    given = (normal(700_000), normal(300, 3000))
    graph = replace(trace(fn, *given), bundle=(1, 1))
    nest = lower_kernel(graph)
    (kernel,) = cpp_compile.compile_cpp([nest], None)
    assert kernel.source.count("#pragma omp parallel") == 2
    exact = reference.run_fp64(graph, dict(zip(graph.inputs, given, strict=True)))
    for ours, theirs, truth in zip(cpp_compile.run_ctypes(kernel, given), fn(*given), exact.values(), strict=True):
        assert accept(ours, theirs, truth).ok


@needs_compiler
def test_an_input_of_a_later_part_is_checked(bundle: Bundle) -> None:
    (kernel,) = cpp_compile.compile_cpp([bundle], None)
    x, y, w, n = inputs()
    with pytest.raises(StructureMismatch, match="a3"):
        cpp_compile.run_ctypes(kernel, (x, y, w, n.int()))
    with pytest.raises(StructureMismatch, match="a1"):
        cpp_compile.run_ctypes(kernel, (x, y[:, :-1], w, n))


@pytest.mark.slow
@needs_compiler
def test_it_is_a_program_that_runs_alone(bundle: Bundle) -> None:
    (kernel,) = cpp_compile.compile_cpp([bundle], None)
    done = subprocess.run([sys.executable, "-c", kernel.to_script()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line[:2] for line in done.stdout.splitlines()[:4]] == ["o0", "o1", "o2", "o3"]


def test_its_sources_are_the_same_every_time(bundle: Bundle) -> None:
    again = lower_kernel(graph_of())
    assert kernel_sources(bundle) == kernel_sources(again)


@needs_compiler
def test_products_beside_other_parts_read_and_write_their_own_tensors() -> None:
    def function(x: torch.Tensor, y: torch.Tensor, w: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.tanh(x), torch.nn.functional.linear(y, w), torch.nn.functional.linear(x, w.T)

    given = normal(5, 20), normal(3, 7, seed=1), normal(20, 7, seed=2)
    nest = lower_kernel(replace(trace(function, *given), bundle=(1, 1, 1)))
    assert isinstance(nest, Bundle)
    (kernel,) = cpp_compile.compile_cpp([nest], None)
    for made, wanted in zip(cpp_compile.run_ctypes(kernel, given), function(*given), strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-5, atol=1e-5)
