"""Attention as C++ kernels: masks, groups of heads, layouts and lengths, against eager and double precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from compiled_examples import needs_compiler
from graphs import trace
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attention

from fusion.kernels.backends.cpp.compile import CompiledKernel, compile_cpp, run_ctypes
from fusion.kernels.lower import lower
from fusion.patterns.errors import LoweringError
from fusion.patterns.verify import accept

pytestmark = needs_compiler
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LENGTH = 7  # left free: kernels are compiled once for all lengths
LENGTHS = (1, 5, 64, 65, 600)
LUCK = 4

FUNCTIONS: dict[str, tuple[Callable[..., Any], Callable[[int], tuple[tuple[int, ...], ...]]]] = {
    "one token": (
        functools.partial(attention, enable_gqa=True),
        lambda n: ((2, 6, 1, 32), (2, 2, n, 32), (2, 2, n, 32)),
    ),
    "few tokens": (functools.partial(attention, scale=0.5), lambda n: ((1, 3, 11, 20), (1, 3, n, 20), (1, 3, n, 36))),
    "causal": (functools.partial(attention, is_causal=True), lambda n: ((1, 3, n, 32), (1, 3, n, 32), (1, 3, n, 32))),
    "groups": (
        functools.partial(attention, is_causal=True, enable_gqa=True),
        lambda n: ((2, 6, n, 32), (2, 2, n, 32), (2, 2, n, 32)),
    ),
    "wide heads": (attention, lambda n: ((1, 2, n, 300), (1, 2, n, 300), (1, 2, n, 40))),
    "added mask": (attention, lambda n: ((2, 3, 11, 32), (2, 3, n, 32), (2, 3, n, 32), (2, 1, 11, n))),
    "broadcast mask": (attention, lambda n: ((2, 3, 11, 32), (2, 3, n, 32), (2, 3, n, 32), (1, 1, 1, n))),
}


def made(shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> list[torch.Tensor]:
    """Random tensors."""
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    return [torch.randn(*shape, generator=generator).to(dtype) for shape in shapes]


@functools.cache
def kernels(name: str) -> dict[torch.dtype, CompiledKernel]:
    """A function's kernels for all lengths, by dtype, compiled together."""
    fn, shapes = FUNCTIONS[name]
    dynamic = {LENGTH: "s0"}
    nests = [lower(trace(fn, *made(shapes(LENGTH), dtype), dynamic=dynamic)) for dtype in DTYPES]
    return dict(zip(DTYPES, compile_cpp(nests, None), strict=True))


def same(kernel: CompiledKernel, fn: Callable[..., Any], inputs: list[torch.Tensor]) -> None:
    """The kernel's result is as good as eager's, but for luck: how exact a sum of few elements is depends on its order,
    and torch's on the processor."""
    (fused,) = run_ctypes(kernel, inputs)
    exact = fn(*(x.double() if x.is_floating_point() else x for x in inputs))
    verdict = accept(fused, fn(*inputs), exact)
    assert verdict.ok or verdict.error_fused <= LUCK * (verdict.error_eager + verdict.ulp), verdict.reason


@pytest.mark.parametrize("name", FUNCTIONS)
def test_all_lengths_agree(name: str) -> None:
    fn, shapes = FUNCTIONS[name]
    for length in LENGTHS:
        for dtype, kernel in kernels(name).items():
            same(kernel, fn, made(shapes(length), dtype))


def test_rows_without_any_place_are_zero() -> None:
    q, k, v = made(((1, 2, 9, 32), (1, 2, 70, 32), (1, 2, 70, 32)), torch.float32)
    mask = torch.rand(1, 1, 9, 70, generator=torch.Generator().manual_seed(0)) > 0.5
    mask[:, :, 4] = False
    (kernel,) = compile_cpp([lower(trace(attention, q, k, v, mask))], None)
    same(kernel, attention, [q, k, v, mask])
    (fused,) = run_ctypes(kernel, [q, k, v, mask])
    assert not fused[:, :, 4].any()


def test_scores_that_are_no_number_make_their_row_nan() -> None:
    """As the definition has it, in float64, too. Of such a row torch's CPU kernel may make 0: see README's limits."""
    q, k, v = made(((1, 2, 9, 32), (1, 2, 70, 32), (1, 2, 70, 32)), torch.float32)
    q[0, 1, 4, 3] = torch.nan
    k[0, 0, 69, 0] = torch.inf
    (kernel,) = compile_cpp([lower(trace(attention, q, k, v))], None)
    (fused,) = run_ctypes(kernel, [q, k, v])
    with sdpa_kernel(SDPBackend.MATH):
        defined = attention(q.double(), k.double(), v.double())
    assert fused[0, 1, 4].isnan().all() and torch.equal(fused.isnan(), defined.isnan())


def test_one_thread_gives_what_many_give() -> None:
    inputs = made(FUNCTIONS["one token"][1](600), torch.bfloat16)
    kernel, threads = kernels("one token")[torch.bfloat16], torch.get_num_threads()
    many = run_ctypes(kernel, inputs)[0]
    try:
        torch.set_num_threads(1)
        one = run_ctypes(kernel, inputs)[0]
    finally:
        torch.set_num_threads(threads)
    torch.testing.assert_close(one, many)  # few units: threads share the places


def test_any_layout_whose_heads_are_dense() -> None:
    q, k, v = (x.transpose(1, 2) for x in made(((1, 5, 4, 32), (1, 70, 4, 32), (1, 70, 4, 32)), torch.bfloat16))
    wide = made(((1, 4, 70, 64),), torch.bfloat16)[0]
    cases = [[q, k, v], [q, wide[..., :32], wide[..., 32:]]]
    for kernel, inputs in zip(compile_cpp([lower(trace(attention, *c)) for c in cases], None), cases, strict=True):
        same(kernel, attention, inputs)


def test_keys_across_memory_are_refused() -> None:
    q, k, v = made(((1, 2, 5, 32), (1, 2, 70, 32), (1, 2, 70, 32)), torch.float32)
    across = k.transpose(2, 3).contiguous().transpose(2, 3)
    with pytest.raises(LoweringError) as refused:
        compile_cpp([lower(trace(attention, q, across, v))], None)
    assert refused.value.code == "primitive"
