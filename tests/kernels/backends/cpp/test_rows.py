"""Rows of C++ kernels: long reductions, what a softmax keeps, and selects by row and column."""

import pytest
import torch
from compiled_examples import needs_compiler
from cpp_nests import J, N, compiled, load, reduced, row, run
from graphs import DYNAMIC, LENGTH, normal, trace

from fusion.kernels.backends.cpp import compile as cpp_compile
from fusion.kernels.loops import Store
from fusion.kernels.lower import lower
from fusion.patterns import reference, symbols
from fusion.patterns.scalar import Select
from fusion.patterns.verify import accept

pytestmark = needs_compiler


def test_maximum_of_a_row_keeps_nan_wherever_it_stands():
    columns = 700  # more than one block
    nest = reduced("max", columns)
    x = normal(9, columns)
    for k, at in enumerate((0, 1, 31, 32, 511, 512, 698, 699)):
        x[k, at] = torch.nan
    (highest,) = run(nest, x)
    assert highest.isnan().tolist() == [True] * 8 + [False]
    assert highest[8] == x[8].max()


def test_sum_of_a_long_row_is_as_exact_as_float32_allows():
    columns = 151_936
    nest = reduced("sum", columns)
    x = normal(2, columns).abs()
    (total,) = run(nest, x)
    # 16 additions per lane of a block before double precision takes over: at most 16 roundings of half an ulp.
    assert ((total.double() - x.double().sum(-1)).abs() <= 8 * 2**-23 * x.double().sum(-1)).all()


@pytest.mark.parametrize("columns", [1, 31, 32, 512, 513, 1100, 4096, 4097, 9000])
def test_a_softmax_keeps_its_exponentials_or_makes_them_again(columns):
    def fn(x):
        return (x * 0.5).softmax(-1)

    graph = trace(fn, normal(3, LENGTH), dynamic=DYNAMIC)
    (kernel,) = compiled(lower(graph))
    assert "<= 4096" in kernel.source
    x = normal(3, columns) * 30  # far enough apart for subnormal results
    exact = reference.run_fp64(graph, {"x0": x})
    (ours,) = cpp_compile.run_ctypes(kernel, (x,))
    verdict = accept(ours, fn(x), *exact.values())
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("bounds", [(0,), (3, 40), (64,), (40, 3), (N,), (3, N + 3)], ids=str)
def test_selects_on_the_column_take_the_right_case(bounds):
    index = J if bounds != (64,) else J + 1
    cases = tuple(load(offset=64 * symbols.index_symbol("i0") + J) * float(k + 2) for k in range(len(bounds) + 1))
    value = Select(torch.float32, index, bounds, cases)
    i0 = symbols.index_symbol("i0")
    for rows in (1, 2, 50, 70):
        x = normal(rows, 64)
        (y,) = run(row("pick", 64, (), (Store("o0", 64 * i0 + J, value),)), x)
        limits = [int(symbols.evaluate(b, {"s0": rows})) for b in bounds]
        position = [j + (index is not J) for j in range(64)]
        factor = torch.tensor([next((k for k, b in enumerate(limits) if p < b), len(limits)) + 2.0 for p in position])
        assert torch.equal(y, x * factor)


def test_selects_on_the_row_and_beyond_reach():
    i0 = symbols.index_symbol("i0")
    here = load(offset=64 * i0 + J)
    previous = load(offset=64 * i0 + J - 64)  # lies outside for the first row, where it must not be read
    by_row = Select(torch.float32, i0, (1, 3), (here, previous, here * 2.0))
    scattered = Select(torch.float32, symbols.modulo(3 * J, 5), (2,), (here, by_row))
    x = normal(5, 64)
    (y, z) = run(row("rows", 64, (), (Store("o0", 64 * i0 + J, by_row), Store("o1", 64 * i0 + J, scattered))), x)
    expected = torch.stack([x[0], x[0], x[1], x[3] * 2, x[4] * 2])
    assert torch.equal(y, expected)
    assert torch.equal(z, torch.where(torch.arange(64) * 3 % 5 < 2, x, expected))
