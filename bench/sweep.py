"""Every causal language model that transformers knows, tiny and random: equal to eager, how much fuses, how fast.

Each architecture is measured in its own process, so that one that crashes or hangs is a row with its reason.
"""

from __future__ import annotations

import multiprocessing
import os
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from .architectures import names
from .measure import Spread
from .options import Options
from .rows import Row, Target, make_row
from .sweep_one import PARTS, measure

_SECONDS = 420  # one architecture may take; the slowest took 200 here with other programs running
_QUICK = 4  # architectures of a quick sweep: the first that can be made tiny
_MOST_UNEQUAL = 12  # differences kept per architecture

Results = dict[str, dict[str, Any]]


def run(options: Options) -> list[Row]:
    """The rows of the sweep; the first one's facts hold what was found about each architecture."""
    parts = (options.only,) if options.only else PARTS
    wanted = [name for name in names() if re.fullmatch(options.models or ".*", name)]
    with tempfile.TemporaryDirectory(prefix="fusion-sweep-") as cache:
        results = _all(wanted, parts, os.environ.get("FUSION_CACHE_DIR", cache), options)
    return rows_of(results, parts, options)


def _all(wanted: list[str], parts: tuple[str, ...], cache: str, options: Options) -> Results:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.sweep_one"])
    results: Results = {}

    def one(name: str) -> None:
        if not (options.quick and sum("skipped" not in r for r in results.values()) >= _QUICK):
            results[name] = _isolated(context, name, parts, cache, options.quick)
            print(f"  {name}: {_line(results[name])}", flush=True)

    with ThreadPoolExecutor(max(1, options.jobs)) as pool:
        list(pool.map(one, wanted))
    return {name: results[name] for name in wanted if name in results}


def _isolated(context: Any, name: str, parts: tuple[str, ...], cache: str, quick: bool) -> dict[str, Any]:
    """Measures an architecture in a process of its own."""
    mine, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_child, args=(theirs, name, parts, cache, quick), daemon=True)
    process.start()
    theirs.close()
    try:
        if not mine.poll(_SECONDS):
            return {"error": f"stopped after {_SECONDS} s"}
        found: dict[str, Any] = mine.recv()
        return found
    except EOFError:
        process.join(10)
        return {"error": f"the process ended with {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def _child(pipe: Any, name: str, parts: tuple[str, ...], cache: str, quick: bool) -> None:
    try:
        pipe.send(measure(name, parts, cache, quick))
    except Exception as error:
        pipe.send({"error": f"{type(error).__name__}: {str(error)[:300]}"})


def _line(result: dict[str, Any]) -> str:
    """An architecture's result in a line."""
    for reason in ("skipped", "error"):
        if reason in result:
            return f"{reason}: {result[reason][:150]}"
    said = []
    if (equality := result.get("equality")) is not None:
        said.append("equal" if equality["equal"] else f"NOT EQUAL: {equality['differences'][0][:100]}")
        said += [] if equality["planned"] else [f"not planned: {equality['plans_run']}"]
    if (fusion := result.get("fusion")) is not None:
        said.append(f"{fusion['share']:.0%} fused, {fusion['launches_eager']} -> {fusion['launches_fused']} launches")
    if (timed := result.get("time")) is not None:
        said.append(f"{timed['speedup']:.2f}x")
    return ", ".join(said)


# ---- rows


def rows_of(results: Results, parts: Iterable[str], options: Options) -> list[Row]:
    """The claims over all architectures that were measured."""
    measured = {name: r for name, r in results.items() if "skipped" not in r}
    why = [] if measured else ["no architecture could be measured"]
    rows: list[Row] = []

    def row(what: str, value: Spread | float | None, unit: str, target: Target, **facts: Any) -> None:
        label = options.label(f"{what}, {len(measured)} architectures")
        command = options.command("sweep")
        rows.append(make_row("sweep", label, value, unit, target, why=why, facts=facts, command=command))

    if "equality" in parts:
        equal = {name: r.get("equality", {}).get("equal", False) for name, r in measured.items()}
        row(
            "equal to eager: forward, other shapes, prefill and 8 decode steps",
            100 * sum(equal.values()) / max(1, len(equal)), "%", Target("at least", 100),
            unequal={n: _why_unequal(measured[n]) for n, same in equal.items() if not same},
            unplanned=[n for n, r in measured.items() if not r.get("equality", {}).get("planned")],
            without_decode={n: d for n, r in measured.items() if isinstance(d := _of(r, "equality", "decoded"), str)},
            skipped={n: r["skipped"] for n, r in results.items() if "skipped" in r},
        )  # fmt: skip
    if "fusion" in parts:
        _fusion_rows(measured, row)
    if "time" in parts:
        speedups = _values(measured, "time", "speedup")
        row("fused forward against eager, median", _spread(speedups), "x", Target("at least", 1.8))
        slowest = min(speedups.values(), default=None)
        row("fused forward against eager, slowest", slowest, "x", Target("at least", 0.97), by_name=speedups)
    if rows:
        rows[0].facts["architectures"] = results
    return rows


def _fusion_rows(measured: Results, row: Callable[..., None]) -> None:
    shares = {n: 100 * v for n, v in _values(measured, "fusion", "share").items()}
    tenth = sorted(shares.values())[len(shares) // 10] if shares else None
    left = _summed(measured, "unfused_operators")
    refused = _summed(measured, "refused")
    row("fusable operators inside kernels, median", _spread(shares), "%", Target("at least", 90), left=left)
    row("fusable operators inside kernels, 10th percentile", tenth, "%", Target("at least", 70), refused=refused)
    steps = {n: 100 * v for n, v in _values(measured, "decode", "share").items()}
    row("the same in a decode step, median", _spread(steps), "%", Target("at least", 90), by_name=steps)
    tenth = sorted(steps.values())[len(steps) // 10] if steps else None
    row("the same in a decode step, 10th percentile", tenth, "%", Target("at least", 70))
    fewer = _fewer_launches(measured, "fusion")
    row("fewer launches outside libraries, median", _spread(fewer), "x", Target("at least", 4), by_name=fewer)
    fewer = _fewer_launches(measured, "decode")
    row("fewer launches in a decode step, median", _spread(fewer), "x", Target("at least", 4), by_name=fewer)
    compiled = _values(measured, "recompiled", "kernels")
    worst = max(compiled.values(), default=None)
    again = {n: v for n, v in compiled.items() if v}
    recorded = {n: v for n, v in _values(measured, "recompiled", "recordings").items() if v}
    pairs = max(_values(measured, "recompiled", "pairs").values(), default=0)
    what = f"kernels compiled over {pairs:.0f} more shapes, worst"
    row(what, worst, "", Target("at most", 0), by_name=again, recorded=recorded)
    seconds = _values(measured, "fusion", "partition_and_emit_seconds")
    row("partition and emit, median", _spread(seconds), " s", Target("at most", 0.3))


def _fewer_launches(measured: Results, part: str) -> dict[str, float]:
    return {
        n: f["launches_eager"] / max(1, f["launches_fused"])
        for n, r in measured.items()
        if (f := r.get(part)) is not None and f["launches_eager"]
    }


def _of(result: dict[str, Any], part: str, key: str) -> Any:
    return (result.get(part) or {}).get(key)


def _values(measured: Results, part: str, key: str) -> dict[str, float]:
    return {name: v for name, r in measured.items() if (v := _of(r, part, key)) is not None}


def _spread(values: dict[str, float]) -> Spread | None:
    return Spread.of(list(values.values())) if values else None


def _summed(measured: Results, key: str) -> dict[str, int]:
    """Counts of all architectures together, the most frequent first."""
    total: Counter[str] = Counter()
    for result in measured.values():
        total.update(_of(result, "fusion", key) or {})
    return dict(total.most_common(40))


def _why_unequal(result: dict[str, Any]) -> list[str]:
    return [result["error"]] if "error" in result else result["equality"]["differences"][:_MOST_UNEQUAL]
