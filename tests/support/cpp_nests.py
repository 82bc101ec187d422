"""Hand-made LoopNests for the C++ backend, compiled and run."""

import torch

from fusion.kernels.backends.cpp import compile as cpp_compile
from fusion.kernels.loops import Argument, Axis, LoopNest, Output, Reduction, SizeParameter, Store
from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import Load, Reduced

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
N, J = symbols.symbol("s0"), symbols.index_symbol("j")


def flat(name, value, inputs, dtype):
    """A kernel over one dimension of free length."""
    arguments = tuple(Argument(f"a{k}", t, (N,), (1,)) for k, t in enumerate(inputs))
    sizes = (SizeParameter("s0", "shape", 0, 0),)
    stores = (Store("o0", J, value),)
    return LoopNest(name, "", arguments, (Output("o0", dtype, (N,), (0,)),), (), Axis("j", N), (), stores, sizes)


def row(name, columns, reductions, stores, sizes=(), dtype=torch.float32, inputs=None):
    """A kernel over the rows of a matrix [s0, columns] to [s0] or [s0, columns]."""
    arguments = inputs or (Argument("a0", dtype, (N, columns), (columns, 1)),)
    outputs = tuple(
        Output(s.output, dtype, (N,) if s.per_row else (N, columns), (0,) if s.per_row else (0, 1)) for s in stores
    )
    sizes = (SizeParameter("s0", "shape", 0, 0), *sizes)
    rows = (Axis("i0", N),)
    return LoopNest(name, "", arguments, outputs, rows, Axis("j", columns), reductions, stores, sizes)


def reduced(fn, columns):
    """A kernel of one reduction, from [s0, columns] to [s0]."""
    i0 = symbols.index_symbol("i0")
    reductions = (Reduction("r0", fn, load(offset=columns * i0 + J), columns),)
    return row(fn, columns, reductions, (Store("o0", i0, Reduced(torch.float32, "r0"), per_row=True),))


def load(k=0, dtype=torch.float32, offset=J):
    """An element of input `k`, widened."""
    return Load(scalar.compute_type(dtype), f"a{k}", offset, dtype)


def compiled(*nests):
    """Kernels of one library."""
    return cpp_compile.compile_cpp(nests, None)


def run(nest, *inputs):
    """The outputs of a kernel."""
    (kernel,) = compiled(nest)
    return cpp_compile.run_ctypes(kernel, inputs)
