"""A backend from outside of the package: it passes the examples of the others, and models run on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bundles
import numpy
import pytest
import torch
from graphs import DYNAMIC, EXAMPLES, LENGTH, trace
from numpy_backend import NumpyBackend, registered
from pair import Pair, rand
from reduction_cases import flattened, judge, lowered, regions

import fusion
from fusion.doctor import examine, main_job_works
from fusion.kernels import kernel_sources, lower, lower_kernel
from fusion.kernels.backend import Finding, backend_named, backends, backends_of, register
from fusion.kernels.bundle import Nest
from fusion.patterns import reference
from fusion.patterns.errors import ConfigError, StructureMismatch
from fusion.patterns.graph import SubGraph
from fusion.patterns.verify import accept
from fusion.runtime.launch import make_launcher


@pytest.fixture
def backend() -> Iterator[NumpyBackend]:
    with registered(NumpyBackend()) as made:
        yield made


def launched(backend: NumpyBackend, nest: Nest) -> Any:
    (kernel,) = backend.compile([(nest, backend.schedules(nest)[0])], None)
    return make_launcher(kernel)


def check(backend: NumpyBackend, graph: SubGraph, nest: Nest, inputs: tuple[torch.Tensor, ...]) -> None:
    """The backend's kernel meets the rule, and leaves its inputs alone."""
    before = [t.clone() for t in inputs]
    made = launched(backend, nest)(*inputs)
    named = dict(zip(graph.inputs, inputs, strict=True))
    eager, exact = reference.run(graph, named), reference.run_fp64(graph, named)
    for name, result in zip(graph.outputs, made if isinstance(made, tuple) else (made,), strict=True):
        verdict = accept(result, eager[name], exact[name])
        assert verdict.ok, verdict.reason
    assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_meet_the_rule_at_every_length_with_one_kernel(
    backend: NumpyBackend, name: str, dtype: torch.dtype
) -> None:
    graph = trace(EXAMPLES[name].fn, *EXAMPLES[name].inputs(dtype, LENGTH), dynamic=DYNAMIC)
    nest = lower(graph)
    for length in (LENGTH, 1, 33):
        check(backend, graph, nest, EXAMPLES[name].inputs(dtype, length))


@pytest.mark.parametrize("name", [*regions(), *flattened()])
def test_regions_around_reductions(backend: NumpyBackend, name: str) -> None:
    fn, inputs = (regions() | flattened())[name]
    graph, nest = lowered(fn, inputs)
    made = launched(backend, nest)(*inputs)
    assert not judge(graph, made if isinstance(made, tuple) else (made,), inputs)


def test_a_bundle_is_one_kernel(backend: NumpyBackend) -> None:
    graph = bundles.graph_of()
    for length in (LENGTH, 3):
        check(backend, graph, lower_kernel(graph), bundles.inputs(length))


def test_a_call_of_another_structure_is_refused(backend: NumpyBackend) -> None:
    example = EXAMPLES["swiglu"]
    run = launched(backend, lower(trace(example.fn, *example.inputs(), dynamic=DYNAMIC)))
    gate, up = example.inputs()
    for wrong in ((gate, up[:, 1:]), (gate, up.double()), (gate,), (gate, up.transpose(0, 1))):
        with pytest.raises(StructureMismatch):
            run(*wrong)


def test_a_model_runs_on_it_and_equals_eager(backend: NumpyBackend, tmp_path: Any) -> None:
    pair = Pair(fusion.FusionConfig(backend="numpy", profile=False, cache_dir=tmp_path))
    pair.warm()
    before = backend.calls[1]
    pair(rand(6, 16))
    used = fusion.kernels_in_use(pair.fused)
    assert used and {kernel.backend for kernel in used} == {"numpy"}
    assert backend.calls[1] - before == len(used)
    assert {row.backend for row in fusion.report(pair.fused).scopes[0].regions if row.decision == "fused"} == {"numpy"}
    assert "numpy" in used[0].sources() and used[0].to_script()


def test_it_is_known_wherever_backends_are(backend: NumpyBackend) -> None:
    assert backend_named("numpy") is backend and backends_of("cpu")[-1] is backend
    assert Finding("kernels in NumPy", "works", numpy.__version__, kernels=True) in examine()
    assert main_job_works(examine())
    with pytest.raises(ConfigError, match="'auto', 'cpp', 'triton', 'numpy', 'eager'"):
        fusion.FusionConfig(backend="nympy")
    nest = lower(trace(EXAMPLES["swiglu"].fn, *EXAMPLES["swiglu"].inputs()))
    assert kernel_sources(nest)["numpy"].endswith(str(nest))
    with pytest.raises(ConfigError, match="taken"):
        register(NumpyBackend())


def test_outside_of_its_block_nothing_is_left_of_it() -> None:
    with registered(NumpyBackend()):
        config = fusion.FusionConfig(backend="numpy")
    assert [one.name for one in backends()] == ["cpp", "triton"]
    with pytest.raises(ConfigError, match="one of 'auto', 'cpp', 'triton', 'eager' is expected"):
        config.replace(backend="numpy")
    with pytest.raises(ConfigError, match="There are: cpp, triton"):
        backend_named("numpy")
