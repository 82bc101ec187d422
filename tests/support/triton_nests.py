"""Hand-made LoopNests that pin down one feature of the Triton emitter each."""

from __future__ import annotations

import dataclasses

import torch

from fusion.kernels.loops import Argument, Axis, LoopNest, Output, Reduction, SizeParameter, Store
from fusion.patterns import symbols
from fusion.patterns.scalar import Apply, Load, Reduced, Scalar, Select, apply, cast, compute_type, constant, round_to
from fusion.patterns.symbols import Dim

J = symbols.index_symbol("j")
I0 = symbols.index_symbol("i0")
S0 = symbols.symbol("s0")


def load(argument: str, offset: Dim, storage: torch.dtype) -> Load:
    """An element of an input, widened."""
    return Load(compute_type(storage), argument, offset, storage)


def flat(name: str, value: Scalar, inputs: tuple[torch.dtype, ...], result: torch.dtype, extent: Dim = S0) -> LoopNest:
    """`value` over one column of dense tensors."""
    sizes = (SizeParameter("s0", "shape", 0, 0),) if extent == S0 else ()
    return LoopNest(
        name=name,
        subgraph="",
        inputs=tuple(Argument(f"a{i}", dtype, (extent,), (1,)) for i, dtype in enumerate(inputs)),
        outputs=(Output("o0", result, (extent,), (0,)),),
        rows=(),
        column=Axis("j", extent),
        reductions=(),
        stores=(Store("o0", J, value),),
        sizes=sizes,
    )


def unary(fn: str, dtype: torch.dtype = torch.float32, result: torch.dtype | None = None) -> LoopNest:
    """One primitive of one operand."""
    value = apply(fn, load("a0", J, dtype))
    return flat(f"{fn}_{str(dtype)[6:]}", round_to(value, result or dtype), (dtype,), result or dtype)


def binary(fn: str, dtype: torch.dtype = torch.float32, result: torch.dtype | None = None) -> LoopNest:
    """One primitive of two operands."""
    value = apply(fn, load("a0", J, dtype), load("a1", J, dtype))
    return flat(f"{fn}_{str(dtype)[6:]}", round_to(value, result or dtype), (dtype, dtype), result or dtype)


def conversion(source: torch.dtype, target: torch.dtype) -> LoopNest:
    """A cast."""
    value = round_to(cast(load("a0", J, source), compute_type(target)), target)
    return flat(f"cast_{str(source)[6:]}_{str(target)[6:]}", value, (source,), target)


def row_sum(columns: Dim, fn: str = "sum", dtype: torch.dtype = torch.float32) -> LoopNest:
    """`fn` of each row, and the row minus it."""
    x = load("a0", I0 * columns + J, dtype)
    reduced = Reduced(torch.float32, "r0")
    sizes = [SizeParameter("s0", "shape", 0, 0)]
    if isinstance(columns, symbols.sympy.Expr):
        sizes.append(SizeParameter(str(columns), "shape", 0, 1))
    return LoopNest(
        name=f"row_{fn}",
        subgraph="",
        inputs=(Argument("a0", dtype, (S0, columns), (columns, 1)),),
        outputs=(Output("o0", torch.float32, (S0,), (0,)), Output("o1", dtype, (S0, columns), (0, 1))),
        rows=(Axis("i0", S0),),
        column=Axis("j", columns),
        reductions=(Reduction("r0", fn, x, columns),),
        stores=(
            Store("o0", I0, reduced, per_row=True),
            Store("o1", I0 * columns + J, round_to(Apply(torch.float32, "sub", (x, reduced)), dtype)),
        ),
        sizes=tuple(sizes),
    )


def rotate(columns: int, dtype: torch.dtype = torch.bfloat16) -> LoopNest:
    """(-second half, first half) of rows of exactly `columns`: an unmasked load would leave the tensor."""
    half = columns // 2
    value = Select(
        torch.float32,
        J,
        (half,),
        (-load("a0", I0 * columns + J + half, dtype), load("a0", I0 * columns + J - half, dtype)),
    )
    return LoopNest(
        name="rotate_half",
        subgraph="",
        inputs=(Argument("a0", dtype, (S0, columns), (columns, 1)),),
        outputs=(Output("o0", dtype, (S0, columns), (0, 1)),),
        rows=(Axis("i0", S0),),
        column=Axis("j", columns),
        reductions=(),
        stores=(Store("o0", I0 * columns + J, round_to(value, dtype)),),
        sizes=(SizeParameter("s0", "shape", 0, 0),),
    )


def selection() -> LoopNest:
    """where(a0, a1, a2)."""
    value = apply("where", load("a0", J, torch.bool), load("a1", J, torch.float32), load("a2", J, torch.float32))
    return flat("where_float32", value, (torch.bool, torch.float32, torch.float32), torch.float32)


def fused() -> LoopNest:
    """a0 * a1 + a2, rounded once."""
    value = apply("fma", *(load(name, J, torch.float32) for name in ("a0", "a1", "a2")))
    return flat("fma_float32", value, (torch.float32,) * 3, torch.float32)


def far_rows() -> LoopNest:
    """A copy of 8 columns of rows whose distance is known at the call only."""
    stride = symbols.symbol("s1")
    return LoopNest(
        name="copy_rows",
        subgraph="",
        inputs=(Argument("a0", torch.uint8, (S0, 8), (stride, 1)),),
        outputs=(Output("o0", torch.uint8, (S0, 8), (0, 1)),),
        rows=(Axis("i0", S0),),
        column=Axis("j", 8),
        reductions=(),
        stores=(Store("o0", I0 * 8 + J, load("a0", I0 * stride + J, torch.uint8)),),
        sizes=(SizeParameter("s0", "shape", 0, 0), SizeParameter("s1", "stride", 0, 0)),
    )


def multiply_add(numerics: str) -> LoopNest:
    """a0 * a1 + a2: one rounding or two."""
    a, b, c = (load(f"a{i}", J, torch.float32) for i in range(3))
    nest = flat("mul_add", a * b + c, (torch.float32,) * 3, torch.float32)
    return dataclasses.replace(nest, numerics=numerics)


def _rows(name: str, value: Scalar, columns: Dim, reductions: tuple[Reduction, ...] = ()) -> LoopNest:
    sizes = [SizeParameter("s0", "shape", 0, 0)]
    if not isinstance(columns, int):
        sizes.append(SizeParameter(str(columns), "shape", 0, 1))
    return LoopNest(
        name=name,
        subgraph="",
        inputs=(Argument("a0", torch.float32, (S0, columns), (columns, 1)),),
        outputs=(Output("o0", torch.float32, (S0, columns), (0, 1)),),
        rows=(Axis("i0", S0),),
        column=Axis("j", columns),
        reductions=reductions,
        stores=(Store("o0", I0 * columns + J, value),),
        sizes=tuple(sizes),
    )


def shared_case() -> LoopNest:
    """A load that two of three cases use."""
    x = load("a0", I0 * 64 + J, torch.float32)
    return _rows("shared_case", Select(torch.float32, J, (8, 16), (x, -x, constant(0.0, torch.float32))), 64)


def short_reduction() -> LoopNest:
    """Rows of 64 minus the sum of their first 32 elements."""
    x = load("a0", I0 * 64 + J, torch.float32)
    return _rows("short_sum", x - Reduced(torch.float32, "r0"), 64, (Reduction("r0", "sum", x, 32),))


def scaled_rows(columns: Dim) -> LoopNest:
    """Rows times the reciprocal square root of their sum."""
    x = load("a0", I0 * columns + J, torch.float32)
    factor = apply("rsqrt", Reduced(torch.float32, "r0") + 1.0)
    return _rows("scaled_rows", x * factor, columns, (Reduction("r0", "sum", x, columns),))
