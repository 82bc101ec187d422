"""One model run several ways: eager, as an unfused plan, fused, through torch.compile, and its floor."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

import fusion
from fusion.reporting.model import FusionReport

from .measure import Block
from .models import library_calls, new_cache, twin, widened

ERROR_FACTOR = 1.5  # how much worse than eager's own error a fused model's may be
AFTER_MANY_CALLS = {"enable_cache": False, "product_seconds": 0.0}  # config: small products are kernels' at once
MOST_WARM_UPS = 24  # plans that are measured as a whole take turns with eager in 33 calls, which equal layers share

Call = Callable[[torch.Tensor, Any], torch.Tensor]  # tokens [1, n], cache -> logits [1, vocabulary] after the last


@dataclass(frozen=True)
class Side:
    """One way to run a model.

    Attributes:
        name: "eager", "unfused", "fused", "torch.compile" or "floor".
        call: runs it.
        model: the model it runs; under fusion where `planned`.
        planned: whether every call must run a plan.
    """

    name: str
    call: Call
    model: Any
    planned: bool


def make_sides(model: Any, *, compiled: bool = False, floor: bool = True) -> dict[str, Side]:
    """The sides of a model; they share its parameters. `release` ends them.

    Args:
        model: run as it is on the side "eager".
        compiled: add torch.compile; it takes minutes for a model of many layers.
        floor: add the floor, which is the library calls alone.
    """
    fused, unfused = twin(model), twin(model)
    fusion.enable(fused, AFTER_MANY_CALLS)
    fusion.enable(unfused, {"enable_cache": False, "max_fusions": 0, "profile": False})
    sides = [
        Side("eager", caller(model), model, False),
        Side("unfused", caller(unfused), unfused, True),
        Side("fused", caller(fused), fused, True),
    ]
    if compiled:
        sides.append(Side("torch.compile", caller(torch.compile(twin(model))), model, False))
    if floor:
        sides.append(Side("floor", library_calls(model), model, False))
    return {side.name: side for side in sides}


def release(sides: Mapping[str, Side]) -> None:
    """Takes the models out of fusion."""
    for side in sides.values():
        if side.planned:
            fusion.disable(side.model)


def caller(model: Any) -> Call:
    """A model as a Call."""

    def call(ids: torch.Tensor, cache: Any) -> torch.Tensor:
        # all logits: for the last alone, F.linear copies the whole head at each call, on both sides (1.1 s here)
        logits: torch.Tensor = model(input_ids=ids, past_key_values=cache, use_cache=True).logits
        return logits[:, -1]

    return call


# ---- running


def forced(side: Side, sequence: torch.Tensor, prompt: int) -> torch.Tensor:
    """Logits [steps, vocabulary] of a prefill and of one step per further token of `sequence`."""
    cache = new_cache(side.model)
    parts = (sequence[:, :prompt], *sequence[:, prompt:].split(1, dim=1)) if prompt < sequence.shape[1] else (sequence,)
    return torch.cat([side.call(part, cache) for part in parts])


def warm_up(sides: Mapping[str, Side], sequence: torch.Tensor, prompt: int) -> dict[str, float]:
    """Runs every side until all its calls run plans twice in a row: once is chance, where plans and eager take turns.

    Returns:
        seconds taken, recording and compiling included.
    """
    taken: dict[str, float] = {}
    for side in sides.values():
        start, planned = time.perf_counter(), 0
        for _ in range(MOST_WARM_UPS):
            before = counts(side)
            forced(side, sequence, prompt)
            planned = 0 if eager_calls(before, counts(side)) else planned + 1
            if planned == 2 or not side.planned:
                break
        taken[side.name] = time.perf_counter() - start
    return taken


def steps(side: Side, cache: Any, sequence: torch.Tensor) -> Block:
    """A block of one step per token of `sequence`, on a copy of a prefilled cache that grows with them."""
    parts = sequence.split(1, dim=1)

    def block() -> list[float]:
        held = copy.deepcopy(cache)
        return [_timed(side, part, held) for part in parts]

    return block


def prefills(side: Side, prompt: torch.Tensor) -> Block:
    """A block of one prefill."""
    return lambda: [_timed(side, prompt, new_cache(side.model))]


def _timed(side: Side, ids: torch.Tensor, cache: Any) -> float:
    wait = torch.cuda.synchronize if ids.is_cuda else None
    if wait:
        wait()
    start = time.perf_counter()
    side.call(ids, cache)
    if wait:
        wait()
    return time.perf_counter() - start


# ---- what ran


def counts(side: Side) -> FusionReport | None:
    """The report of a side under fusion now, or None."""
    return fusion.report(side.model) if side.planned else None


def eager_calls(before: FusionReport | None, after: FusionReport | None) -> int:
    """Calls of scopes that ran no plan between two reports."""
    if before is None or after is None:
        return 0
    return sum(s.eager_calls for s in after.scopes) - sum(s.eager_calls for s in before.scopes)


def ran(side: Side, before: FusionReport | None, calls: int) -> list[str]:
    """What speaks against every call since `before` having run the plans this side is for.

    Args:
        side: which.
        before: its `counts` then; None for a side that is not under fusion, against which nothing speaks.
        calls: calls of the model since.
    """
    after = counts(side)
    if before is None or after is None:
        return []
    state = "fused" if side.name == "fused" else "unfused plan"
    wrong: list[str] = []
    layers = 0
    for old, new in zip(before.scopes, after.scopes, strict=True):
        planned = new.fused_calls - old.fused_calls
        if planned != calls:
            wrong.append(f"{side.name}: {new.name} ran a plan in {planned} of {calls} calls. {new.reason}".strip())
        if new.fallbacks != old.fallbacks:
            wrong.append(f"{side.name}: {new.name} fell back {new.fallbacks - old.fallbacks} times. {new.reason}")
        layers += new.state == state
    if not layers:
        wrong.append(f"{side.name}: no scope is in the state {state!r}")
    if side.name == "unfused" and layers != len(after.scopes):
        wrong.append(f"{side.name}: only {layers} of {len(after.scopes)} scopes are in the state {state!r}")
    return wrong[:4]


def kernels_in(side: Side) -> dict[str, int]:
    """Fused regions of a side by name, over all scopes."""
    found: dict[str, int] = {}
    for row in fusion.report(side.model).regions:
        if row.decision == "fused":
            found[row.name] = found.get(row.name, 0) + 1
    return found


# ---- agreement


@dataclass(frozen=True)
class Agreement:
    """How near the sides' logits are, every step fed the same tokens.

    Attributes:
        facts: errors, and what is the same.
        problems: by side, what is wrong with its results.
    """

    facts: dict[str, Any]
    problems: dict[str, list[str]]


def agree(sides: Mapping[str, Side], sequence: torch.Tensor, prompt: int, wide: torch.dtype) -> Agreement:
    """Holds the planned sides to eager: the unfused plan bit for bit, fused kernels by error to a wider precision.

    Args:
        sides: with "eager"; warmed up.
        sequence: [1, n] tokens; the first `prompt` of them in one call.
        wide: the precision of the run that errors are measured against.
    """
    made: dict[str, torch.Tensor] = {}
    problems: dict[str, list[str]] = {}
    for side in sides.values():
        if side.name == "eager" or side.planned:
            before = counts(side)
            made[side.name] = forced(side, sequence, prompt)
            problems[side.name] = ran(side, before, len(made[side.name]))
    reference = widened(sides["eager"].model, wide)
    exact = reference(input_ids=sequence, use_cache=False, logits_to_keep=len(made["eager"])).logits[0]
    errors = {name: (logits.to(wide) - exact).abs().max().item() for name, logits in made.items()}
    facts: dict[str, Any] = {
        "compared_steps": len(exact),
        "reference": str(wide).removeprefix("torch."),
        "largest_logit_error": errors,
        "bit_equal": {name: torch.equal(logits, made["eager"]) for name, logits in made.items()},
        "same_tokens": {
            name: torch.equal(logits.argmax(-1), made["eager"].argmax(-1)) for name, logits in made.items()
        },
    }
    if "unfused" in made and not facts["bit_equal"]["unfused"]:
        problems["unfused"].append("its logits are not eager's bit for bit")
    for name in set(made) - {"eager"}:
        ulp = torch.finfo(made[name].dtype).eps * exact.abs().max().item()  # no result is nearer than its own grid
        if not errors[name] <= ERROR_FACTOR * errors["eager"] + ulp:  # negated, so that NaN counts as wrong
            problems[name].append(f"logits are off by {errors[name]:.3g}, eager's by {errors['eager']:.3g}")
    return Agreement(facts, problems)
