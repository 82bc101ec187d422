"""What a layer call costs before its plan's first operator: mode checks, snapshot, guards."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable
from typing import Any

import torch

from fusion.frontend.model_session import Session
from fusion.jit.scope import Scope
from fusion.jit.stages import Stages
from fusion.runtime.plan import MISS, Plan

from .measure import Spread, calls, interleave
from .models import TINY, build, new_cache, tokens, twin
from .options import Options
from .rows import Row, Target, make_row
from .sides import caller

_TARGET_MICROSECONDS = 5.0


@torch.inference_mode()
def run(options: Options) -> list[Row]:
    """The row of guard and dispatch for one decode call of a decoder layer."""
    model = build(TINY, torch.float32, options.device, 2)
    arguments, island = _decode_arguments(twin(model), options)
    session = Session(model, Stages({"enable_cache": False, "profile": False}))
    try:
        _decode(model, options)
        module, scope = session.scopes[0]
        found = _checks(scope, arguments)
        if found is None:
            why = [f"no plan of {scope.name} takes a decode call: {scope.statistics}"]
            return [_row(options, None, why, None, {})]
        checks, plan = found
        scope.entry.__globals__["_f_plans"][:] = [checks]
        return [_measure(options, module.forward, scope, plan, arguments, island)]
    finally:
        session.remove()


def _measure(
    options: Options, entry: Callable[..., Any], scope: Scope, plan: Plan, arguments: dict[str, Any], island: Any
) -> Row:
    later, why = _later_guards(plan, island)
    bare = _bare(scope)
    sides: dict[str, Callable[[], object]] = {"bare": lambda: bare(**arguments), "entry": lambda: entry(**arguments)}
    if later:
        sides["later guards"] = lambda: [guard(*island) for guard in later]
    before = (scope.statistics.planned[0], scope.statistics.eager)
    blocks = {name: calls(side) for name, side in sides.items()}
    rounds = interleave(blocks, 4 if options.quick else 40)
    planned, eager = scope.statistics.planned[0] - before[0], scope.statistics.eager - before[1]
    if eager or not planned:
        why.append(f"the entry passed its guards in {planned} calls and ran eagerly in {eager}")
    medians = [{n: statistics.median(rounds.seconds[n][r]) for n in sides} for r in range(len(rounds.seconds["bare"]))]
    cost = Spread.of([(m["entry"] - m["bare"] + m.get("later guards", 0.0)) * 1e6 for m in medians])
    facts = {
        "scope": scope.name,
        "calls": planned,
        "guards_after_islands": len(later),
        "counted": "entry (mode checks, snapshot, plan's checks) - bare call of the same signature + later guards",
    }
    return _row(options, cost, why, rounds, facts)


def _row(options: Options, cost: Spread | None, why: list[str], rounds: Any, facts: dict[str, Any]) -> Row:
    return make_row(
        "guards", options.label("guard and dispatch per layer call"), cost, " us",
        Target("at most", _TARGET_MICROSECONDS), why=why, rounds=rounds, facts=facts,
        command=options.command("guards"), device=options.device,
    )  # fmt: skip


def _decode(model: Any, options: Options) -> Any:
    """A prefill and steps enough for the plan of a step to be trusted. Returns the cache."""
    cache, call = new_cache(model), caller(model)
    sequence = tokens(model, 40, options.device)
    for part in (sequence[:, :32], *sequence[:, 32:].split(1, dim=1)):
        call(part, cache)
    return cache


def _decode_arguments(model: Any, options: Options) -> tuple[dict[str, Any], tuple[torch.Tensor, ...]]:
    """The first layer's arguments in a decode step, and what its cache returns then."""
    layer = model.model.layers[0]
    seen: dict[str, Any] = {}

    def keep(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.clear()
        seen.update(kwargs, hidden_states=args[0]) if args else seen.update(kwargs)

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    cache = _decode(model, options)
    handle.remove()
    held = cache.layers[0]
    return dict(seen), (held.keys, held.values)


def _checks(scope: Scope, arguments: dict[str, Any]) -> tuple[Callable[..., Any], Plan] | None:
    """The checks of the plan that takes the call, as a plan that does nothing after them; and that plan."""
    for plan in (plan for known in scope.known for _, plan in known.plans.values()):
        checks = _without_body(plan)
        entry = scope.signature.entry([], [checks], [0], lambda *_: MISS)
        entry.__globals__["_f_unchanged"] = lambda: True
        if entry(**arguments) is not MISS:
            return checks, plan
    return None


def _without_body(plan: Plan) -> Callable[..., Any]:
    """A plan's own text up to its first operator, in the plan's own namespace."""
    head, _, _ = plan.source.partition("\n    log = ")
    namespace = dict(plan.run.__globals__)
    exec(compile(f"{head}\n    return None", "<bench checks>", "exec"), namespace)
    function: Callable[..., Any] = namespace["plan"]
    return function


def _later_guards(plan: Plan, island: tuple[torch.Tensor, ...]) -> tuple[list[Callable[..., Any]], list[str]]:
    """The guards on what islands return, and what is wrong with timing them on `island`."""
    _, _, body = plan.source.partition("\n    log = ")
    found = [plan.run.__globals__[name] for name in re.findall(r"g = (\w+)\(", body)]
    if any(guard(*island) is None for guard in found):
        return [], ["a guard after an island does not take the cache's keys and values"]
    return found, []


def _bare(scope: Scope) -> Callable[..., Any]:
    """A function of the scope's signature that does nothing."""
    namespace: dict[str, Any] = {}
    names = ", ".join(f"{name}=None" for name in scope.signature.names if name != "kwargs")
    exec(f"def bare({names}, **kwargs): return None", namespace)
    function: Callable[..., Any] = namespace["bare"]
    return function
