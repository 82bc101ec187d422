"""Runs many Triton kernels under Triton's interpreter and prints what came out, as one JSON object.

A process of its own with TRITON_INTERPRET=1, which Triton reads when it is imported. Each entry says whether the values
meet the rule of the case, and why not.

By default an example is run in one dtype, the next one in the next, and of the reductions every seventh;
FUSION_OPINFO=full runs the examples in all dtypes, and every third of the reductions.
"""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import bundles
import interpreting
import long_rows
import reduction_cases
import torch
import triton_nests as nests
from by_rule import emit, make_cuda_launcher
from graphs import EXAMPLES, LENGTH, normal, trace
from thorough import FULL, combined
from torch.nn.functional import layer_norm

from fusion.kernels.backends.triton import launch as cuda_launch
from fusion.kernels.backends.triton import schedule as schedules
from fusion.kernels.backends.triton.schedule import BundleSchedule, Kind, launch_options, schedule_for
from fusion.kernels.backends.triton.script import standalone
from fusion.kernels.bundle import Nest
from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import lower, lower_kernel
from fusion.patterns import reference, verify
from fusion.patterns.errors import LoweringError, StructureMismatch
from fusion.patterns.graph import SubGraph

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
PROCESSORS = 4  # of a device small enough to interpret
LONG = 8  # chunks of a row that is cut there
Case = Callable[[], dict[str, object]]

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


def main() -> None:
    """Runs the cases whose names contain an argument, or all, and prints their results."""
    interpreting.prepare()
    schedules.LONG = LONG
    found: dict[str, object] = {}
    for name, case in cases():
        if len(sys.argv) > 1 and not any(part in name for part in sys.argv[1:]):
            continue
        began = time.perf_counter()
        try:
            found[name] = {**case(), "seconds": round(time.perf_counter() - began, 3)}
        except Exception:
            found[name] = {"ok": False, "why": traceback.format_exc()}
    print(json.dumps(found, indent=1))


def cases() -> Iterator[tuple[str, Case]]:
    """Every case by name."""
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
        yield f"wrap/wrap_{_short(target)}", lambda t=target: wrapped(t)
    yield "ternary/fma", fused
    yield "refused/atan2", refused
    for source in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.uint8, torch.bool):
        for target in (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.int32, torch.bool):
            yield f"cast/{_short(source)}-{_short(target)}", lambda s=source, t=target: conversion(s, t)
    for name in (
        "bundle",
        "bundle_script",
        "empty_pieces",
        "whole_rows",
        "looped_sum",
        "looped_max",
        "nan_max",
        "rotate_exact",
        "script",
        "mismatch",
        "wide",
        *LOOPED,
    ):
        yield f"feature/{name}", LOOPED.get(name) or globals()[name]
    for name in long_rows.LONG_ROWS:
        yield f"pieces/{name}", lambda n=name: few_long_rows(n)
    for name, dtype in combined(EXAMPLES, DTYPES):
        yield f"example/{name}-{_short(dtype)}", lambda n=name, d=dtype: example(n, d)
    names = reduction_cases.FAIR[:: 3 if FULL else 7]
    for k, (name, group) in enumerate((name, reduction_cases.CASES[name]) for name in names):
        chosen = group[5 * k % len(group)]
        yield f"reduction/{name}", lambda c=chosen: reduction(c)


def bundle() -> dict[str, object]:
    """Parts over different indices and dtypes at lengths that give each its own number of programs, or none."""
    graph = bundles.graph_of()
    nest = lower_kernel(graph)
    small = BundleSchedule(tuple(dataclasses.replace(part, rows=1) for part in schedule_for(nest).parts))
    for tried in (schedule_for(nest), small):
        run = make_cuda_launcher(nest, schedule=tried)
        for length in (LENGTH, 2, 40, 0):
            given = bundles.inputs(length)
            why = reduction_cases.judge(graph, run(*given), given)
            if why:
                return {"ok": False, "why": f"length {length}, {tried}: {why}"}
    return {"ok": True}


def bundle_script() -> dict[str, object]:
    """The standalone program of a bundle launches it over all of its parts' programs."""
    return standing_alone(lower_kernel(bundles.graph_of()))


def reduction(case: reduction_cases.Case) -> dict[str, object]:
    """One call of a reduction row: whole rows on chip, and in chunks."""
    graph, nest = reduction_cases.lowered(*case)
    schedule = launch_options(nest)
    chunks = dataclasses.replace(schedule, kind=Kind.LOOPED, rows=8, columns=4)
    for tried in dict.fromkeys((schedule, chunks)):
        made = make_cuda_launcher(nest, schedule=tried)(*case[1])
        why = reduction_cases.judge(graph, made if isinstance(made, tuple) else (made,), case[1])
        if why:
            return {"ok": False, "why": f"{tried}: {why}"}
    return {"ok": True}


def long_looped(fn: Callable[[torch.Tensor], object], loops: int) -> dict[str, object]:
    """A kernel of rows of any length in `loops` loops, on rows with special values among them, by the fp64 rule."""
    graph = trace(fn, torch.randn(6, LENGTH), dynamic={LENGTH: "s0"})
    nest = lower(graph)
    schedule = launch_options(nest)
    count = emit(nest, schedule).count("for start in")
    if schedule.kind is not Kind.LOOPED or count != loops:
        return {"ok": False, "why": f"{count} loops of a {schedule.kind} kernel"}
    run = make_cuda_launcher(nest, schedule=schedule)
    for columns in (1, 100, 1024, 2500):
        x = normal(6, columns) * 4 + 3
        x[1], x[2, columns // 2], x[3, -1], x[4, 0] = -_INF, -_INF, _INF, float("nan")
        made = run(x)
        why = reduction_cases.judge(graph, made if isinstance(made, tuple) else (made,), (x,))
        if why:
            return {"ok": False, "why": f"{columns} columns: {why}"}
    return {"ok": True}


# Reductions in pairs take one loop; the last loop stores. Results in bfloat16: the sums are float32 here and double in
# eager's CPU kernels, and whether their last bits agree is not the matter.
LOOPED = {
    "long_softmax": lambda: long_looped(lambda x: (x.softmax(-1) * 2.0).bfloat16(), 2),
    "long_log_softmax": lambda: long_looped(lambda x: x.log_softmax(-1).bfloat16(), 2),
    "long_layer_norm": lambda: long_looped(lambda x: layer_norm(x, (x.shape[-1],)).bfloat16(), 2),
    "long_var": lambda: long_looped(lambda x: x.var(-1, correction=0).bfloat16(), 1),
    "long_argmax": lambda: long_looped(lambda x: x.argmax(-1), 2),
    "long_cumsum": lambda: long_looped(lambda x: x.round().cumsum(-1) * 0.5, 1),
}


def few_long_rows(name: str) -> dict[str, object]:
    """A kernel on few rows, each cut into pieces, by the fp64 rule."""
    case, (graph, nest) = long_rows.LONG_ROWS[name], long_rows.lowered(name)
    schedule = dataclasses.replace(launch_options(nest), columns=16)
    run = make_cuda_launcher(nest, schedule=schedule, processors=PROCESSORS)
    for rows, columns in ((1, 129), (2, 146)) if case.along else ((70, 129),):
        x = long_rows.values(name, rows, columns)
        with launched() as grids:
            made = run(x)
        grid = f"{rows} rows of {columns}: launches of {grids} programs"
        if len(grids) != case.levels + 1 or not PROCESSORS // 2 <= grids[0] <= PROCESSORS:
            return {"ok": False, "why": grid}
        why = reduction_cases.judge(graph, made if isinstance(made, tuple) else (made,), (x,))
        if why:
            return {"ok": False, "why": f"{grid}: {why}"}
    return {"ok": True}


def whole_rows() -> dict[str, object]:
    """Rows that are many, or short, or none, take one launch of the kernel whose few long rows take several."""
    graph, nest = long_rows.lowered("several outputs")
    schedule = dataclasses.replace(launch_options(nest), columns=16)
    run = make_cuda_launcher(nest, schedule=schedule, processors=PROCESSORS)
    busy = PROCESSORS // 2 + 1
    for rows, columns, grid in ((1, 112, [1]), (busy, 129, [busy]), (0, 129, []), (2, 129, [4, 2 * 9])):
        x = long_rows.values("several outputs", rows, columns)
        with launched() as grids:
            made = run(x)
        why = reduction_cases.judge(graph, made, (x,)) if rows else ""
        if grids != grid or why:
            return {"ok": False, "why": f"{rows} rows of {columns}: launches of {grids} programs; {why}"}
    run = make_cuda_launcher(nest, schedule=schedule)  # the interpreter is busy with one program
    with launched() as grids:
        run(long_rows.values("several outputs", 2, 129))
    return {"ok": grids == [2], "why": f"launches of {grids} programs"}


@contextmanager
def launched() -> Iterator[list[int]]:
    """The number of programs of each launch inside."""
    grids: list[int] = []
    original = cuda_launch._Launcher._run_jit

    def recorded(self: cuda_launch._Launcher, launch: cuda_launch._Launch, tensors: tuple[torch.Tensor, ...]) -> object:
        grids.append(launch.grid)
        return original(self, launch, tensors)  # on a GPU what was compiled, which the launcher keeps

    cuda_launch._Launcher._run_jit = recorded
    try:
        yield grids
    finally:
        cuda_launch._Launcher._run_jit = original


def empty_pieces() -> dict[str, object]:
    """A long row and a short one in one kernel: most pieces of the short one have no columns."""
    x, y = normal(2, 146), normal(2, 20, seed=1)
    graph = trace(lambda x, y: (x.amax(-1) + y.sum(-1) - y.amin(-1)).bfloat16(), x, y)
    nest = lower(graph)
    schedule = dataclasses.replace(launch_options(nest), kind=Kind.LOOPED, rows=1, columns=16)
    with launched() as grids:
        made = make_cuda_launcher(nest, schedule=schedule, processors=4 * PROCESSORS)(x, y)
    why = reduction_cases.judge(graph, (made,), (x, y))
    return {"ok": len(grids) == 2 and not why, "why": why or f"launches of {grids} programs"}


def unary(fn: str) -> dict[str, object]:
    """A primitive over its range, near 0, and at special values."""
    low, high, bound = UNARY[fn]
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20000, generator=generator) * (high - low) + low
    near = torch.rand(4000, generator=generator) * 2e-3 - (1e-3 if low < 0 else 0)
    run = make_cuda_launcher(nests.unary(fn))
    exact = getattr(torch, fn)
    x = torch.cat((x, near))
    return _judge(run(x), exact(x.double()), bound, run(SPECIAL), exact(SPECIAL.double()))


def binary(fn: str) -> dict[str, object]:
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


def comparison(fn: str) -> dict[str, object]:
    """Comparisons of every pair of special values."""
    left, right = SPECIAL.repeat(len(SPECIAL)), SPECIAL.repeat_interleave(len(SPECIAL))
    if fn == "isnan":
        return _same(make_cuda_launcher(nests.unary(fn, result=torch.bool))(left), left.isnan())
    return _same(make_cuda_launcher(nests.binary(fn, result=torch.bool))(left, right), getattr(torch, fn)(left, right))


def logic(fn: str) -> dict[str, object]:
    """Truth tables, and the bits of integers."""
    left, right = torch.tensor([False, True, False, True]), torch.tensor([False, False, True, True])
    if fn == "not":
        return _same(make_cuda_launcher(nests.unary(fn, torch.bool))(left), ~left)
    if fn == "where":
        x, y = torch.randn(2, 4)
        return _same(make_cuda_launcher(nests.selection())(left, x, y), torch.where(left, x, y))
    truth = _same(
        make_cuda_launcher(nests.binary(fn, torch.bool))(left, right), getattr(torch, f"logical_{fn}")(left, right)
    )
    a, b = torch.arange(-8, 8), torch.arange(16) * 3
    bits = _same(make_cuda_launcher(nests.binary(fn, torch.int64))(a, b), getattr(torch, f"bitwise_{fn}")(a, b))
    return truth if not truth["ok"] else bits


def fused() -> dict[str, object]:
    """A product and a sum, of every triple of some special values: the interpreter rounds twice, a GPU once."""
    x, y, z = (part.flatten() for part in torch.meshgrid(*[SPECIAL[::2]] * 3, indexing="ij"))
    return _same(make_cuda_launcher(nests.fused())(x, y, z), x * y + z)


def shift(fn: str) -> dict[str, object]:
    """Shifts by numbers inside the bits of a type and outside."""
    exact = torch.bitwise_left_shift if fn == "shl" else torch.bitwise_right_shift
    for dtype in (torch.int32, torch.int64):
        x = torch.tensor([-8, 5, torch.iinfo(dtype).max, torch.iinfo(dtype).min], dtype=dtype).repeat(8)
        by = torch.tensor([0, 1, 7, 31, 32, 63, 64, -1], dtype=dtype).repeat_interleave(4)
        found = _same(make_cuda_launcher(nests.binary(fn, dtype))(x, by), exact(x, by))
        if not found["ok"]:
            return found
    return {"ok": True}


def wrapped(target: torch.dtype) -> dict[str, object]:
    """Sums that leave a narrow integer's range."""
    bounds = torch.iinfo(target)
    x = torch.tensor([bounds.min, bounds.max, 3, bounds.max // 2 + 1], dtype=target)
    return _same(make_cuda_launcher(nests.binary("add", target))(x, x), x + x)


def refused() -> dict[str, object]:
    """A primitive that Triton lacks is refused by name."""
    try:
        emit(nests.binary("atan2"))
    except LoweringError as error:
        return {"ok": error.code == "primitive" and "atan2" in str(error), "why": str(error)}
    return {"ok": False, "why": "not refused"}


def conversion(source: torch.dtype, target: torch.dtype) -> dict[str, object]:
    """Casts of values the target can hold, ties in the last place among them."""
    x = torch.tensor([0.0, 1.0, -1.0, 2.75, -2.75, 100.0, 65519.0, 3.1415927, 1.00390625, 1.01171875, 1e-7])
    if source.is_floating_point and target.is_floating_point:
        x = torch.cat((x, SPECIAL, torch.randn(1000)))
    x = x.abs().clamp(max=100).to(source) if source is torch.uint8 else x.to(source)
    return _same(make_cuda_launcher(nests.conversion(source, target))(x), x.to(target))


def looped_sum() -> dict[str, object]:
    """Rows of a length known at the call only, shorter and longer than a chunk."""
    run = make_cuda_launcher(nests.row_sum(nests.symbols.symbol("s1")))
    for columns in (1, 100, 1024, 2500):
        x = torch.randn(3, columns)
        total, rest = run(x)
        exact = x.double().sum(-1)
        # Any order of summing n numbers errs by at most (n - 1) half ulps of the sum of their sizes.
        bound = columns * 2.0**-24 * x.double().abs().sum(-1)
        if not bool(((total - exact).abs() <= bound).all()):
            return {"ok": False, "why": f"{columns} columns: off by {(total - exact).abs().max():.3g}"}
        if not torch.equal(rest, x - total[:, None]):
            return {"ok": False, "why": f"{columns} columns: the second pass differs"}
    return {"ok": True}


def looped_max() -> dict[str, object]:
    """The maximum in chunks, of rows that are all -inf but one."""
    x = torch.full((4, 1500), float("-inf"))
    x[1, 1200], x[2, 3] = 5.0, float("nan")
    found, _ = make_cuda_launcher(nests.row_sum(nests.symbols.symbol("s1"), "max"))(x)
    return _same(found, x.amax(-1))


def nan_max() -> dict[str, object]:
    """NaN anywhere makes the row's maximum NaN."""
    x = torch.randn(8, 64)
    x[3, 0], x[4, 63], x[5, 30] = float("nan"), float("nan"), float("inf")
    found, _ = make_cuda_launcher(nests.row_sum(64, "max"))(x)
    low, _ = make_cuda_launcher(nests.row_sum(64, "min"))(x)
    first = _same(found, x.amax(-1))
    return first if not first["ok"] else _same(low, x.amin(-1))


def rotate_exact() -> dict[str, object]:
    """Each case of a Select takes its own elements, up to the ends: the NaN around the tensor stays out."""
    around = torch.full((64 + 3 * 64 + 64,), float("nan"), dtype=torch.bfloat16)
    x = around[64:-64].view(3, 64).copy_(torch.randn(3, 64))
    return _same(make_cuda_launcher(nests.rotate(64))(x), torch.cat((-x[:, 32:], x[:, :32]), -1))


def script() -> dict[str, object]:
    """The standalone program runs and prints one line per output."""
    return standing_alone(nests.row_sum(64))


def standing_alone(nest: Nest) -> dict[str, object]:
    """Whether the standalone program of a kernel prints its outputs."""
    schedule = schedule_for(nest)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.py"
        path.write_text(standalone(nest, schedule, emit(nest, schedule)))
        done = subprocess.run([sys.executable, "-I", str(path)], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    ok = done.returncode == 0 and [line.split()[0] for line in lines] == [o.name for o in nest.outputs]
    return {"ok": ok, "why": done.stderr[-2000:] or done.stdout}


def mismatch() -> dict[str, object]:
    """Inputs of another structure are refused by name, before anything runs."""
    run = make_cuda_launcher(nests.row_sum(64))
    x = torch.randn(4, 64)
    wrong = {
        "dtype": (x.double(),), "number of dimensions": (x[0],), "shape": (x[:, :32].contiguous(),),
        "strides": (x.t().contiguous().t(),), "arguments": (x, x), "strided": ([1.0],),
    }  # fmt: skip
    for what, arguments in wrong.items():
        try:
            run(*arguments)
        except StructureMismatch as error:
            if what in str(error) and (what == "arguments" or "a0" in str(error)):
                continue
            return {"ok": False, "why": f"{what}: {error}"}
        return {"ok": False, "why": f"{what}: not refused"}
    return {"ok": True}


def wide() -> dict[str, object]:
    """Offsets beyond 2**31: a stride no 32 bits hold, over memory that is never touched in between."""
    nest = nests.far_rows()
    base = torch.empty(2**31 + 16, dtype=torch.uint8)  # pages that are not written take no memory
    x = base.as_strided((2, 8), (2**31, 1))
    x.copy_(torch.arange(16, dtype=torch.uint8).view(2, 8))
    return _same(make_cuda_launcher(nest)(x), x.contiguous())


def lowered(name: str, dtype: torch.dtype) -> tuple[LoopNest, SubGraph]:
    """An example as a kernel with a free length."""
    made = EXAMPLES[name]
    free = {LENGTH: "s0", LENGTH + 4: "s0 + 4"}  # cat_sizes makes the second
    graph = trace(made.fn, *made.inputs(dtype, LENGTH), dynamic=free)
    return lower(graph), graph


def example(name: str, dtype: torch.dtype) -> dict[str, object]:
    """An example graph: one kernel at three lengths, the last one 0, by the fp64 rule; inputs are left as they were."""
    made = EXAMPLES[name]
    nest, graph = lowered(name, dtype)
    schedule = launch_options(nest)
    if schedule.kind is Kind.LOOPED:  # chunks shorter than the rows, so that there are several; by default a row each
        schedule = dataclasses.replace(schedule, rows=8, columns=16)
    run = make_cuda_launcher(nest, schedule=schedule)
    worst = 0.0
    for length in (LENGTH, 19, 0):
        if length == 0 and name == "qk_norm_rope":
            continue  # eager refuses it: view(2, 0, -1, 16) is ambiguous
        inputs = made.inputs(dtype, length)
        before = [x.clone() for x in inputs]
        fused = run(*inputs)
        fused = fused if isinstance(fused, tuple) else (fused,)
        named = dict(zip(graph.inputs, inputs, strict=True))
        eager, exact = reference.run(graph, named), reference.run_fp64(graph, named)
        if len(fused) != len(eager):
            return {"ok": False, "why": f"{len(fused)} outputs, not {len(eager)}"}
        verdict = verify.accept_all({o: (f, eager[o], exact[o]) for o, f in zip(graph.outputs, fused, strict=True)})
        if not verdict.ok:
            return {"ok": False, "why": f"length {length}: {verdict.reason}"}
        if not all(torch.equal(a, b) for a, b in zip(inputs, before, strict=True)):
            return {"ok": False, "why": f"length {length}: an input was written to"}
        worst = max(worst, verdict.error_fused)
    return {"ok": True, "error": worst, "kind": schedule.kind.value}


def _judge(
    found: torch.Tensor, exact: torch.Tensor, bound: float, special: torch.Tensor, special_exact: torch.Tensor
) -> dict[str, object]:
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


def _same(found: torch.Tensor, want: torch.Tensor) -> dict[str, object]:
    equal = found.dtype == want.dtype and found.shape == want.shape
    floating = want.is_floating_point()
    equal = equal and bool(((found == want) | ((found != found) & (want != want) if floating else False)).all())
    return {"ok": equal, "why": "" if equal else f"{found}, not {want}"}


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if __name__ == "__main__":
    main()
