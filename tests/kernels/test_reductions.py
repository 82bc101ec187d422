"""Every reduction row over every kind of dimensions: what its LoopNest means, and what C++ kernels of it compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from compiled_examples import needs_compiler
from evaluate import evaluate
from graphs import DYNAMIC, LENGTH, normal, trace
from reduction_cases import CASES, OF_ANY_LENGTH, judge, lowered

from fusion.kernels.backends.cpp import compile as cpp_compile
from fusion.kernels.backends.cpp import emit as cpp_emit
from fusion.kernels.backends.cpp.lanes import LANES
from fusion.kernels.backends.cpp.rows import ROW_BUFFER
from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import lower
from fusion.patterns.graph import SubGraph

pytestmark = pytest.mark.slow
Kernels = dict[str, list[tuple[SubGraph, LoopNest, tuple[torch.Tensor, ...]]]]


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return {name: [(*lowered(*case), case[1]) for case in group] for name, group in CASES.items()}


@pytest.mark.parametrize("name", CASES)
def test_what_the_loops_mean(name: str, kernels: Kernels) -> None:
    for graph, nest, inputs in kernels[name]:
        assert not judge(graph, evaluate(nest, *inputs), inputs), nest


@pytest.fixture(scope="module")
def compiled(kernels: Kernels) -> dict[str, list[cpp_compile.CompiledKernel]]:
    """A case of each group, as one unit: another of its dimensions and layouts for each."""
    chosen = {name: [group[5 * k % len(group)]] for k, (name, group) in enumerate(kernels.items())}
    made = iter(cpp_compile.compile_cpp([nest for group in chosen.values() for _, nest, _ in group], None))
    return {name: [next(made) for _ in group] for name, group in chosen.items()}


@needs_compiler
@pytest.mark.parametrize("name", CASES)
def test_what_compiled_kernels_compute(
    name: str, kernels: Kernels, compiled: dict[str, list[cpp_compile.CompiledKernel]]
) -> None:
    by_nest = {id(nest): (graph, inputs) for graph, nest, inputs in kernels[name]}
    assert compiled[name]
    for kernel in compiled[name]:
        graph, inputs = by_nest[id(kernel.nest)]
        before = [x.clone() for x in inputs]
        assert not judge(graph, cpp_compile.run_ctypes(kernel, inputs), inputs), kernel.source
        assert all(torch.equal(a, b) for a, b in zip(before, inputs, strict=True))


# Lengths: a free one, so that the same kernel meets them all


def of_length(name: str) -> tuple[SubGraph, LoopNest]:
    fn, _ = OF_ANY_LENGTH[name]
    graph = trace(fn, normal(3, LENGTH), dynamic=DYNAMIC)
    return graph, lower(graph)


@pytest.fixture(scope="module")
def free() -> dict[str, tuple[SubGraph, cpp_compile.CompiledKernel]]:
    pairs = {name: of_length(name) for name in OF_ANY_LENGTH}
    made = cpp_compile.compile_cpp([nest for _, nest in pairs.values()], None)
    return {name: (graph, kernel) for (name, (graph, _)), kernel in zip(pairs.items(), made, strict=True)}


LENGTHS = (0, 1, 2, 7, 511, 513, 2 * LANES + 1, ROW_BUFFER + 1, 20001)


@needs_compiler
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("name", OF_ANY_LENGTH)
def test_every_length(name: str, length: int, free: dict[str, tuple[SubGraph, cpp_compile.CompiledKernel]]) -> None:
    graph, kernel = free[name]
    if length < OF_ANY_LENGTH[name][1]:
        pytest.skip("torch refuses it")
    x = normal(3, length)
    assert not judge(graph, cpp_compile.run_ctypes(kernel, (x,)), (x,))


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


SHARED = [name for name in OF_ANY_LENGTH if not name.startswith(("cumsum", "softmax over", "sum over"))]


@needs_compiler
def test_threads_share_few_long_rows(three_threads: None) -> None:
    x = normal(2, 200_001)
    pairs = [lowered(OF_ANY_LENGTH[name][0], (x,)) for name in SHARED]
    for (graph, _), kernel in zip(pairs, cpp_compile.compile_cpp([nest for _, nest in pairs], None), strict=True):
        assert f"{kernel.symbol}_shared(" in kernel.source
        assert not judge(graph, cpp_compile.run_ctypes(kernel, (x,)), (x,))


@needs_compiler
def test_rows_that_are_neighbours_in_memory_are_taken_together() -> None:
    x = normal(5, 16)
    across = cpp_emit.code(lower(trace(lambda x: x.softmax(0), x)))
    along = cpp_emit.code(lower(trace(lambda x: x.softmax(1), x)))
    assert "for (int64_t step = 0; step < 5; ++step)" in across and "int64_t step" not in along


# Special values


@needs_compiler
@pytest.mark.parametrize("over", [0, 1])
def test_special_values_end_where_eager_has_them(over: int) -> None:
    nan, inf = float("nan"), float("inf")
    rows = [[1.0, nan, 2.0, nan], [inf, 1.0, -inf, 2.0], [-inf] * 4, [0.0, -0.0, 0.0, 0.0], [3.0, 3.0, inf, inf]]
    x = torch.tensor(rows) if over else torch.tensor(rows).t().contiguous()
    fns = [
        lambda x: tuple(x.max(over)), lambda x: tuple(x.min(over)), lambda x: x.argmax(over), lambda x: x.argmin(over),
        lambda x: x.softmax(over), lambda x: x.log_softmax(over), lambda x: x.logsumexp(over), lambda x: x.sum(over),
        lambda x: x.cumsum(over), lambda x: x.nansum(over), lambda x: x.any(over), lambda x: x.all(over),
        lambda x: torch._safe_softmax(x, over), lambda x: tuple(x.aminmax(dim=over)), lambda x: x.prod(over),
        lambda x: x.var(over), lambda x: torch.linalg.vector_norm(x, inf, over), lambda x: x.count_nonzero(over),
    ]  # fmt: skip
    for fn, kernel in zip(fns, cpp_compile.compile_cpp([lower(trace(fn, x)) for fn in fns], None), strict=True):
        assert not judge(trace(fn, x), cpp_compile.run_ctypes(kernel, (x,)), (x,)), kernel.source


@needs_compiler
def test_integers_wrap_and_reach_their_limits() -> None:
    top, bottom = torch.iinfo(torch.int64).max, torch.iinfo(torch.int64).min
    x = torch.tensor([[top, 1, 2], [bottom, -1, 0], [3, top, bottom]])
    fns = [lambda x: x.sum(1), lambda x: x.amax(1), lambda x: x.amin(0), lambda x: x.cumsum(1), lambda x: x.prod(0)]
    for fn, kernel in zip(fns, cpp_compile.compile_cpp([lower(trace(fn, x)) for fn in fns], None), strict=True):
        assert torch.equal(cpp_compile.run_ctypes(kernel, (x,))[0], fn(x))


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [2, 40])
def test_scans_leave_the_range_where_eager_does(dtype: torch.dtype, rows: int) -> None:
    """Eager's running total of halves is a float32, of float32 a float64."""
    inf = float("inf")
    terms = [[1e-30, 1e-20, inf, 1.0], [1e30, 1e20, 0.0, 1.0], [3e38, 3e38, -3e38, -3e38], [1.0, 0.3, 0.1, -7.0]]
    x = torch.tensor(terms, dtype=dtype).repeat(rows // 2, 1)
    cases = [
        (lambda x, f=f, d=d: f(x, d), x if d else x.t().contiguous())
        for f in (torch.cumprod, torch.cumsum)
        for d in (0, 1)
    ]
    kernels = cpp_compile.compile_cpp([lower(trace(fn, x)) for fn, x in cases], None)
    for (fn, x), kernel in zip(cases, kernels, strict=True):
        torch.testing.assert_close(cpp_compile.run_ctypes(kernel, (x,))[0], fn(x), rtol=0, atol=0, equal_nan=True)


@needs_compiler
@pytest.mark.parametrize("fn", [torch.Tensor.sum, torch.Tensor.var, torch.Tensor.cumsum], ids=["sum", "var", "cumsum"])
@pytest.mark.parametrize("dim", [0, 1])
def test_double_precision_accumulates_in_double(fn: Callable[..., torch.Tensor], dim: int) -> None:
    """Summing n numbers in any order errs by at most (n - 1) half ulps of the sum of their sizes."""
    x = normal(300, 301, dtype=torch.float64)
    nest = lowered(lambda x: fn(x, dim), (x,))[1]
    (kernel,) = cpp_compile.compile_cpp([nest], None)
    (made,) = cpp_compile.run_ctypes(kernel, (x,))
    bound = 4 * 301 * 2.0**-53 * x.abs().sum(dim, keepdim=True).amax()
    assert made.dtype is torch.float64 and ((made - fn(x, dim)).abs() <= bound).all()
