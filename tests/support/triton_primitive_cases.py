"""Primitives and casts as kernels of their own: values over the range of each, and special ones."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import triton_nests as nests
from by_rule import emit, make_cuda_launcher
from triton_outcomes import Case, Outcome, same, short

from fusion.patterns import verify
from fusion.patterns.errors import LoweringError

_INF = float("inf")
SPECIAL = torch.tensor(
    [
        0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 88.8, -104.0, 1e-20, 1e-40, -1e-40, 3e38, -3e38, 4194304.5,
        _INF, -_INF, float("nan"),
    ]
)  # fmt: skip

# Primitive -> (range its error was measured over, bound in float32 ulp). A correctly rounded function has 0.5; the
# rest is what the formulas of `triton_math` accumulate: at most one rounding each in the argument reduction, the
# polynomial and the last operation. rsqrt rounds twice, the first error halved by 1/sqrt and doubled by the binade.
UNARY = {
    "neg": (-9, 9, 0), "abs": (-9, 9, 0), "floor": (-9, 9, 0), "ceil": (-9, 9, 0), "trunc": (-9, 9, 0),
    "round": (-9, 9, 0), "sqrt": (0, 1e3, 0.5), "rsqrt": (1e-6, 1e3, 1.5), "exp": (-87, 88, 1), "expm1": (-20, 88, 1.5),
    "log": (0, 100, 1), "log1p": (-1, 10, 1), "sin": (-1e5, 1e5, 1.5), "cos": (-1e5, 1e5, 1.5), "tanh": (-10, 10, 1.5),
    "erf": (-5, 5, 1),
}  # fmt: skip
REFERENCE = {"neg": torch.neg, "max": torch.maximum, "min": torch.minimum}
BINARY = {"add": 0.5, "sub": 0.5, "mul": 0.5, "div": 0.5, "pow": 0.5, "fmod": 0, "max": 0, "min": 0}


def unary(fn: str) -> Outcome:
    """A primitive over its range, near 0, and at special values."""
    low, high, bound = UNARY[fn]
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20000, generator=generator) * (high - low) + low
    near = torch.rand(4000, generator=generator) * 2e-3 - (1e-3 if low < 0 else 0)
    run = make_cuda_launcher(nests.unary(fn))
    exact = getattr(torch, fn)
    x = torch.cat((x, near))
    return _judge(run(x), exact(x.double()), bound, run(SPECIAL), exact(SPECIAL.double()))


def binary(fn: str) -> Outcome:
    """A primitive of two operands, and every pair of special values."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 20000, generator=generator) * torch.tensor([[10.0], [3.0]])
    x = x.abs() if fn == "pow" else x
    run = make_cuda_launcher(nests.binary(fn))
    exact = REFERENCE.get(fn) or getattr(torch, fn)
    left, right = SPECIAL.repeat(len(SPECIAL)), SPECIAL.repeat_interleave(len(SPECIAL))
    return _judge(
        run(x, y),
        exact(x.double(), y.double()),
        BINARY[fn],
        run(left, right),
        exact(left.double(), right.double()),
    )


def comparison(fn: str) -> Outcome:
    """Comparisons of every pair of special values."""
    left, right = SPECIAL.repeat(len(SPECIAL)), SPECIAL.repeat_interleave(len(SPECIAL))
    if fn == "isnan":
        return same(make_cuda_launcher(nests.unary(fn, result=torch.bool))(left), left.isnan())
    return same(make_cuda_launcher(nests.binary(fn, result=torch.bool))(left, right), getattr(torch, fn)(left, right))


def logic(fn: str) -> Outcome:
    """Truth tables, and the bits of integers."""
    left, right = torch.tensor([False, True, False, True]), torch.tensor([False, False, True, True])
    if fn == "not":
        return same(make_cuda_launcher(nests.unary(fn, torch.bool))(left), ~left)
    if fn == "where":
        x, y = torch.randn(2, 4)
        return same(make_cuda_launcher(nests.selection())(left, x, y), torch.where(left, x, y))
    truth = same(
        make_cuda_launcher(nests.binary(fn, torch.bool))(left, right), getattr(torch, f"logical_{fn}")(left, right)
    )
    a, b = torch.arange(-8, 8), torch.arange(16) * 3
    bits = same(make_cuda_launcher(nests.binary(fn, torch.int64))(a, b), getattr(torch, f"bitwise_{fn}")(a, b))
    return truth if not truth["ok"] else bits


def fused() -> Outcome:
    """A product and a sum, of every triple of some special values: the interpreter rounds twice, a GPU once."""
    x, y, z = (part.flatten() for part in torch.meshgrid(*[SPECIAL[::2]] * 3, indexing="ij"))
    return same(make_cuda_launcher(nests.fused())(x, y, z), x * y + z)


def shift(fn: str) -> Outcome:
    """Shifts by numbers inside the bits of a type and outside."""
    exact = torch.bitwise_left_shift if fn == "shl" else torch.bitwise_right_shift
    for dtype in (torch.int32, torch.int64):
        x = torch.tensor([-8, 5, torch.iinfo(dtype).max, torch.iinfo(dtype).min], dtype=dtype).repeat(8)
        by = torch.tensor([0, 1, 7, 31, 32, 63, 64, -1], dtype=dtype).repeat_interleave(4)
        found = same(make_cuda_launcher(nests.binary(fn, dtype))(x, by), exact(x, by))
        if not found["ok"]:
            return found
    return {"ok": True}


def wrapped(target: torch.dtype) -> Outcome:
    """Sums that leave a narrow integer's range."""
    bounds = torch.iinfo(target)
    x = torch.tensor([bounds.min, bounds.max, 3, bounds.max // 2 + 1], dtype=target)
    return same(make_cuda_launcher(nests.binary("add", target))(x, x), x + x)


def refused() -> Outcome:
    """A primitive that Triton lacks is refused by name."""
    try:
        emit(nests.binary("atan2"))
    except LoweringError as error:
        return {"ok": error.code == "primitive" and "atan2" in str(error), "why": str(error)}
    return {"ok": False, "why": "not refused"}


def conversion(source: torch.dtype, target: torch.dtype) -> Outcome:
    """Casts of values the target can hold, ties in the last place among them."""
    x = torch.tensor([0.0, 1.0, -1.0, 2.75, -2.75, 100.0, 65519.0, 3.1415927, 1.00390625, 1.01171875, 1e-7])
    if source.is_floating_point and target.is_floating_point:
        x = torch.cat((x, SPECIAL, torch.randn(1000)))
    x = x.abs().clamp(max=100).to(source) if source is torch.uint8 else x.to(source)
    return same(make_cuda_launcher(nests.conversion(source, target))(x), x.to(target))


def _judge(
    found: torch.Tensor, exact: torch.Tensor, bound: float, special: torch.Tensor, special_exact: torch.Tensor
) -> Outcome:
    """Values within `bound` ulp; of the special ones, NaN and inf in the right places and the rest finite."""
    error = float(((found.double() - exact).abs() / verify.ulp(exact, torch.float32)).max())
    want = special_exact.float()
    finite = torch.isfinite(want)
    wrong = (torch.isfinite(special) != finite) | (~finite & ~torch.isclose(special, want, equal_nan=True))
    ok = error <= bound * (1 + 1e-6) and not bool(wrong.any())
    return {
        "ok": ok,
        "ulp": error,
        "why": f"{error:.3f} ulp, {bound} allowed; special {special[wrong]}, not {want[wrong]}",
    }


def cases() -> Iterator[tuple[str, Case]]:
    """Every primitive, and every cast, by name."""
    for fn in UNARY:
        yield f"unary/{fn}", lambda fn=fn: unary(fn)
    for fn in BINARY:
        yield f"binary/{fn}", lambda fn=fn: binary(fn)
    for fn in ("lt", "le", "gt", "ge", "eq", "ne", "isnan"):
        yield f"compare/{fn}", lambda fn=fn: comparison(fn)
    for fn in ("and", "or", "xor", "not", "where"):
        yield f"logic/{fn}", lambda fn=fn: logic(fn)
    for fn in ("shl", "shr"):
        yield f"shift/{fn}", lambda fn=fn: shift(fn)
    for target in (torch.int8, torch.int16, torch.uint8):
        yield f"wrap/wrap_{short(target)}", lambda t=target: wrapped(t)
    yield "ternary/fma", fused
    yield "refused/atan2", refused
    for source in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool):
        for target in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool):
            yield f"cast/{short(source)}-{short(target)}", lambda s=source, t=target: conversion(s, t)
