"""Results: greedy tokens in fp32, and in bf16 the distance to double precision against eager's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fusion.choices.decision import Decision
from fusion.frontend.model_session import Session
from fusion.jit.stages import Stages

from .models import TINY, build, new_cache, tokens, twin, widened
from .options import Options
from .rows import Row, Target, make_row
from .sides import AFTER_MANY_CALLS, ERROR_FACTOR, MOST_WARM_UPS, Side, caller, forced

_STEPS = 64
_PROMPT = 32
_LEAST_TOKENS = 16  # distinct ones in a continuation that can tell two models apart
# Weights so large that layers outweigh the embedding, which would only repeat the last token.
_SHAPE = {**TINY, "tie_word_embeddings": False, "initializer_range": 0.2}


def run(options: Options) -> list[Row]:
    """Rows of tokens, of kernels, and of logits."""
    layers = 2 if options.quick else 28
    return [_tokens(options, layers), *_bfloat16(options, layers)]


@torch.inference_mode()
def _tokens(options: Options, layers: int) -> Row:
    """Each side continues its own tokens."""
    model = build(_SHAPE, torch.float32, options.device, layers)
    fused = _Fused(model)
    prompt = tokens(model, _PROMPT, options.device)
    expected = _greedy(model, prompt)
    got, why = fused.checked(lambda: _greedy(fused.model, prompt), 1 + _STEPS)
    different = int((expected != got).sum())
    distinct = len(set(expected.tolist()))
    if distinct < _LEAST_TOKENS:
        why = [*why, f"eager's continuation has only {distinct} distinct tokens, which proves little"]
    facts = {"steps": _STEPS, "distinct_tokens": distinct, "layers": layers}
    fused.session.remove()
    return _row(options, f"fp32 greedy tokens that differ over {_STEPS} steps", float(different), "", 0.0, why, facts)


@torch.inference_mode()
def _bfloat16(options: Options, layers: int) -> list[Row]:
    """Both sides are fed the same tokens."""
    model = build(_SHAPE, torch.bfloat16, options.device, layers)
    fused = _Fused(model)
    sequence = tokens(model, _PROMPT + _STEPS, options.device)
    eager = forced(Side("eager", caller(model), model, False), sequence, _PROMPT)
    side = Side("fused", caller(fused.model), fused.model, False)
    got, why = fused.checked(lambda: forced(side, sequence, _PROMPT), 1 + _STEPS)
    exact = widened(model, torch.float64)(input_ids=sequence, use_cache=False, logits_to_keep=_STEPS + 1).logits[0]
    errors = {name: (logits.double() - exact).abs() for name, logits in (("eager", eager), ("fused", got))}
    facts: dict[str, Any] = {f"{name}_error_max": error.max().item() for name, error in errors.items()}
    facts |= {f"{name}_error_mean": error.mean().item() for name, error in errors.items()}
    facts["bit_equal"] = torch.equal(eager, got)
    ratio = facts["fused_error_max"] / facts["eager_error_max"]
    decisions = fused.decisions()
    used = [d for d in decisions if d.fused]
    unproved = [d for d in used if d.error_fused is None or d.error_eager is None]
    kernels = {
        "kernels_in_use": len(used),
        "not_used": [f"{d.code}: {d.reason}" for d in decisions if not d.fused],
        "errors": [{"eager": d.error_eager, "fused": d.error_fused} for d in used],
    }
    inaccurate = sum(d.code == "inaccurate" for d in decisions)
    none = [] if used else ["no kernel is in use"]
    fused.session.remove()
    return [
        _row(
            options, "bf16 kernels that were not accepted by the fp64 rule", float(len(unproved) + inaccurate), "", 0.0,
            [*why, *none], kernels,
        ),
        _row(
            options, "bf16 logits: fused error to fp64 against eager's", ratio, "x", ERROR_FACTOR, why,
            {**facts, "steps": _STEPS, "layers": layers},
        ),
    ]  # fmt: skip


def _row(
    options: Options, measured: str, value: float, unit: str, most: float, why: list[str], facts: dict[str, Any]
) -> Row:
    return make_row(
        "accuracy", options.label(measured), value, unit, Target("at most", most), why=why, facts=facts,
        command=options.command("accuracy"), device=options.device,
    )  # fmt: skip


def _greedy(model: Any, prompt: torch.Tensor) -> torch.Tensor:
    """The tokens int64 [steps] that a model continues a prompt with."""
    call, cache = caller(model), new_cache(model)
    chosen = [call(prompt, cache).argmax(-1)]
    for _ in range(_STEPS):
        chosen.append(call(chosen[-1][:, None], cache).argmax(-1))
    return torch.cat(chosen)


class _Fused:
    """A twin of a model under fusion, with its decisions within reach."""

    def __init__(self, model: Any) -> None:
        self.model = twin(model)
        self.session = Session(self.model, Stages(AFTER_MANY_CALLS))

    def checked(self, run: Callable[[], torch.Tensor], calls: int) -> tuple[torch.Tensor, list[str]]:
        """The result of the first run in which all calls ran plans, or of the last and what speaks against that."""
        for _ in range(MOST_WARM_UPS):
            result, wrong = self._counted(run, calls)
            if not wrong:
                break
        return result, wrong[:4]

    def _counted(self, run: Callable[[], torch.Tensor], calls: int) -> tuple[torch.Tensor, list[str]]:
        """A run's result, and the scopes of which not all calls ran plans."""
        before = self._counts()
        result = run()
        return result, [
            f"{name}: {planned - old} of {calls} calls ran a plan, {fallen - fell} fell back"
            for (name, old, fell), (_, planned, fallen) in zip(before, self._counts(), strict=True)
            if planned - old != calls or fallen != fell
        ]

    def _counts(self) -> list[tuple[str, int, int]]:
        return [(s.name, s.statistics.planned[0], s.statistics.fallbacks) for _, s in self.session.scopes]

    def decisions(self) -> list[Decision]:
        """What was decided about every distinct region, kernels or not."""
        found: dict[int, Decision] = {}
        for _, scope in self.session.scopes:
            for known in scope.known:
                for compiled, _ in known.plans.values():
                    found |= {id(c): c.decision for c in compiled.candidates}
        return list(found.values())
