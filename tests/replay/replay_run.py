"""Cases, each in a process of its own, so that none meets what another has left."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Sequence
from multiprocessing import connection
from typing import Any

import torch
from replay_cases import cases
from replay_functions import FUNCTIONS
from replay_stages import texts


def isolate() -> None:
    """Takes away from this process what differs between machines: compilers, settings, threads."""
    for name in [name for name in os.environ if name.startswith("FUSION_")]:
        del os.environ[name]
    os.environ.pop("CXX", None)
    os.environ |= {"PATH": "", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    torch.set_num_threads(1)


def run(names: Sequence[str], jobs: int) -> tuple[dict[str, dict[str, str]], dict[str, str]]:
    """The texts of cases by stage, and of those that failed why.

    Processes are forked after one case of each kind has run here: importing takes longer than a case.

    Args:
        names: of cases.
        jobs: processes at a time.
    """
    for name in ("swiglu",) if FUNCTIONS.keys() >= set(names) else ("swiglu", "bert"):
        texts(cases()[name])
    context = multiprocessing.get_context("fork")
    waiting, running = list(names), dict[Any, tuple[str, Any]]()
    found: dict[str, dict[str, str] | str] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_child, args=(theirs, waiting[0]))
            process.start()
            theirs.close()
            running[ours] = (waiting.pop(0), process)
        for ready in connection.wait(list(running)):
            name, process = running.pop(ready)
            try:
                found[name] = ready.recv()
            except EOFError:
                process.join()
                found[name] = f"its process ended with {process.exitcode}"
            process.join()
    results = {name: found[name] for name in names}
    made = {name: result for name, result in results.items() if isinstance(result, dict)}
    return made, {name: result for name, result in results.items() if isinstance(result, str)}


def _child(pipe: Any, name: str) -> None:
    try:
        pipe.send(texts(cases()[name]))
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {error}")
