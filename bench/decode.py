"""Decode steps: a model of tiny matrices, where calls are what costs, and the Qwen3-0.6B shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from .measure import interleave
from .models import QWEN3_06B, TINY, build, new_cache, tokens
from .options import Options
from .rows import Row, Target, make_row
from .sides import Side, agree, counts, kernels_in, make_sides, ran, release, steps, warm_up


@dataclass(frozen=True)
class Case:
    """A model, and how it is measured.

    Attributes:
        measured: for the row.
        shape, dtype: of the model; wide: of the run that errors are measured against.
        prompt: tokens in the cache before the first step; steps: timed per round and side.
        target: fused against eager; unfused: the unfused plan against eager, where that is a row.
    """

    measured: str
    shape: dict[str, Any]
    dtype: torch.dtype
    wide: torch.dtype
    prompt: int
    steps: int
    rounds: int
    target: float
    unfused: float | None


CASES = (
    Case("decode step, 28 layers of tiny matrices, fp32", TINY, torch.float32, torch.float64, 200, 100, 10, 2.5, 1.5),
    Case("decode step, Qwen3-0.6B shape, bf16", QWEN3_06B, torch.bfloat16, torch.float32, 256, 16, 6, 1.15, None),
)
_COMPARED = 16  # steps whose logits are compared


def run(options: Options) -> list[Row]:
    """Rows of every case."""
    return [row for case in CASES for row in _measure(case, options)]


@torch.inference_mode()
def _measure(case: Case, options: Options) -> list[Row]:
    model = build(case.shape, case.dtype, options.device, 2 if options.quick else None)
    sequence = tokens(model, case.prompt + case.steps, options.device)
    compared = sequence[:, : case.prompt + _COMPARED]
    sides = make_sides(model, compiled=options.compiled)
    try:
        seconds = warm_up(sides, compared[:, : case.prompt + 4], case.prompt)
        agreement = agree(sides, compared, case.prompt, case.wide)
        rounds_wanted = 2 if options.quick else case.rounds
        before = {name: counts(side) for name, side in sides.items()}
        blocks = {}
        for name, side in sides.items():
            cache = new_cache(side.model)
            side.call(sequence[:, : case.prompt], cache)
            blocks[name] = steps(side, cache, sequence[:, case.prompt :])
        rounds = interleave(blocks, rounds_wanted)
        calls = 1 + rounds_wanted * case.steps
        why = {
            name: [*agreement.problems.get(name, ()), *ran(side, before[name], calls)] for name, side in sides.items()
        }
        facts = {
            **agreement.facts, "prompt": case.prompt, "steps_per_round": case.steps, "warm_up_seconds": seconds,
            "kernels": kernels_in(sides["fused"]), "layers": model.config.num_hidden_layers,
        }  # fmt: skip
    finally:
        release(sides)

    def row(side: Side, measured: str, target: float) -> Row:
        return make_row(
            "decode", options.label(measured), rounds.speedup("eager", side.name), "x", Target("at least", target),
            why=why[side.name], rounds=rounds, facts=facts, command=options.command("decode"), device=options.device,
        )  # fmt: skip

    rows = [row(sides["fused"], f"{case.measured}: fused against eager", case.target)]
    if case.unfused is not None:
        rows.append(row(sides["unfused"], f"{case.measured}: unfused plan, bit-equal, against eager", case.unfused))
    return rows
