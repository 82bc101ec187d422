"""Prefill of 256 tokens, Qwen3-0.6B shape."""

from __future__ import annotations

import torch

from .measure import interleave
from .models import QWEN3_06B, build, tokens
from .options import Options
from .rows import Row, Target, make_row
from .sides import agree, counts, kernels_in, make_sides, prefills, ran, release, warm_up

_PROMPT = 256
_TARGET = 1.25
_ROUNDS = 10


@torch.inference_mode()
def run(options: Options) -> list[Row]:
    """The row of fused against eager."""
    model = build(QWEN3_06B, torch.bfloat16, options.device, 2 if options.quick else None)
    prompt = tokens(model, _PROMPT, options.device)
    sides = make_sides(model, compiled=options.compiled)
    try:
        seconds = warm_up(sides, prompt, _PROMPT)
        agreement = agree(sides, prompt, _PROMPT, torch.float32)
        before = {name: counts(side) for name, side in sides.items()}
        wanted = 2 if options.quick else _ROUNDS
        rounds = interleave({name: prefills(side, prompt) for name, side in sides.items()}, wanted)
        fused = sides["fused"]
        why = [*agreement.problems["fused"], *ran(fused, before["fused"], wanted)]
        facts = {
            **agreement.facts, "prompt": _PROMPT, "warm_up_seconds": seconds, "kernels": kernels_in(fused),
            "layers": model.config.num_hidden_layers,
        }  # fmt: skip
    finally:
        release(sides)
    return [
        make_row(
            "prefill", options.label("prefill of 256 tokens, Qwen3-0.6B shape, bf16: fused against eager"),
            rounds.speedup("eager", "fused"), "x", Target("at least", _TARGET), why=why, rounds=rounds, facts=facts,
            command=options.command("prefill"), device=options.device,
        )
    ]  # fmt: skip
