"""Kernels whose indices divide: what they read is what eager reads."""

from __future__ import annotations

import torch
from compiled_examples import needs_compiler
from graphs import trace

from fusion.kernels.backends.cpp.compile import compile_cpp, run_ctypes
from fusion.kernels.lower import lower

pytestmark = needs_compiler


def test_an_index_that_counts_backwards_through_rows_of_another_length() -> None:
    def fn(x: torch.Tensor) -> torch.Tensor:
        row = x.flatten()
        backwards = torch.cat((row, row, row)).flip(0)
        return torch.nn.functional.pad(backwards / 2, (1, 2))

    x = torch.arange(32.0).view(4, 8)
    (kernel,) = compile_cpp([lower(trace(fn, x))], None)
    (found,) = run_ctypes(kernel, [x])
    assert torch.equal(found, fn(x))
