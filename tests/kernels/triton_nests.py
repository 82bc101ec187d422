"""Hand-made LoopNests that pin down one feature of the Triton emitter each."""

from __future__ import annotations

import torch
from fusion.kernels.loops import Argument, Axis, LoopNest, Output, Reduction, SizeParameter, Store
from fusion.patterns import symbols
from fusion.patterns.scalar import Apply, Load, Reduced, Scalar, Select, apply, cast, compute_type, round_to
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
