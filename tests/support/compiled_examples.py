"""Some of the examples as C++ kernels, and what a test of them needs."""

from __future__ import annotations

import pytest
import torch
from graphs import DYNAMIC, EXAMPLES, trace

from fusion.kernels.backends.cpp import compile as cpp_compile
from fusion.kernels.backends.cpp.toolchain import find_toolchain, why_missing
from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import lower

needs_compiler = pytest.mark.skipif(find_toolchain() is None, reason=why_missing() or "")
NAMES = ("swiglu", "add_rms_norm", "rope", "rms_norm")


def nests(names: tuple[str, ...] = NAMES) -> list[LoopNest]:
    """Examples as kernels with a free length."""
    return [lower(trace(EXAMPLES[n].fn, *EXAMPLES[n].inputs(), dynamic=DYNAMIC)) for n in names]


def works(kernel: cpp_compile.CompiledKernel, name: str) -> None:
    """The kernel gives the first result of the example."""
    inputs = EXAMPLES[name].inputs(length=3)
    eager = EXAMPLES[name].fn(*inputs)
    ours = cpp_compile.run_ctypes(kernel, inputs)[0]
    torch.testing.assert_close(ours, eager[0] if isinstance(eager, tuple) else eager)
