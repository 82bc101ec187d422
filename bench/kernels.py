"""Single kernels against the operators they replace: the launcher alone, and the public path around it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

import fusion
from fusion.choices.decision import Decision
from fusion.choices.proof import prove
from fusion.patterns.reference import bind_symbols

from .measure import Block, calls, interleave
from .options import Options
from .rows import Row, Target, make_row

Tensors = dict[str, torch.Tensor]
_EPSILON = 1e-6
_HEAD = 128  # a model knows its head size; as an argument's size it would be any


def _rms_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """As transformers' decoder models write it."""
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + _EPSILON)
    return weight * wide.to(x.dtype)


def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor) -> Tensors:
    """The sum of two tensors, and its RMS norm."""
    total = x + residual
    return {"norm": _rms_norm(total, weight), "total": total}


def qk_norm_rope(x: torch.Tensor, weight: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Tensors:
    """The RMS norm of each head of [batch, tokens, heads * size], and the rotary embedding of what it gives."""
    heads = _rms_norm(x.view(*x.shape[:-1], -1, _HEAD), weight).transpose(1, 2)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    half = heads.shape[-1] // 2
    rotated = torch.cat((-heads[..., half:], heads[..., :half]), dim=-1)
    return {"output": heads * cos + rotated * sin}


def swiglu(gate: torch.Tensor, up: torch.Tensor) -> Tensors:
    """silu(gate) * up."""
    return {"output": functional.silu(gate) * up}


@dataclass(frozen=True)
class Case:
    """A kernel: the function it replaces, its inputs' shapes, and what it must reach against eager."""

    measured: str
    function: Callable[..., Tensors]
    shapes: Mapping[str, tuple[int, ...]]
    target: float


CASES = (
    Case(
        "Add+RMSNorm 128x4096 bf16", add_rms_norm,
        {"x": (128, 4096), "residual": (128, 4096), "weight": (4096,)}, 2.5,
    ),
    Case(
        "QK-norm+RoPE one token, 16 heads of 128, bf16", qk_norm_rope,
        {"x": (1, 1, 16 * _HEAD), "weight": (128,), "cos": (1, 1, 128), "sin": (1, 1, 128)}, 5.0,
    ),
    Case("SwiGLU 128x11008 bf16", swiglu, {"gate": (128, 11008), "up": (128, 11008)}, 1.2),
)  # fmt: skip


def run(options: Options) -> list[Row]:
    """Two rows per kernel: its launcher, and the callable that `fusion.record(...).compile()` gives."""
    return [row for case in CASES for row in _measure(case, options)]


@torch.inference_mode()
def _measure(case: Case, options: Options) -> list[Row]:
    generator = torch.Generator().manual_seed(0)
    inputs: Tensors = {
        name: torch.randn(shape, generator=generator).to(torch.bfloat16).to(options.device)
        for name, shape in case.shapes.items()
    }
    with fusion.record(**inputs, config={"enable_cache": False}) as recording:
        recording.output(**case.function(**inputs))
    public = recording.compile()
    public(**inputs)
    launch, facts, why = _launcher(recording, inputs)
    sides = {"eager": lambda: case.function(**inputs), "public": lambda: public(**inputs)}
    if launch is not None:
        sides["kernel"] = launch
    if options.compiled:
        compiled = torch.compile(case.function)
        sides["torch.compile"] = lambda: compiled(**inputs)
    sides["floor"] = _copy(facts.get("bytes_after"), inputs)
    cuda = options.device == "cuda"
    before = recording.report().scopes[0]
    blocks: dict[str, Block] = {name: calls(side, cuda=cuda) for name, side in sides.items()}
    rounds = interleave(blocks, 2 if options.quick else 20)
    after = recording.report().scopes[0]
    if after.eager_calls != before.eager_calls or after.fallbacks != before.fallbacks or after.state != "fused":
        eager, fallbacks = after.eager_calls - before.eager_calls, after.fallbacks - before.fallbacks
        why.append(f"the public path is {after.state}: {eager} eager calls, {fallbacks} fallbacks. {after.reason}")
    facts["public_planned_calls"] = after.fused_calls - before.fused_calls
    return [
        make_row(
            "kernels", options.label(f"{case.measured}, {path} against eager"),
            rounds.speedup("eager", side) if side in sides else None, "x", Target("at least", case.target), why=why,
            rounds=rounds, facts=facts, command=options.command("kernels"), device=options.device,
        )
        for side, path in (("kernel", "kernel launcher"), ("public", "recording.compile()"))
    ]  # fmt: skip


def _launcher(recording: Any, inputs: Tensors) -> tuple[Callable[[], object] | None, dict[str, Any], list[str]]:
    """A call of the one kernel of a recording, what was found out about it, and what is wrong with it."""
    regions = recording.report().regions
    facts: dict[str, Any] = {"regions": {r.name: f"{r.decision}: {r.reason}" for r in regions}}
    graphs = recording.subgraphs
    if len(graphs) != 1:
        return None, facts, [f"expected one region, found {len(graphs)}: {[g.ops for g in graphs]}"]
    (graph,) = graphs
    paths = {i.name: str(i.path[0]) for i in recording.graph.inputs}
    tensors = [inputs[paths[name]] for name in graph.inputs]
    kernel = recording.stages.backends.launcher(graph)
    if isinstance(kernel, Decision):
        return None, facts, [f"no kernel: {kernel.reason}"]
    values = bind_symbols(graph, dict(zip(graph.inputs, tensors, strict=True)))
    verdict = prove(graph, tensors, values, kernel(*tensors))
    fused = [r for r in regions if r.decision == "fused"]
    facts |= {"pattern": graph.pattern, "error_eager": verdict.error_eager, "error_fused": verdict.error_fused}
    facts |= {"bytes_after": fused[0].bytes_after, "bytes_before": fused[0].bytes_before} if fused else {}
    why = [] if verdict.ok else [verdict.reason]
    return (lambda: kernel(*tensors)), facts, why


def _copy(moved: int | None, inputs: Tensors) -> Callable[[], object]:
    """The floor: one copy that reads and writes as many bytes as the kernel, or the first input's twice."""
    first = next(iter(inputs.values()))
    source = torch.zeros((moved or 2 * first.nbytes) // 2, dtype=torch.uint8, device=first.device)
    return source.clone
