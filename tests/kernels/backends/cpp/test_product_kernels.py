"""Matrix products as C++ kernels: every path, layout and dtype, against eager and double precision."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compiled_examples import needs_compiler
from graphs import trace

from fusion.kernels.backends.cpp.compile import CompiledKernel, compile_cpp, run_ctypes
from fusion.kernels.lower import lower
from fusion.patterns.extents import generalized
from fusion.patterns.verify import accept

pytestmark = [pytest.mark.slow, needs_compiler]
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# Rows, summed elements, lanes: one of each; few rows; tiles with rests; many stretches of a sum; more than a panel.
SIZES = ((1, 1, 1), (1, 1024, 300), (3, 77, 18), (8, 300, 37), (9, 40, 16), (70, 557, 37), (269, 35, 18), (5, 16384, 6))


def swiglu(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """Two products of one activation, and what follows them."""
    return F.silu(F.linear(x, gate)) * F.linear(x, up)


FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[int, int, int], tuple[tuple[int, ...], ...]]]] = {
    "linear": (F.linear, lambda m, k, n: ((1, m, k), (n, k))),
    "bias": (F.linear, lambda m, k, n: ((m, k), (n, k), (n,))),
    "mm": (torch.mm, lambda m, k, n: ((m, k), (k, n))),
    "addmm": (torch.addmm, lambda m, k, n: ((n,), (m, k), (k, n))),
    "scaled": (functools.partial(torch.addmm, alpha=0.5, beta=2), lambda m, k, n: ((m, n), (m, k), (k, n))),
    "bmm": (torch.bmm, lambda m, k, n: ((3, m, k), (3, k, n))),
    "baddbmm": (torch.baddbmm, lambda m, k, n: ((3, m, n), (3, m, k), (3, k, n))),
    "einsum": (lambda a, b: torch.einsum("bik,bjk->bij", a, b), lambda m, k, n: ((3, m, k), (3, n, k))),
    "einsum, turned": (lambda a, b: torch.einsum("ki, bkj -> jbi", a, b), lambda m, k, n: ((k, n), (3, k, m))),
    "broadcast": (torch.matmul, lambda m, k, n: ((2, 1, m, k), (3, k, n))),
    "swiglu": (swiglu, lambda m, k, n: ((m, k), (n, k), (n, k))),
    "residual": (lambda x, w, r: F.linear(x, w) + r, lambda m, k, n: ((m, k), (n, k), (m, n))),
}


def made(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """Tensors of such shapes; factors are small, so that sums of many stay in the range of halves."""
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    return [(torch.randn(*s, generator=generator) * (s[-1] ** -0.25 if len(s) > 1 else 1)).to(dtype) for s in shapes]


@functools.cache
def kernels(name: str, one_row: bool) -> dict[torch.dtype, CompiledKernel]:
    """A function's kernels for all sizes, by dtype, compiled together."""
    fn, shapes = FUNCTIONS[name]
    example = shapes(1 if one_row else 5, 8, 6)
    nests = [lower(generalized(trace(fn, *made(example, dtype)))) for dtype in DTYPES]
    return dict(zip(DTYPES, compile_cpp(nests, None), strict=True))


def same(kernel: CompiledKernel, fn: Callable[..., Any], inputs: list[torch.Tensor]) -> None:
    """The kernel's result is as good as eager's."""
    (fused,) = run_ctypes(kernel, inputs)
    verdict = accept(fused, fn(*inputs), fn(*(x.double() for x in inputs)))
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_sizes_agree(name: str) -> None:
    fn, shapes = FUNCTIONS[name]
    for rows, inner, lanes in SIZES:
        if 1 in (rows, inner, lanes) and rows * inner * lanes > 1 and rows > 1:
            continue
        for dtype, kernel in kernels(name, rows == 1).items():
            if (1 in (rows, inner, lanes)) == (rows == 1) and (inner > 1 or rows > 1):
                same(kernel, fn, made(shapes(rows, inner, lanes), dtype))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("rows", [7, 70])
def test_any_layout_of_weights(dtype: torch.dtype, rows: int) -> None:
    x, w = made(((rows, 40), (23, 40)), dtype)
    wide = torch.randn(23, 80).to(dtype)
    layouts = {
        "transposed": (x, w.t().contiguous().t()),
        "every second": (x, wide[:, ::2]),
        "expanded": (x, w[:1].expand(23, 40)),
        "misaligned": (x, torch.randn(23 * 40 + 1).to(dtype)[1:].view(23, 40)),
        "rows of a larger one": (x, torch.randn(90, 40).to(dtype)[11:34]),
        "transposed activation": (x.t().contiguous().t(), w),
    }
    compiled = compile_cpp([lower(trace(F.linear, *inputs)) for inputs in layouts.values()], None)
    for kernel, inputs in zip(compiled, layouts.values(), strict=True):
        same(kernel, F.linear, list(inputs))


@pytest.mark.parametrize("rows", [1, 3, 70])
def test_factors_may_be_computed_on_the_way(rows: int) -> None:
    def fn(x: torch.Tensor, w: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        return F.linear(F.silu(x), w.to(torch.bfloat16) * s)

    x, s = made(((rows, 40), (23, 1)), torch.bfloat16)
    w = torch.randint(-127, 127, (23, 40), dtype=torch.int8)
    (kernel,) = compile_cpp([lower(trace(fn, x, w, s))], None)
    (fused,) = run_ctypes(kernel, [x, w, s])
    exact = F.linear(F.silu(x.double()).bfloat16().double(), (w.to(torch.bfloat16) * s).double())
    verdict = accept(fused, fn(x, w, s), exact)
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("rows", [1, 4, 20])
def test_values_that_are_not_finite_are_where_eager_has_them(rows: int) -> None:
    x, w = made(((1, rows, 64), (18, 64)), torch.float32)
    x[0, rows // 2, 3], w[5, 7], w[11, 9] = torch.nan, torch.inf, -torch.inf
    same(kernels("linear", rows == 1)[torch.float32], F.linear, [x, w])
    x, w = made(((1, rows, 64), (18, 64)), torch.float16)
    same(kernels("linear", rows == 1)[torch.float16], F.linear, [x * 300, w * 300])  # overflows float16


def test_one_thread_gives_what_many_give() -> None:
    x, w = made(((70, 557), (300, 557)), torch.bfloat16)
    threads = torch.get_num_threads()
    many = run_ctypes(kernels("mm", False)[torch.bfloat16], [x, w.t().contiguous()])[0]
    try:
        torch.set_num_threads(1)
        one = run_ctypes(kernels("mm", False)[torch.bfloat16], [x, w.t().contiguous()])[0]
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(one, many)


def test_the_weights_are_as_they_were() -> None:
    x, w = made(((9, 40), (16, 40)), torch.bfloat16)
    before = w.clone()
    run_ctypes(kernels("linear", False)[torch.bfloat16], [x[None], w])
    assert torch.equal(w, before)


_SHORT = """
import resource, sys, torch
from fusion.kernels.backends.cpp.compile import compile_cpp
from fusion.kernels.backends.cpp.launch import make_cpp_launcher
from fusion.kernels.lower import lower
from fusion.runtime.native import load_native
from graphs import trace
x, w = torch.ones(30, 1 << 19), torch.ones(3, 1 << 19)
(kernel,) = compile_cpp([lower(trace(torch.nn.functional.linear, x, w))], None)
launchers = [make_cpp_launcher(kernel, extension) for extension in (load_native(), None)]
assert all((launch(x, w) == 1 << 19).all() for launch in launchers)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (16 << 20),) * 2)
for launch in launchers:
    try:
        print(launch(x, w))
    except MemoryError:
        print("MemoryError")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit on memory is Linux's")
def test_a_panel_that_finds_no_memory_raises_by_either_launcher() -> None:
    command = [sys.executable, "-c", _SHORT]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (ended.stdout, ended.returncode) == ("MemoryError\n" * 2, 0), ended.stderr
