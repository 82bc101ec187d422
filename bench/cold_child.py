"""One cold start in its own process: `python -m bench.cold_child fusion|torch.compile [LAYERS]`.

With FUSION_COMPILE=background each call is followed by a wait for the compilers, which counts.

Prints a JSON object per event as it happens: {"event": name, "seconds": since the model was handed over, ...}.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch

import fusion

from .models import TINY, build, new_cache, tokens, twin
from .sides import Call, caller

PROMPT = 64
_MOST_CALLS = 8


def main(way: str, layers: int) -> None:
    """Warms torch up with the eager model, then times the first calls of the other one."""
    model = build(TINY, torch.float32, layers=layers)
    sequence = tokens(model, PROMPT + _MOST_CALLS)
    with torch.inference_mode():
        eager = _generate(caller(twin(model)), model, sequence)
        (_fusion if way == "fusion" else _compile)(model, sequence, eager)


def _generate(call: Call, model: Any, sequence: torch.Tensor) -> list[torch.Tensor]:
    """Logits of a prefill and of a step per token after it."""
    cache = new_cache(model)
    return [call(part, cache) for part in (sequence[:, :PROMPT], *sequence[:, PROMPT:].split(1, dim=1))]


def _say(event: str, start: float, got: torch.Tensor, eager: torch.Tensor, **more: Any) -> None:
    seconds = time.perf_counter() - start
    error = (got - eager).abs().max().item()
    print(json.dumps({"event": event, "seconds": seconds, "distance_to_eager": error, **more}), flush=True)


def _fusion(model: Any, sequence: torch.Tensor, eager: list[torch.Tensor]) -> None:
    """The prefill until it runs fused, then steps until one runs fused."""
    start = time.perf_counter()
    fusion.enable(model)
    call = caller(model)
    for number in range(1, _MOST_CALLS):
        cache = new_cache(model)
        if _fused(model, lambda held=cache: call(sequence[:, :PROMPT], held), "prefill", number, start, eager[0]):
            break
    for number in range(1, _MOST_CALLS + 1):
        part = sequence[:, PROMPT + number - 1 : PROMPT + number]
        if _fused(model, lambda part=part, held=cache: call(part, held), "decode", number, start, eager[number]):
            break


def _fused(model: Any, run: Any, event: str, number: int, start: float, eager: torch.Tensor) -> bool:
    """Makes one call; says so, and whether every scope ran a fused plan in it."""
    before = fusion.report(model)
    paused = time.perf_counter()
    got = run()
    made = time.perf_counter()
    fusion.wait(model)
    after = fusion.report(model)
    layers = [(a, b) for a, b in zip(before.scopes, after.scopes, strict=True)]
    fused = all(b.fused_calls == a.fused_calls + 1 for a, b in layers) and any(b.state == "fused" for _, b in layers)
    totals = after.totals
    _say(
        event, start, got, eager, fused=fused, number=number, call_seconds=made - paused,
        recording_seconds=totals.recording_seconds, compile_seconds=totals.compile_seconds,
        profile_seconds=totals.profile_seconds, fallbacks=totals.fallbacks, cache_hits=totals.cache_hits,
    )  # fmt: skip
    return fused


def _compile(model: Any, sequence: torch.Tensor, eager: list[torch.Tensor]) -> None:
    """The prefill, then steps: the second one is compiled again, for a cache length that varies."""
    start = time.perf_counter()
    call, cache = caller(torch.compile(model)), new_cache(model)
    _say("prefill", start, call(sequence[:, :PROMPT], cache), eager[0], number=1)
    for number in range(1, 4):
        part = sequence[:, PROMPT + number - 1 : PROMPT + number]
        _say("decode", start, call(part, cache), eager[number], number=number)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else TINY["num_hidden_layers"])
