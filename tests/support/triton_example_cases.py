"""Example graphs and calls of the reduction rows, against eager by the rule of `patterns/verify.py`.

By default an example is run in one dtype, the next one in the next; FUSION_OPINFO=full runs the examples in all dtypes.
Of the reductions every third is run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import reduction_cases
import torch
from by_rule import make_cuda_launcher
from graphs import EXAMPLES, LENGTH, trace
from thorough import combined
from triton_outcomes import Case, Outcome, short

from fusion.kernels.backends.triton.schedule import Kind, launch_options
from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import lower
from fusion.patterns import reference, verify
from fusion.patterns.graph import SubGraph

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def lowered(name: str, dtype: torch.dtype) -> tuple[LoopNest, SubGraph]:
    """An example as a kernel with a free length."""
    made = EXAMPLES[name]
    free = {LENGTH: "s0", LENGTH + 4: "s0 + 4"}  # cat_sizes makes the second
    graph = trace(made.fn, *made.inputs(dtype, LENGTH), dynamic=free)
    return lower(graph), graph


def example(name: str, dtype: torch.dtype) -> Outcome:
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


def reduction(case: reduction_cases.Case) -> Outcome:
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


def cases() -> Iterator[tuple[str, Case]]:
    """Every case by name."""
    for name, dtype in combined(EXAMPLES, DTYPES):
        yield f"example/{name}-{short(dtype)}", lambda n=name, d=dtype: example(n, d)
    names = reduction_cases.FAIR[::3]
    for k, (name, group) in enumerate((name, reduction_cases.CASES[name]) for name in names):
        chosen = group[5 * k % len(group)]
        yield f"reduction/{name}", lambda c=chosen: reduction(c)
