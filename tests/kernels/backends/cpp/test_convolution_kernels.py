"""Convolutions as C++ kernels: windows, strides, padding and layouts, against eager and double precision."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from compiled_examples import needs_compiler
from graphs import trace

from fusion.kernels.backends.cpp.compile import CompiledKernel, compile_cpp, run_ctypes
from fusion.kernels.lower import lower
from fusion.kernels.products import as_products
from fusion.patterns.errors import LoweringError
from fusion.patterns.ops import TABLE
from fusion.patterns.verify import accept

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
Shapes = tuple[tuple[int, ...], ...]

FUNCTIONS: dict[str, tuple[Callable[..., Any], Shapes]] = {
    "1x1": (F.conv2d, ((2, 40, 9, 7), (33, 40, 1, 1))),
    "patches": (functools.partial(F.conv2d, stride=(8, 4)), ((2, 3, 40, 36), (50, 3, 8, 4), (50,))),
    "3x3": (functools.partial(F.conv2d, padding=1), ((1, 20, 30, 29), (40, 20, 3, 3), (40,))),
    "uneven": (
        functools.partial(F.conv2d, padding=(2, 0), stride=(1, 2), dilation=(2, 3)),
        ((2, 5, 13, 37), (7, 5, 3, 4), (7,)),
    ),
    "same": (functools.partial(F.conv2d, padding="same"), ((2, 5, 13, 17), (7, 5, 4, 3))),
    "valid": (functools.partial(F.conv1d, padding="valid"), ((2, 5, 33), (7, 5, 4))),
    "one dimension": (functools.partial(F.conv1d, padding=1, stride=2), ((2, 30, 301), (40, 30, 3), (40,))),
    "more padding than window": (functools.partial(F.conv1d, padding=4), ((1, 3, 5), (7, 3, 2), (7,))),
    "activation": (lambda x, w, b: F.gelu(F.conv1d(x, w, b, padding=1)), ((1, 30, 70), (40, 30, 3), (40,))),
}


def made(shapes: Shapes, dtype: torch.dtype) -> list[torch.Tensor]:
    """Random tensors."""
    generator = torch.Generator().manual_seed(sum(map(sum, shapes)))
    return [(torch.randn(*shape, generator=generator) * 0.3).to(dtype) for shape in shapes]


def same(kernel: CompiledKernel, fn: Callable[..., Any], inputs: list[torch.Tensor]) -> None:
    """The kernel's result is as good as eager's."""
    (fused,) = run_ctypes(kernel, inputs)
    verdict = accept(fused, fn(*inputs), fn(*(x.double() for x in inputs)))
    assert verdict.ok, verdict.reason


@needs_compiler
@pytest.mark.filterwarnings("ignore:Using padding='same'")
def test_convolutions_agree() -> None:
    cases = [(fn, made(shapes, dtype)) for fn, shapes in FUNCTIONS.values() for dtype in DTYPES]
    nests = [lower(trace(fn, *inputs)) for fn, inputs in cases]
    assert all(as_products(nest) is not None for nest in nests)
    for kernel, (fn, inputs) in zip(compile_cpp(nests, None), cases, strict=True):
        same(kernel, fn, inputs)


@needs_compiler
def test_one_kernel_serves_all_lengths_and_batches() -> None:
    fn, weights = functools.partial(F.conv1d, padding=1), ((40, 30, 3), (40,))
    example = made(((11, 30, 307), *weights), torch.float32)
    (kernel,) = compile_cpp([lower(trace(fn, *example, dynamic={11: "s0", 307: "s1"}))], None)
    for batch, length in ((1, 1), (2, 3), (3, 64), (2, 1001)):
        same(kernel, fn, made(((batch, 30, length), *weights), torch.float32))


@needs_compiler
def test_any_layout() -> None:
    fn, shapes = FUNCTIONS["3x3"]
    x, weight, bias = made(shapes, torch.float32)
    cases = [
        [x.to(memory_format=torch.channels_last), weight, bias],
        [x, weight.to(memory_format=torch.channels_last), bias],
        [x[..., ::2], weight, bias],
        [x.flip(0).expand(3, -1, -1, -1), weight, bias],
    ]
    for kernel, inputs in zip(compile_cpp([lower(trace(fn, *c)) for c in cases], None), cases, strict=True):
        same(kernel, fn, inputs)
        assert run_ctypes(kernel, inputs)[0].stride() == fn(*inputs).stride()


@pytest.mark.parametrize(
    ("fn", "shapes"),
    [
        (functools.partial(F.conv2d, groups=2), ((1, 4, 5, 5), (6, 2, 3, 3))),
        (F.conv1d, ((4, 9), (6, 4, 3))),
        (F.conv1d, ((1, 1, 9), (6, 1, 1))),
    ],
    ids=["groups", "no batch", "no sum"],
)
def test_others_stay_with_the_library(fn: Callable[..., Any], shapes: Shapes) -> None:
    with pytest.raises(LoweringError):
        lower(trace(fn, *made(shapes, torch.float32)))


def test_double_precision_stays_with_the_library() -> None:
    with pytest.raises(LoweringError, match="float64"):
        lower(trace(F.conv1d, *made(((1, 4, 9), (6, 4, 3)), torch.float64)))
    assert {"aten.conv1d.default", "aten.conv2d.padding"} <= set(TABLE)
