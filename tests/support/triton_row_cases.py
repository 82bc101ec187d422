"""Rows of kernels: whole in registers, in a loop over chunks, and few long ones cut into pieces."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import long_rows
import reduction_cases
import torch
import triton_nests as nests
from by_rule import emit, make_cuda_launcher
from graphs import LENGTH, normal, trace
from torch.nn.functional import layer_norm
from triton_outcomes import Case, Outcome, same

from fusion.kernels.backends.triton import launch as cuda_launch
from fusion.kernels.backends.triton.schedule import Kind, launch_options
from fusion.kernels.lower import lower

PROCESSORS = 4  # of a device small enough to interpret
LONG = 8  # chunks of a row that is cut there


def nan_max() -> Outcome:
    """NaN anywhere makes the row's maximum NaN."""
    x = torch.randn(8, 64)
    x[3, 0], x[4, 63], x[5, 30] = float("nan"), float("nan"), float("inf")
    found, _ = make_cuda_launcher(nests.row_sum(64, "max"))(x)
    low, _ = make_cuda_launcher(nests.row_sum(64, "min"))(x)
    first = same(found, x.amax(-1))
    return first if not first["ok"] else same(low, x.amin(-1))


def looped_sum() -> Outcome:
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


def looped_max() -> Outcome:
    """The maximum in chunks, of rows that are all -inf but one."""
    x = torch.full((4, 1500), float("-inf"))
    x[1, 1200], x[2, 3] = 5.0, float("nan")
    found, _ = make_cuda_launcher(nests.row_sum(nests.symbols.symbol("s1"), "max"))(x)
    return same(found, x.amax(-1))


def long_looped(fn: Callable[[torch.Tensor], object], loops: int) -> Outcome:
    """A kernel of rows of any length in `loops` loops, on rows with special values among them, by the fp64 rule."""
    graph = trace(fn, torch.randn(6, LENGTH), dynamic={LENGTH: "s0"})
    nest = lower(graph)
    schedule = launch_options(nest)
    count = emit(nest, schedule).count("for start in")
    if schedule.kind is not Kind.LOOPED or count != loops:
        return {"ok": False, "why": f"{count} loops of a {schedule.kind} kernel"}
    run = make_cuda_launcher(nest, schedule=schedule)
    for columns in (1, 1024, 1500):
        x = normal(6, columns) * 4 + 3
        x[1], x[2, columns // 2] = float("-inf"), float("-inf")
        x[3, -1], x[4, 0] = float("inf"), float("nan")
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


def few_long_rows(name: str) -> Outcome:
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


def whole_rows() -> Outcome:
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


def empty_pieces() -> Outcome:
    """A long row and a short one in one kernel: most pieces of the short one have no columns."""
    x, y = normal(2, 146), normal(2, 20, seed=1)
    graph = trace(lambda x, y: (x.amax(-1) + y.sum(-1) - y.amin(-1)).bfloat16(), x, y)
    nest = lower(graph)
    schedule = dataclasses.replace(launch_options(nest), kind=Kind.LOOPED, rows=1, columns=16)
    with launched() as grids:
        made = make_cuda_launcher(nest, schedule=schedule, processors=4 * PROCESSORS)(x, y)
    why = reduction_cases.judge(graph, (made,), (x, y))
    return {"ok": len(grids) == 2 and not why, "why": why or f"launches of {grids} programs"}


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


def cases() -> Iterator[tuple[str, Case]]:
    """Every case by name."""
    features = {f.__name__: f for f in (nan_max, looped_sum, looped_max, whole_rows, empty_pieces)} | LOOPED
    for name, case in features.items():
        yield f"feature/{name}", case
    for name in long_rows.LONG_ROWS:
        yield f"pieces/{name}", lambda n=name: few_long_rows(n)
