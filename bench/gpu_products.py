"""Matrix products on CUDA, each kernel of `triton_products` against the calls of torch that it takes the place of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch.nn import functional

from fusion.kernels.backends.triton.launch import make_cuda_launcher
from fusion.kernels.backends.triton.schedule import schedule_for
from fusion.kernels.lower import lower_kernel
from fusion.patterns import reference, verify
from fusion.patterns.symbols import Dim

from .measure import calls, interleave
from .options import Options
from .rows import Row, Target, make_row
from .triton_products import NAMES, Case, graph_of

Tensors = tuple[torch.Tensor, ...]
EAGER: Mapping[str, Callable[..., torch.Tensor | Tensors]] = {
    "up": functional.linear,
    "down + residual": lambda x, residual, w: residual + functional.linear(x, w),
    "swiglu": lambda x, gate, up: functional.silu(functional.linear(x, gate)) * functional.linear(x, up),
    "q/k/v": lambda x, q, k, v: tuple(functional.linear(x, w) for w in (q, k, v)),
}
# Against cuBLAS: a kernel of tiles is to lose little where it fuses nothing, and one of few rows is to read as fast.
TARGETS = {1: 1.0, 8: 1.0, 256: 0.9, 4096: 0.8}


def run(options: Options) -> list[Row]:
    """A row for each kernel, number of rows and dtype."""
    dtypes = (torch.bfloat16,) if options.quick else (torch.bfloat16, torch.float16, torch.float32)
    cases = [Case(name, rows, dtype) for dtype in dtypes for rows in TARGETS for name in NAMES]
    return [_measure(case, TARGETS[int(case.rows)], options) for case in cases]


@torch.inference_mode()
def _measure(case: Case, bound: float, options: Options) -> Row:
    graph = graph_of(case)
    nest = lower_kernel(graph)
    schedule = schedule_for(nest)
    inputs = _inputs(
        tuple(tuple(map(int, graph.spec[name].shape)) for name in graph.inputs), case.dtype, options.device
    )
    fused, eager = make_cuda_launcher(nest, schedule), functools.partial(EAGER[case.name], *inputs)
    named = dict(zip(graph.inputs, inputs, strict=True))
    made = fused(*inputs)
    results = dict(zip(graph.outputs, made if isinstance(made, tuple) else (made,), strict=True))
    plain, exact = reference.run(graph, named), reference.run_fp64(graph, named)
    verdict = verify.accept_all({name: (result, plain[name], exact[name]) for name, result in results.items()})
    sides = {"eager": eager, "kernel": lambda: fused(*inputs)}
    rounds = interleave({name: calls(side, cuda=True) for name, side in sides.items()}, 2 if options.quick else 20)
    seconds = rounds.spreads()["kernel"].p50 * 1e-6
    moved = sum(x.nbytes for x in (*inputs, *results.values()))
    facts = {
        "schedule": [str(part) for part in schedule.parts], "gigabytes_per_second": moved / seconds / 1e9,
        "error_fused": verdict.error_fused, "error_eager": verdict.error_eager,
    }  # fmt: skip
    return make_row(
        "gpu", options.label(f"product {case.label}: kernel against eager"), rounds.speedup("eager", "kernel"), "x",
        Target("at least", bound), why=[] if verdict.ok else [verdict.reason], rounds=rounds, facts=facts,
        command=options.command("gpu"), device=options.device,
    )  # fmt: skip


def _inputs(shapes: Sequence[tuple[Dim, ...]], dtype: torch.dtype, device: str) -> Tensors:
    """Random matrices whose products are about 1."""
    generator = torch.Generator().manual_seed(0)
    sizes = [tuple(map(int, shape)) for shape in shapes]
    return tuple((torch.randn(s, generator=generator) * s[-1] ** -0.25).to(dtype).to(device) for s in sizes)
