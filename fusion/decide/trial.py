"""A kernel's trial: made data at the sizes that reach every branch of it, before it sees data of the user's.

Once for a kernel's text, its graph and the compiler; the verdict is kept in the store. Operators run first, so that a
kernel is tried only on what they allow; then it runs in a process of its own; then its results here are compared.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fusion.kernels.apart import FirstRuns
from fusion.kernels.compiler import CompiledKernel
from fusion.kernels.emit.cpp_sizes import branch_sizes
from fusion.kernels.lower import given_symbols
from fusion.kernels.store import Store
from fusion.patterns import symbols
from fusion.patterns.agree import References, choosing, disagreement
from fusion.patterns.errors import FusionError
from fusion.patterns.graph import SubGraph
from fusion.patterns.reference import run, run_fp64, run_singly
from fusion.patterns.samples import Draw, draws, made_inputs

_FORMAT = 1  # of what is stored, and of what a trial covers: one more where either changes
# What data shows at any size; the rest is shown where the kernel is at its plainest.
_EVERYWHERE = (Draw.PLAIN, Draw.LARGE, Draw.SPECIAL)
_REST = 16  # for symbols that the kernel does not have, and only operators before it read

Launcher = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One made call of a kernel: its sizes, the kind of its values, its inputs and what each output has to be."""

    sizes: Mapping[str, int]
    draw: Draw
    inputs: tuple[torch.Tensor, ...]
    outputs: tuple[References, ...]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a trial found: a refusal code and a sentence, both empty for a kernel that passed."""

    code: str = ""
    reason: str = ""


class Trials:
    """Tries kernels and remembers the verdicts.

    Args:
        store: where verdicts are kept beyond this process; None keeps them here only.
    """

    def __init__(self, store: Store | None) -> None:
        self.store = store
        self.known: dict[str, Verdict] = {}

    def verdicts(self, kernels: Sequence[tuple[SubGraph, CompiledKernel, Launcher]]) -> list[Verdict]:
        """A verdict on each kernel, in order; those that are new are tried together.

        Args:
            kernels: each with the graph it computes and what launches it.
        """
        keys = [_key(graph, kernel) for graph, kernel, _ in kernels]
        fresh = {key: k for key, k in zip(keys, kernels, strict=True) if self._remembered(key) is None}
        if fresh:
            first_runs = FirstRuns()
            try:
                self._try(fresh, first_runs)
            finally:
                first_runs.close()
        return [self.known[key] for key in keys]

    def _try(self, fresh: Mapping[str, tuple[SubGraph, CompiledKernel, Launcher]], first_runs: FirstRuns) -> None:
        cases = {key: made_cases(graph.canonical, kernel) for key, (graph, kernel, _) in fresh.items()}
        at = [(fresh[key][1], _distinct([c.sizes for c in made])) for key, made in cases.items()]
        faults = first_runs.outcome(at)
        for k, (key, (graph, kernel, launch)) in enumerate(fresh.items()):
            fault = faults.get(k)
            if fault is not None:
                self._remember(key, Verdict("launch_error", f"the kernel is not run: {fault.reason}"), fault.lasting)
            else:
                self._remember(key, _compared(graph, kernel, launch, cases[key]))

    def _remembered(self, key: str) -> Verdict | None:
        if key not in self.known and self.store is not None:
            found = self.store.get_json(key)
            if isinstance(found, dict) and set(found) == {"code", "reason"} and all(map(_is_text, found.values())):
                self.known[key] = Verdict(**found)
        return self.known.get(key)

    def _remember(self, key: str, verdict: Verdict, lasting: bool = True) -> None:
        self.known[key] = verdict
        if self.store is not None and lasting:
            self.store.put_json(key, {"code": verdict.code, "reason": verdict.reason})


def made_cases(graph: SubGraph, kernel: CompiledKernel) -> list[Case]:
    """The calls that a kernel is tried on: those of its branches' sizes that the graph's operators allow.

    Args:
        graph: canonical.
        kernel: what computes it.
    """
    cases: list[Case] = []
    kinds = draws(graph)
    plain = True
    for sizes in branch_sizes(kernel.nest):
        full = {**dict.fromkeys(graph.symbols, _REST), **sizes}
        wanted = kinds if plain else [d for d in kinds if d in _EVERYWHERE]
        made = [case for draw in wanted if (case := _case(graph, full, draw)) is not None]
        plain = plain and not made
        cases += made
    return cases


def _case(graph: SubGraph, sizes: Mapping[str, int], draw: Draw) -> Case | None:
    """A made call; None where operators do not allow it, or make other shapes of it than the graph says."""
    try:
        inputs = made_inputs(graph, sizes, draw)
        named = dict(zip(graph.inputs, inputs, strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ways = [way(graph, named, sizes) for way in (run, run_singly, run_fp64)]
    except (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError, FusionError):
        return None
    for name in graph.outputs:
        if list(ways[0][name].shape) != [symbols.evaluate(d, sizes) for d in graph.spec[name].shape]:
            return None
    return Case(sizes, draw, tuple(inputs), tuple(References(*(way[name] for way in ways)) for name in graph.outputs))


def _compared(graph: SubGraph, kernel: CompiledKernel, launch: Launcher, cases: Sequence[Case]) -> Verdict:
    """Runs the kernel on every case."""
    relative = _relative_errors(cases)
    signs = not choosing(graph)
    names = given_symbols(kernel.nest)
    for case in cases:
        try:
            made = launch(*case.inputs, *(case.sizes[name] for name in names))
        except FusionError:
            continue  # it does not take such tensors: operators would run
        results = made if isinstance(made, tuple) else (made,)
        for k, (fused, among) in enumerate(zip(results, case.outputs, strict=True)):
            wrong = disagreement(fused, among, relative[case.draw, k], signs=signs)
            if wrong:
                where = ", ".join(f"{name}={size}" for name, size in case.sizes.items())
                return Verdict("inaccurate", f"On made {case.draw.value} data ({where}), of output {k} {wrong}")
    return Verdict()


def _relative_errors(cases: Sequence[Case]) -> dict[tuple[Draw, int], float]:
    """Eager's worst error over the scale of the result, for each kind of data and output, over all sizes."""
    worst: dict[tuple[Draw, int], float] = {}
    for case in cases:
        for k, among in enumerate(case.outputs):
            scale = among.scale
            worst[case.draw, k] = max(worst.get((case.draw, k), 0.0), among.error / scale if scale else 0.0)
    return worst


def _distinct(sizes: Sequence[Mapping[str, int]]) -> list[Mapping[str, int]]:
    return list({tuple(s.items()): s for s in sizes}.values())


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _key(graph: SubGraph, kernel: CompiledKernel) -> str:
    parts = ["trial", _FORMAT, graph.digest, kernel.digest, torch.__version__, torch.get_num_threads()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
