"""Matrix products: prefill and decode of the Qwen3-0.6B shape; products and attention alone, and what limits them."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

import fusion

from . import user_models
from .measure import Block, Rounds, Spread, calls, interleave
from .models import QWEN3_06B, build, new_cache, tokens, twin
from .options import Options
from .rows import Row, Target, make_row
from .sides import AFTER_MANY_CALLS, Side, caller, counts, kernels_in, make_sides, prefills, ran, release, steps

_STEPS = 8  # of a decode, per round and side
_MORE = 48  # positions past the last cached one that the steps of all rounds may reach


@dataclass(frozen=True)
class Case:
    """One row of a whole model.

    Attributes:
        measured: for the row.
        dtype: of the weights.
        prompt: tokens of a prefill; cached: tokens behind which steps run. One of the two is 0.
        target: fused against eager.
        rounds: how often each side takes its turn.
        layers: of the model.
        growing: whether the fused side has a `fusion.growing_cache`; eager is then measured with each kind.
    """

    measured: str
    dtype: torch.dtype
    prompt: int
    cached: int
    target: float
    rounds: int
    layers: int
    growing: bool = False


CASES = (
    Case("prefill of 256 tokens, bf16", torch.bfloat16, 256, 0, 6.0, 3, 8),
    Case("decode step behind 256 tokens, bf16", torch.bfloat16, 0, 256, 1.9, 6, 28),
    Case("decode step behind 1,024 tokens, bf16", torch.bfloat16, 0, 1024, 2.2, 4, 8),
    Case("decode step behind 4,096 tokens, bf16", torch.bfloat16, 0, 4096, 4.0, 4, 8),
    Case("decode step behind 1,024 tokens, growing cache, bf16", torch.bfloat16, 0, 1024, 2.2, 4, 8, growing=True),
    Case("decode step behind 4,096 tokens, growing cache, bf16", torch.bfloat16, 0, 4096, 4.0, 4, 8, growing=True),
    Case("decode step behind 256 tokens, fp32", torch.float32, 0, 256, 1.5, 4, 8),
    Case("decode step behind 256 tokens, fp16", torch.float16, 0, 256, 1.9, 4, 8),
    Case("prefill of 256 tokens, fp16", torch.float16, 256, 0, 6.0, 2, 4),
    Case("prefill of 1,024 tokens, bf16", torch.bfloat16, 1024, 0, 6.0, 2, 2),
)


def run(options: Options) -> list[Row]:
    """Rows of every case, then those of single products."""
    cases = CASES[:2] if options.quick else CASES
    models = [row for case in cases for row in _model_rows(case, options)]
    return [*models, _first_call(options), *user_models.rows(options), *_alone(options), _attention(options)]


@torch.inference_mode()
def _model_rows(case: Case, options: Options) -> Iterator[Row]:
    """The row of a case; of a decode in half precision, also how long it takes against reading the weights once."""
    model = build(QWEN3_06B, case.dtype, options.device, 2 if options.quick else case.layers)
    every = make_sides(model, compiled=options.compiled, floor=False)
    sides = {k: side for k, side in every.items() if k != "unfused"}
    if case.growing:
        sides["eager, growing cache"] = sides["eager"]
    try:
        rounds, why = _timed(case, sides, 2 if options.quick else case.rounds)
        facts = {
            "tokens": case.prompt or case.cached, "kernels": kernels_in(sides["fused"]),
            "layers": model.config.num_hidden_layers,
        }  # fmt: skip
    finally:
        release(sides)
    yield _row(
        options, f"{case.measured}: fused against eager", rounds.speedup("eager", "fused"), "x",
        Target("at least", case.target), why, rounds, facts,
    )  # fmt: skip
    if case.cached == 256 and case.dtype is torch.bfloat16:
        weights = torch.cat([p.detach().view(torch.int16).flatten() for p in model.parameters()]).view(torch.float32)
        both = interleave({"weights": calls(lambda: weights.sum())}, 6)
        once = both.spreads()["weights"].p50
        against = rounds.spreads()["fused"].p50 / once
        read = {"gigabytes_per_second": weights.nbytes / once / 1e3}
        measured = f"{case.measured}: time against reading all weights once"
        yield _row(options, measured, against, "x", Target("at most", 1.35), why, both, {**facts, **read})


def _timed(case: Case, sides: dict[str, Side], rounds: int) -> tuple[Rounds, list[str]]:
    """The times of all sides, once every call of the fused one runs plans, and what speaks against them."""
    ids = tokens(sides["eager"].model, case.prompt or _MORE, "cpu")
    blocks: dict[str, Block] = {}
    for name, side in sides.items():
        cache = _filled(side, case.cached, growing=case.growing and name != "eager")
        blocks[name] = prefills(side, ids) if case.prompt else steps(side, cache, ids[:, :_STEPS])
        for _ in range(3 if side.planned else 1):
            blocks[name]()
    before = counts(sides["fused"])
    made = interleave(blocks, rounds)
    return made, ran(sides["fused"], before, rounds * (1 if case.prompt else _STEPS))


def _filled(side: Side, length: int, *, growing: bool) -> object:
    """A cache that holds `length` random keys and values for each layer; a growing one, or transformers' own."""
    config = side.model.config
    cache = fusion.growing_cache(config) if growing else new_cache(side.model)
    dtype = next(side.model.parameters()).dtype
    shape = (1, config.num_key_value_heads, length, config.head_dim)
    generator = torch.Generator().manual_seed(length)
    for layer in range(config.num_hidden_layers if length else 0):
        keys, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
        cache.update(keys, values, layer)
    return cache


@torch.inference_mode()
def _first_call(options: Options) -> Row:
    """The first call of an enabled model, with all that is recorded, compiled and measured in it, against eager's."""
    model = build(QWEN3_06B, torch.bfloat16, options.device, 2 if options.quick else 28)
    ids = tokens(model, 256, "cpu")
    fused = twin(model)

    def once(side: Any) -> list[float]:
        start = time.perf_counter()
        caller(side)(ids, new_cache(side))
        return [time.perf_counter() - start]

    rounds = interleave({"eager": lambda: once(model)}, 2)
    fusion.enable(fused, AFTER_MANY_CALLS)
    try:
        (seconds,) = once(fused)
        totals = fusion.report(fused).totals
    finally:
        fusion.disable(fused)
    against = seconds * 1e6 / rounds.spreads()["eager"].p50
    facts = {"seconds": seconds, "compile_seconds": totals.compile_seconds, "profile_seconds": totals.profile_seconds}
    measured = "first call, prefill of 256 tokens, bf16, against an eager call"
    return _row(options, measured, against, "x", Target("at most", 1.3), [], rounds, facts)


# ---- products alone


@torch.inference_mode()
def _alone(options: Options) -> list[Row]:
    """Our product of many rows against the library's in fp32, and of one row against the library's in its own dtype."""
    rows, inner, lanes = 256, 1024, 3072
    torch.manual_seed(0)
    x, w = torch.randn(1, rows, inner).bfloat16(), (torch.randn(lanes, inner) * 0.03).bfloat16()
    wide, weight = x.float(), w.float()
    found: list[Row] = []
    for count, bound in ((rows, 0.75), (1, 2.0)):
        some = x[:, :count].contiguous()
        sides: dict[str, Callable[[], object]] = {"eager": functools.partial(functional.linear, some, w)}
        ours, why = _kernel(some, w)
        sides["fused"] = ours
        if count > 1:
            sides["fp32"] = functools.partial(functional.linear, wide, weight)
        rounds = interleave({name: calls(call) for name, call in sides.items()}, 3 if options.quick else 10)
        against = rounds.speedup("fp32" if count > 1 else "eager", "fused")
        seconds = rounds.spreads()["fused"].p50 * 1e-6
        facts = {"gflops": 2 * count * inner * lanes / seconds / 1e9, "weights_gb_per_s": w.nbytes / seconds / 1e9}
        what = "share of the fp32 library's speed" if count > 1 else "fused against eager"
        measured = f"product {count} x {lanes} x {inner}, bf16: {what}"
        found.append(_row(options, measured, against, "x", Target("at least", bound), why, rounds, facts))
    return found


class _Attention(torch.nn.Module):
    """Attention of one token, 16 heads on 8, over a cache of 4,096."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("keys", torch.randn(1, 8, 4096, 128).bfloat16())
        self.register_buffer("values", torch.randn(1, 8, 4096, 128).bfloat16())

    def forward(self, query: torch.Tensor) -> torch.Tensor:
        split = query.view(1, 16, 1, 128)
        return functional.scaled_dot_product_attention(split, self.keys, self.values, enable_gqa=True)


@torch.inference_mode()
def _attention(options: Options) -> Row:
    """Attention of one token over a long cache, beside torch's, and beside reading what the cache holds once."""
    model, query = _Attention().eval(), torch.randn(16 * 128).bfloat16()
    held = torch.cat((model.keys, model.values)).view(torch.int16).view(torch.float32)
    fused = twin(model)
    fusion.enable(fused, {"enable_cache": False, "profile": False, "min_nodes": 1})
    sides = {"eager": lambda: model(query), "fused": lambda: fused(query), "reading": held.sum}
    try:
        for _ in range(4):
            fused(query)
        rounds = interleave({name: calls(call) for name, call in sides.items()}, 3 if options.quick else 10)
        kernels = len(fusion.kernels_in_use(fused))
    finally:
        fusion.disable(fused)
    spreads = rounds.spreads()
    facts = {f"{name}_gb_per_s": held.nbytes / spreads[name].p50 / 1e3 for name in sides}
    measured = "attention of one token, 16 heads on 8, 4,096 x 128, bf16"
    why = [] if kernels else ["it was not fused"]
    return _row(options, measured, spreads["fused"].scaled(1e-3), "ms", Target("at most", 1.0), why, rounds, facts)


def _kernel(x: torch.Tensor, w: torch.Tensor) -> tuple[Callable[[], object], list[str]]:
    """The kernel of one product, by the public path, and what speaks against it."""
    with fusion.record(config={"enable_cache": False, "profile": False}, x=x, w=w) as recording:
        functional.linear(x, w)
    compiled = recording.compile()
    report = recording.report()
    why = [] if any(row.decision == "fused" for row in report.regions) else ["the product was not fused"]
    return (lambda: compiled(x=x, w=w)), why


def _row(
    options: Options, measured: str, value: Spread | float, unit: str, target: Target, why: list[str], rounds: Rounds,
    facts: dict[str, Any],
) -> Row:  # fmt: skip
    return make_row(
        "products", options.label(measured), value, unit, target, why=why, rounds=rounds, facts=facts,
        command=options.command("products"),
    )  # fmt: skip
