"""From `enable` to the first fused call with empty caches, beside torch.compile of the same model."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from .measure import Spread
from .options import Options
from .rows import Row, Target, make_row

TIMEOUT = 300  # seconds torch.compile may take; it is then said to take at least as long
_MOST_SECONDS = 3.0
_RATIO = 25.0
_MOST_ERROR = 1e-3  # of fp32 logits of order 0.1: far above any order of summation, far below a wrong operator
_CACHES = ("FUSION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")

Events = list[dict[str, Any]]


def run(options: Options) -> list[Row]:
    """Rows of seconds, and of torch.compile's seconds against ours, for prefill and with decode."""
    layers = 2 if options.quick else 28
    turns = 1 if options.quick else 3
    ours = [_child("fusion", layers)[0] for _ in range(turns)]
    theirs, late = ([], False) if options.skip_compile else _child("torch.compile", layers)
    rows: list[Row] = []
    for event, measured in (("prefill", "prefill"), ("decode", "prefill and decode")):
        rows += _rows(options, event, measured, ours, theirs, late)
    return rows


def _rows(options: Options, event: str, measured: str, ours: list[Events], theirs: Events, late: bool) -> list[Row]:
    why = [reason for events in ours for reason in _wrong(events, event)]
    facts: dict[str, Any] = {
        "fusion": ours,
        "torch.compile": theirs,
        "torch.compile_stopped_after_s": TIMEOUT if late else None,
    }
    firsts = [[e for e in events if e["event"] == event and e.get("fused")] for events in ours]
    seconds = Spread.of([e[0]["seconds"] for e in firsts]) if all(firsts) else None
    command = options.command("cold")
    name = f"cold start to the first fused call, {2 if options.quick else 28} layers, {measured}"
    rows = [
        make_row(
            "cold", options.label(name), seconds, " s", Target("at most", _MOST_SECONDS), why=why, facts=facts,
            command=command,
        )
    ]  # fmt: skip
    if options.skip_compile:
        return rows
    reached = [e for e in theirs if e["event"] == event]
    if not reached and not late:
        why = [*why, f"torch.compile ended before {event}; run `python -m bench.cold_child torch.compile`"]
    longest = reached[0]["seconds"] if reached else float(TIMEOUT)
    facts = {**facts, "torch.compile_seconds": longest, "torch.compile_seconds_is_a_lower_bound": not reached}
    ratio = longest / seconds.p50 if seconds else None
    label = options.label(f"cold start, {measured}: torch.compile{' (stopped)' if not reached else ''} against ours")
    bound = Target("at least", _RATIO)
    return [*rows, make_row("cold", label, ratio, "x", bound, why=why, facts=facts, command=command)]


def _wrong(events: Events, event: str) -> list[str]:
    """What speaks against a cold start being one."""
    if not any(e["event"] == event and e["fused"] for e in events):
        return [f"no {event} call ran fused in every scope"]
    found = [f"{e['cache_hits']} kernels came from a cache" for e in events if e["cache_hits"]]
    found += [f"{e['fallbacks']} fallbacks" for e in events if e["fallbacks"]]
    far = [e["distance_to_eager"] for e in events if not e["distance_to_eager"] <= _MOST_ERROR]
    return found + [f"logits are {distance:.3g} from eager's" for distance in far]


def _child(way: str, layers: int) -> tuple[Events, bool]:
    """A fresh process with empty caches: the events it printed, and whether it was stopped at the time limit."""
    with tempfile.TemporaryDirectory(prefix="fusion-bench-") as folder:
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FUSION_")}
        environment |= {name: str(Path(folder) / name.lower()) for name in _CACHES} | {"HF_HUB_OFFLINE": "1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "bench.cold_child", way, str(layers)],
            cwd=Path(__file__).parent.parent, env=environment, stdout=subprocess.PIPE, text=True,
            start_new_session=True,
        )  # fmt: skip
        try:
            output, _ = process.communicate(timeout=TIMEOUT)
            late = False
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # its own session: torch.compile's workers end with it
            output, _ = process.communicate()
            late = True
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")], late
