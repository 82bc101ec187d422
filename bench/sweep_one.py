"""One architecture of the sweep, measured in its own process: equality, what fused, recompilations, and time."""

from __future__ import annotations

import copy
import inspect
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from fusion.frontend.model_session import Session
from fusion.jit.compiled import Compiled
from fusion.jit.stages import Stages
from fusion.kernels.backends.cpp import emit as cpp_emit
from fusion.patterns.nodes import OpNode
from fusion.patterns.ops import FUSABLE, kind_of
from fusion.runtime.plan import MISS

from .architectures import build, forward
from .equality import difference, errors
from .measure import calls, interleave
from .op_counts import count, launches

PARTS = ("equality", "fusion", "time")
_TURNS = 4  # calls at one shape: recorded, checked beside eager at another shape, planned
_SHAPES = ((2, 7), (3, 11), (2, 19))
_PROMPT = (2, 5)
_STEPS = 8
_CACHES = ("past_key_values", "cache_params", "state", "mems")  # what models call what they remember
_PAIRS = 50  # (batch, length) pairs whose recompilations are counted
_TIMED = (2, 8)  # so few tokens that a call's time is what its operators cost to launch


def measure(model_type: str, parts: tuple[str, ...], cache: str, quick: bool = False) -> dict[str, Any]:
    """What is found about one architecture, as JSON values.

    Args:
        model_type: one of `architectures.names()`.
        parts: which of `PARTS`.
        cache: the folder of compiled kernels that the sweep's processes share.
        quick: fewer pairs and rounds.

    Returns:
        "skipped" with a reason where no tiny model of it runs; else what each part found, or its "error".
    """
    try:
        model = build(model_type)
    except RuntimeError as error:
        return {"skipped": str(error)}
    found: dict[str, Any] = {"parameters": sum(p.numel() for p in model.parameters())}
    with torch.inference_mode():
        if "equality" in parts or "fusion" in parts:
            found |= _fused(model, parts, cache, quick)
        if "time" in parts:
            found["time"] = _timed(model, cache, quick)
    return found


# ---- every legal kernel in use: equality, and what fused


def _fused(model: Any, parts: tuple[str, ...], cache: str, quick: bool) -> dict[str, Any]:
    """Equality with eager and what fused, with every kernel that is legal and accurate, fast or not."""
    watch = Watch(copy.deepcopy(model), {"profile": False, "cache_dir": cache})
    found: dict[str, Any] = {}
    try:
        if "equality" in parts:
            found["equality"] = _equality(model, watch)
        else:
            for ids in _forwards():
                forward(watch.model, ids)
        if "fusion" in parts:
            found["fusion"] = _coverage(model, watch)
            found["decode"] = _decode_coverage(model, watch)
            found["recompiled"] = _recompiled(watch, 6 if quick else _PAIRS)
        found["report"] = watch.report()
    finally:
        watch.session.remove()
    return found


def _equality(model: Any, watch: Watch) -> dict[str, Any]:
    """Forwards at several shapes and greedy decodes with the default cache, against eager and float64."""
    exact = _attempt(lambda m: copy.deepcopy(m).double(), model)
    unequal: list[str] = []
    planned: dict[str, int] = {}  # by the last call of each kind
    compared: set[str] = set()
    decoded: bool | str = True  # or why eager itself has no decode
    decodes = [_ids(*_PROMPT, seed=99 + turn) for turn in range(_TURNS)]
    for name, call, inputs in (("forward", forward, list(_forwards())), ("decode", _decode, decodes)):
        pairs = [(_attempt(call, model, ids), _attempt(call, exact, ids)) for ids in inputs]
        worst = errors(pairs)
        compared |= {name} if worst else set()
        if isinstance(pairs[0][0], Exception):
            decoded = f"{type(pairs[0][0]).__name__}: {str(pairs[0][0])[:200]}"
            continue
        for ids, (theirs, ideal) in zip(inputs, pairs, strict=True):
            with watch.observed() as ran:
                mine = _attempt(call, watch.model, ids)
            planned[f"{name}{list(ids.shape)}"] = len(ran)
            unequal += [f"{name}{list(ids.shape)}: {why}" for why in difference(mine, theirs, ideal, worst)]
    return {
        "equal": not unequal,
        "differences": list(dict.fromkeys(unequal)),
        "plans_run": planned,
        "planned": all(planned.values()),
        "decoded": decoded,
        "float64": sorted(compared),
    }


def _coverage(model: Any, watch: Watch) -> dict[str, Any]:
    """How much of one whole forward runs inside kernels, and what does not."""
    ids = _ids(*_SHAPES[0], seed=7)
    found, ran = _covered(lambda m: lambda: forward(m, ids), model, watch)
    found["partition_and_emit_seconds"] = _partition_and_emit_seconds(watch, ran)
    return found


def _decode_coverage(model: Any, watch: Watch) -> dict[str, Any] | None:
    """The same of one decode step with a cache; None for a model that hands out no cache, or cannot go on with it."""
    if isinstance(_attempt(_primed, model), Exception | None):
        return None
    for _ in range(_TURNS):
        step = _primed(watch.model)
        for _ in range(_TURNS - 1) if step is not None else ():
            step()
    return _covered(_primed, model, watch)[0]


def _primed(model: Any) -> Callable[[], Any] | None:
    """Makes a prefill and a step; a call of what is returned is one more step. None without a cache."""
    known = inspect.signature(type(model).forward).parameters
    name = next((n for n in _CACHES if n in known), None)
    made = model(input_ids=_ids(*_PROMPT, seed=99), use_cache=True) if name and "use_cache" in known else None
    cache = getattr(made, name, None) if name else None
    if cache is None:
        return None
    token = _ids(_PROMPT[0], 1, seed=100)

    def step() -> Any:
        return model(input_ids=token, use_cache=True, **{name: cache})

    step()
    return step


def _covered(
    prepare: Callable[[Any], Callable[[], Any] | None], model: Any, watch: Watch
) -> tuple[dict[str, Any], list[Compiled]]:
    """What of one call runs inside kernels, and the plans that ran; `prepare` gives the call of a model."""
    calls_of = prepare(model), prepare(watch.model)
    eager = count(calls_of[0])
    with watch.observed() as ran:
        left = count(calls_of[1])
    fused = sum(compiled.coverage[1] for compiled in ran)
    kernels = sum(kind == "region" for compiled in ran for kind, _ in compiled.steps)
    remaining = left["fusable"].total()
    return {
        "eager_fusable": eager["fusable"].total(),
        "fused": fused,
        "unfused": remaining,
        "share": fused / max(1, fused + remaining),
        "launches_eager": launches(eager),
        "launches_fused": kernels + launches(left),
        "kernels": kernels,
        "unfused_operators": dict(left["fusable"].most_common(12)),
        "copies": dict(left["copy"].most_common(12)),
        "effects": dict(left["effect"].most_common(12)),
        "library": dict(left["library"].most_common(20)),
        "refused": dict(_refused(ran).most_common(20)),
    }, ran


def _refused(ran: list[Compiled]) -> Counter[str]:
    """Why operators of the plans that ran are in no kernel: "operator: code", by calls."""
    found: Counter[str] = Counter()
    for compiled in ran:
        nodes = compiled.shape.graph.nodes
        for index, refusal in compiled.partition.refusals:
            node = nodes[index]
            if isinstance(node, OpNode) and kind_of(node.op) in FUSABLE:
                found[f"{node.op}: {refusal.code}"] += 1
        for candidate in compiled.candidates:
            if candidate.kernel is None:
                for op in candidate.region.subgraph.ops:
                    found[f"{op}: {candidate.decision.code}"] += 1
    return found


def _partition_and_emit_seconds(watch: Watch, ran: list[Compiled]) -> float:
    """Partitioning what a forward's plans were made from, and writing the C++ of their kernels."""
    made = {id(compiled.partition): compiled for compiled in ran}
    nests = {kernel.nest.subgraph: kernel.nest for compiled in ran for kernel in compiled.kernels}
    start = time.perf_counter()
    if nests:
        cpp_emit.translation_unit(list(nests.values()))
    return time.perf_counter() - start + sum(watch.partition_seconds[partition] for partition in made)


def _recompiled(watch: Watch, pairs: int) -> dict[str, int]:
    """Kernels compiled and forwards recorded over many (batch, length) pairs, after the shapes met so far."""
    costs = watch.session.stages.backends.costs
    sizes = list(itertools.product(range(2, 7), range(3, 43)))
    chosen = [sizes[i] for i in torch.randperm(len(sizes), generator=torch.Generator().manual_seed(3))[:pairs]]

    def counts() -> tuple[int, int, int]:
        totals = watch.session.report()
        return costs.cache_hits + costs.cache_misses, sum(s.recordings for s in totals.scopes), totals.totals.fallbacks

    before = counts()
    runs = 0
    for number, (batch, length) in enumerate(chosen):
        ids = _ids(batch, length, seed=number)
        for _ in range(2):  # checked beside eager where that is due, then planned
            with watch.observed() as ran:
                forward(watch.model, ids)
        runs += bool(ran)
    kernels, recordings, fallbacks = (after - b for after, b in zip(counts(), before, strict=True))
    return {
        "pairs": pairs, "planned": runs, "kernels": kernels, "recordings": recordings, "fallbacks": fallbacks,
    }  # fmt: skip


# ---- as configured by default: time


def _timed(model: Any, cache: str, quick: bool) -> dict[str, Any]:
    """A forward of few tokens, eager and fused in turns."""
    watch = Watch(copy.deepcopy(model), {"cache_dir": cache})
    try:
        ids = _ids(*_TIMED, seed=5)
        for shape in (*[_TIMED] * 3, *[(3, 12)] * 3, *[_TIMED] * 2):
            forward(watch.model, _ids(*shape, seed=6))
        with watch.observed() as ran:
            forward(watch.model, ids)
        planned = len(ran)
        sides = {"eager": calls(lambda: forward(model, ids), samples=3)}
        sides["fused"] = calls(lambda: forward(watch.model, ids), samples=3)
        rounds = interleave(sides, 4 if quick else 20)
    finally:
        watch.session.remove()
    spreads = rounds.spreads()
    ratio = rounds.speedup("eager", "fused")
    return {
        "speedup": ratio.p50, "p20": ratio.p20, "p80": ratio.p80, "plans_run": planned,
        "eager_us": spreads["eager"].p50, "fused_us": spreads["fused"].p50,
    }  # fmt: skip


# ---- calls


@dataclass(frozen=True, slots=True)
class Decoded:
    """What a greedy decode gave: a tensor of logits per step, the tokens, and the cache after it."""

    logits: tuple[torch.Tensor, ...]
    tokens: torch.Tensor
    cache: Any


def _ids(batch: int, length: int, seed: int) -> torch.Tensor:
    return torch.randint(3, 100, (batch, length), generator=torch.Generator().manual_seed(seed))


def _forwards() -> Iterator[torch.Tensor]:
    """Token ids of the forwards: every shape several times, with other tokens each time."""
    for number, shape in enumerate(_SHAPES):
        for turn in range(_TURNS):
            yield _ids(*shape, seed=10 * number + turn)


def _decode(model: Any, prompt: torch.Tensor) -> Decoded:
    """A prefill and greedy steps with the model's default cache."""
    made = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=_STEPS + 1, do_sample=False, eos_token_id=None,
        pad_token_id=0, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    cache = next((made[k] for k in _CACHES if made.get(k) is not None), ())
    return Decoded(tuple(made.logits), made.sequences, cache)


def _attempt(call: Callable[..., Any], model: Any, *arguments: Any) -> Any:
    """What a call of a model gives, or the error it raises; of a model that is an error, that error."""
    if isinstance(model, Exception):
        return model
    try:
        return call(model, *arguments)
    except Exception as error:
        return error


class Watch:
    """A model under fusion whose plans can be seen to run.

    Attributes:
        model: the model.
        session: its fusion.
        partition_seconds: by the id of a partition, what making it took, lowering included.
    """

    def __init__(self, model: Any, config: Mapping[str, Any]) -> None:
        self.model = model
        self.session = Session(model, Stages(config))
        self.partition_seconds: dict[int, float] = {}
        stages, template = self.session.stages, self.session.stages.template

        def timed(*args: Any) -> Any:
            start = time.perf_counter()
            made = template(*args)
            self.partition_seconds.setdefault(id(made.partition), time.perf_counter() - start)
            return made

        stages.template = timed  # type: ignore[method-assign]  # observed from outside

    @contextmanager
    def observed(self) -> Iterator[list[Compiled]]:
        """Collects what each plan that answers a call was made from, in order."""
        ran: list[Compiled] = []
        kept = []
        for _, scope in self.session.scopes:
            compiled = {plan.run: held for known in scope.known for held, plan in known.plans.values()}
            kept.append((scope.cache.plans, list(scope.cache.plans)))
            scope.cache.plans[:] = [_observing(run, compiled[run], ran) for run in scope.cache.plans]
        try:
            yield ran
        finally:
            for plans, before in kept:
                if any(hasattr(run, "observed") for run in plans):  # else the scope published others meanwhile
                    plans[:] = before

    def report(self) -> dict[str, Any]:
        """What the report says of scopes that are not planned, and the counters."""
        report = self.session.report()
        told = [(s.name, s.state, s.reason[:300]) for s in report.scopes if s.reason or s.state != "fused"]
        return {
            "scopes": len(report.scopes), "not_fused": told[:12], "fallbacks": report.totals.fallbacks,
            "recordings": sum(s.recordings for s in report.scopes),
        }  # fmt: skip


def _observing(run: Callable[..., Any], compiled: Compiled, ran: list[Compiled]) -> Callable[..., Any]:
    def observed(*arguments: Any) -> Any:
        result = run(*arguments)
        if result is not MISS:
            ran.append(compiled)
        return result

    observed.observed = True  # type: ignore[attr-defined]  # a mark, against observing twice
    return observed
