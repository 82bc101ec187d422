"""Matrix products, in tiles and with few rows, against eager by the rule of `patterns/verify.py`.

Blocks are small, so that few elements have several of them, whole ones and cut ones. Sizes are the ones around them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import reduction_cases
import torch
import torch.nn.functional as F
from by_rule import emit, make_cuda_launcher
from graphs import normal, trace
from triton_outcomes import Case, Outcome, same, short

from fusion.kernels.backends.triton.product_schedule import FEW_ROWS, ProductSchedule, product_schedule
from fusion.kernels.backends.triton.schedule import schedule_for
from fusion.kernels.bundle import Bundle
from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import lower, lower_kernel
from fusion.kernels.products import as_products
from fusion.patterns.graph import SubGraph

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32
TILES = ProductSchedule(few=False, rows=16, columns=32, depth=16, group=2, num_warps=4, num_stages=2)
FEW = ProductSchedule(few=True, rows=8, columns=16, depth=16, group=2, num_warps=4, num_stages=1)
SCHEDULES = {"tiles": TILES, "few": FEW}
# Rows, columns and terms. A size that is known to be 0 makes no kernel, and one of 1 may make another kind of nest:
# `any_size` has them.
EDGES = ((1, 33, 64), (5, 16, 33), (16, 64, 16), (33, 5, 129), (64, 65, 5))


def matrix(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """Numbers of which a sum of `columns` products is about 1."""
    return (normal(rows, columns, seed=seed) * max(columns, 1) ** -0.5).to(dtype)


def judged(
    fn: Callable[..., Any], inputs: tuple[torch.Tensor, ...], schedule: ProductSchedule | None = None, times: int = 1
) -> str:
    """Why a kernel of `fn` is not accepted; "" where it is. Its inputs are left as they were.

    Args:
        fn: what it computes.
        inputs: on the device that it runs on.
        schedule: the rule's by default.
        times: how often it runs: on a GPU the second call goes by the remembered binary.
    """
    graph = trace(fn, *inputs)
    before = [x.clone() for x in inputs]
    run = make_cuda_launcher(lower(graph), schedule=schedule)
    made = [run(*inputs) for _ in range(times)][-1]
    if not all(torch.equal(a.nan_to_num(9e9), b.nan_to_num(9e9)) for a, b in zip(inputs, before, strict=True)):
        return "an input was written to"
    made = made if isinstance(made, tuple) else (made,)
    return reduction_cases.judge(graph, made, inputs)


def sizes(dtype: torch.dtype, schedule: ProductSchedule) -> Outcome:
    """A product of every size around the blocks, with a bias and GELU."""
    for rows, columns, terms in EDGES:
        inputs = (matrix(rows, terms, dtype), matrix(columns, terms, dtype, 1), normal(columns, seed=2).to(dtype))
        why = judged(lambda x, w, b: F.gelu(F.linear(x, w, b)), inputs, schedule)
        if why:
            return {"ok": False, "why": f"{rows} x {columns} x {terms}: {why}"}
    return {"ok": True}


@dataclass(frozen=True)
class Region:
    """A function of matrices, and those."""

    fn: Callable[..., Any]
    inputs: tuple[torch.Tensor, ...]


def gated(x: torch.Tensor, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
    """SwiGLU of two products."""
    return F.silu(F.linear(x, gate)) * F.linear(x, up)


def regions(dtype: torch.dtype) -> dict[str, Region]:
    """What stands around products, and how their operands lie in memory."""
    x, w, v, u = (matrix(n, 40, dtype, seed) for seed, n in enumerate((18, 35, 35, 35)))
    half = BF16 if dtype is FP32 else dtype
    batch, other = matrix(3 * 18, 40, dtype).view(3, 18, 40), matrix(3 * 40, 35, dtype, 1).view(3, 40, 35)
    wide = matrix(36, 90, dtype)
    residual = normal(18, 35, seed=5).to(dtype)
    image, filters = normal(2, 3, 6, 7).to(dtype), normal(5, 3, 3, 3, seed=1).to(dtype) * 0.2
    return {
        "swiglu": Region(gated, (x, w, v)),
        "three": Region(lambda x, q, k, v: (F.linear(x, q), F.linear(x, k) * 2.0, F.linear(x, v)), (x, w, v, u)),
        "residual": Region(lambda x, w, r: (r + F.linear(x, w)).relu(), (x, w, residual)),
        "transposed": Region(torch.mm, (matrix(40, 18, dtype).t(), matrix(40, 35, dtype, 1))),
        "result transposed": Region(lambda x, w: (F.linear(x, w) * 2.0).t(), (x, w)),
        "expanded": Region(F.linear, (matrix(1, 40, dtype).expand(6, 40), w)),
        "expanded terms": Region(F.linear, (matrix(18, 1, dtype).expand(18, 40), w)),
        "strided": Region(F.linear, (wide[::2, 1:81:2], w)),
        "batch": Region(torch.bmm, (batch, other)),
        "baddbmm": Region(
            lambda c, x, w: torch.baddbmm(c, x, w, beta=0.5, alpha=2.0), (normal(3, 18, 35).to(dtype), batch, other)
        ),
        "shared left": Region(torch.matmul, (x, other)),
        "one output": Region(F.linear, (x, w[:1])),
        "a cast before": Region(lambda x, w: F.linear(x.to(w.dtype), w), (x.float(), w.to(half))),
        "a scale before": Region(lambda x, w, s: F.linear(x * s, w), (x, w, normal(40, seed=6).to(dtype))),
        "weights in int8": Region(
            lambda x, w, s: F.linear(x, w.to(x.dtype) * s[:, None]),
            (x, (w * 100).to(torch.int8), normal(35, seed=7).to(dtype) * 0.01),
        ),
        "halves into float32": Region(lambda x, w: F.linear(x.float(), w.float()), (x.to(half), w.to(half))),
        "convolution": Region(lambda x, w: F.conv2d(x, w, padding=1).relu(), (image, filters)),
    }


REGIONS = tuple(regions(FP32))


def around(name: str, schedule: ProductSchedule) -> Outcome:
    """One of `REGIONS` in each dtype."""
    for dtype in (BF16, FP16, FP32):
        region = regions(dtype)[name]
        why = judged(region.fn, region.inputs, schedule)
        if why:
            return {"ok": False, "why": f"{short(dtype)}: {why}"}
    return {"ok": True}


def specials(schedule: ProductSchedule) -> Outcome:
    """NaN and infinities reach the outputs that they are terms of, and no other; nor does what lies around a matrix."""
    for dtype in (BF16, FP32):
        around = torch.full((20, 60), float("nan"), dtype=dtype)
        x, w = around[1:19, 3:36], torch.full((40, 40), float("inf"), dtype=dtype)[2:37, 1:34]
        x.copy_(matrix(18, 33, dtype)), w.copy_(matrix(35, 33, dtype, 1))
        x[3, 7], x[17, 32], w[34, 0] = float("nan"), float("inf"), float("-inf")
        made = make_cuda_launcher(lower(trace(F.linear, x, w)), schedule=schedule)(x, w)
        finite = torch.ones(18, 35, dtype=torch.bool)
        finite[3], finite[17], finite[:, 34] = False, False, False
        found = same(made.isfinite(), finite)
        if not found["ok"]:
            return found
        if why := judged(F.linear, (x, w), schedule):
            return {"ok": False, "why": why}
    return {"ok": True}


def sized_by_a_call() -> tuple[SubGraph, LoopNest]:
    """A product in bfloat16, all of whose sizes are known at a call only."""
    x, w = matrix(17, 23, BF16), matrix(31, 23, BF16, 1)
    graph = trace(lambda x, w: F.silu(F.linear(x, w)), x, w, dynamic={17: "s0", 31: "s1", 23: "s2"})
    return graph, lower(graph)


def any_size() -> Outcome:
    """One kernel by rule, of sizes that a call tells."""
    graph, nest = sized_by_a_call()
    schedule = product_schedule(nest)
    if schedule is None or schedule.few:
        return {"ok": False, "why": f"{schedule}"}
    run = make_cuda_launcher(nest)
    for rows, columns, terms in ((17, 31, 23), (1, 70, 129), (130, 3, 64), (0, 3, 5), (4, 5, 0), (1, 1, 1)):
        inputs = matrix(rows, terms, BF16), matrix(columns, terms, BF16, 1)
        if why := reduction_cases.judge(graph, (run(*inputs),), inputs):
            return {"ok": False, "why": f"{rows} x {columns} x {terms}: {why}"}
    return {"ok": True}


def long_sum() -> Outcome:
    """16,384 terms and few rows, by rule."""
    for rows, dtype in ((1, BF16), (3, FP32), (8, FP16)):
        inputs = matrix(rows, 16384, dtype), matrix(9, 16384, dtype, 1)
        schedule = product_schedule(lower(trace(F.linear, *inputs)))
        if schedule is None or schedule.few != (rows <= FEW_ROWS):
            return {"ok": False, "why": f"{rows} rows: {schedule}"}
        if why := judged(F.linear, inputs, schedule):
            return {"ok": False, "why": f"{rows} rows of {short(dtype)}: {why}"}
    return {"ok": True}


def bundled() -> Outcome:
    """Products of different widths, and a part that is none, in one launch."""
    for rows in (1, 20):
        inputs = matrix(rows, 40, BF16), matrix(35, 40, BF16, 1), matrix(9, 40, BF16, 2), normal(rows, 21).to(BF16)
        graph = trace(lambda x, q, k, y: (F.linear(x, q), F.linear(x, k), y.softmax(-1)), *inputs)
        graph = replace(graph, bundle=(1, 1, 1))
        nest = lower_kernel(graph)
        kinds = [type(part) for part in schedule_for(nest).parts]
        if not isinstance(nest, Bundle) or kinds.count(ProductSchedule) != 2:
            return {"ok": False, "why": f"{kinds}"}
        if why := reduction_cases.judge(graph, make_cuda_launcher(nest)(*inputs), inputs):
            return {"ok": False, "why": why}
    return {"ok": True}


def in_float64() -> Outcome:
    """A product in double precision, which some write out, keeps the schedule of any rows."""
    inputs = matrix(5, 9, torch.float64), matrix(7, 9, torch.float64, 1)
    graph = trace(lambda x, w: (x[:, None] * w).sum(-1), *inputs)
    nest = lower(graph)
    if as_products(nest) is None or isinstance(schedule_for(nest), ProductSchedule) or "tl.dot" in emit(nest):
        return {"ok": False, "why": "a product in tiles"}
    made = make_cuda_launcher(nest)(*inputs)
    return {"ok": torch.allclose(made, F.linear(*inputs), rtol=0, atol=1e-14), "why": f"{made}"}


def cases() -> Iterator[tuple[str, Case]]:
    """Every case by name."""
    for kind, schedule in SCHEDULES.items():
        for dtype in (BF16, FP16, FP32):
            yield f"product/sizes-{kind}-{short(dtype)}", lambda d=dtype, s=schedule: sizes(d, s)
        for name in REGIONS:
            yield f"product/{name}-{kind}", lambda n=name, s=schedule: around(n, s)
        yield f"product/specials-{kind}", lambda s=schedule: specials(s)
    for case in (any_size, long_sum, bundled, in_float64):
        yield f"product/{case.__name__}", case
