"""A kernel's trial: made data at the sizes that reach every branch of it, before it sees data of the user's.

Once for a kernel's text, its graph and the compiler; the verdict is kept in the store. Operators run first, so that a
kernel is tried only on what they allow; then it runs in a process of its own; then its results here are compared.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fusion.kernels import processes
from fusion.kernels.backend import Artifact, FirstRuns, backend_named
from fusion.kernels.bundle import Nest
from fusion.kernels.lower import given_symbols
from fusion.kernels.store import Store
from fusion.patterns.agree import References, choosing, disagreement, equal
from fusion.patterns.errors import FusionError, StructureMismatch
from fusion.patterns.graph import SubGraph
from fusion.patterns.reference import run_as_told, run_fp64, run_singly
from fusion.patterns.samples import Draw, draws, made_inputs, reduces
from fusion.patterns.shortage import is_shortage

_FORMAT = 1  # of what is stored, and of what a trial covers: one more where either changes
# What is shown at every size, the second where rows are put together; the rest is shown at the first size only.
_EVERYWHERE = (Draw.PLAIN, Draw.LARGE)
_NEED_MORE = frozenset(("var", "std", "var_mean", "std_mean"))  # than one element: torch writes a warning to stderr
_REST = 16  # for symbols that the kernel does not have, and only operators before it read

Launcher = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Case:
    """One made call of a kernel: its sizes, the kind of its values, its inputs, and eager's outputs."""

    sizes: Mapping[str, int]
    draw: Draw
    inputs: Mapping[str, torch.Tensor]
    eager: Mapping[str, torch.Tensor]


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
        self._first_runs: dict[str, FirstRuns[Any]] = {}  # by the backend's name
        self._cases: dict[tuple[str, int], tuple[Nest, list[Case]]] = {}  # by graph and nest, of kernels to come

    @contextlib.contextmanager
    def ahead(self, backend: str, kernels: Sequence[tuple[SubGraph, Nest]]) -> Iterator[None]:
        """Inside, kernels are compiled; meanwhile what their trials need is made.

        Args:
            backend: its name.
            kernels: each the graph it computes and its loops.
        """
        if not kernels or backend_named(backend).isolation is None:
            yield
            return
        self._prepare(backend)
        with processes.meanwhile(lambda: self._foresee(backend, kernels)):
            yield

    def _prepare(self, backend: str) -> None:
        """Starts the process that runs a backend's new kernels first, so that it is ready when they are compiled."""
        isolation = backend_named(backend).isolation
        if isolation is not None and backend not in self._first_runs:
            self._first_runs[backend] = isolation.start()

    def _foresee(self, backend: str, kernels: Sequence[tuple[SubGraph, Nest]]) -> None:
        for graph, nest in kernels:
            with contextlib.suppress(Exception):  # met again, and told, when the kernel is tried
                self._cases[graph.digest, id(nest)] = nest, made_cases(graph.canonical, nest, backend)

    def close(self) -> None:
        """Ends such processes where no kernel came, and forgets the calls that were made for it."""
        self._cases.clear()
        while self._first_runs:
            self._first_runs.popitem()[1].close()

    def verdicts(self, kernels: Sequence[tuple[SubGraph, Artifact, Launcher]]) -> list[Verdict]:
        """A verdict on each kernel, in order; those that are new are tried together.

        Args:
            kernels: each with the graph it computes and what launches it; of backends that have an `isolation`.
        """
        keys = [_key(graph, kernel) for graph, kernel, _ in kernels]
        fresh = {key: k for key, k in zip(keys, kernels, strict=True) if self._remembered(key) is None}
        for backend in dict.fromkeys(kernel.target for _, kernel, _ in fresh.values()):
            self._prepare(backend)
            of_backend = {key: made for key, made in fresh.items() if made[1].target == backend}
            self._try(of_backend, self._first_runs[backend])
        self.close()
        return [self.known[key] for key in keys]

    def _try(self, fresh: Mapping[str, tuple[SubGraph, Artifact, Launcher]], first_runs: FirstRuns[Any]) -> None:
        cases = {key: self._cases_of(graph, kernel) for key, (graph, kernel, _) in fresh.items()}
        at = [(fresh[key][1], _distinct([c.sizes for c in made])) for key, made in cases.items()]
        faults = first_runs.outcome(at)
        for k, (key, (graph, kernel, launch)) in enumerate(fresh.items()):
            fault = faults.get(k)
            if fault is not None:
                self._remember(key, Verdict("launch_error", f"the kernel is not run: {fault.reason}"), fault.lasting)
                continue
            try:
                self._remember(key, _Comparison(graph.canonical, cases[key]).verdict(kernel, launch))
            except Exception as error:  # of an operator, say: it says nothing lasting about the kernel
                if is_shortage(error):
                    raise
                self._remember(key, Verdict("unproved", f"the trial failed: {type(error).__name__}: {error}"), False)

    def _cases_of(self, graph: SubGraph, kernel: Artifact) -> list[Case]:
        _, foreseen = self._cases.get((graph.digest, id(kernel.nest)), (None, None))
        return made_cases(graph.canonical, kernel.nest, kernel.target) if foreseen is None else foreseen

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


def made_cases(graph: SubGraph, nest: Nest, backend: str) -> list[Case]:
    """The calls that a kernel is tried on: those of its branches' sizes that the graph's operators allow.

    Args:
        graph: canonical.
        nest: its loops.
        backend: the name of the one that compiles them.
    """
    kinds = draws(graph)
    everywhere = _EVERYWHERE if reduces(graph) else _EVERYWHERE[:1]
    repeated = not _NEED_MORE.isdisjoint(node.op.split(".")[1] for node in graph.nodes)
    isolation = backend_named(backend).isolation
    for of_branches in isolation.sizes(nest) if isolation is not None else ():
        cases: list[Case] = []
        for sizes in of_branches:
            full = {**dict.fromkeys(graph.symbols, _REST), **sizes}
            if repeated and 1 in full.values():
                continue
            wanted = [d for d in kinds if d in everywhere] if cases else kinds
            cases += [case for draw in wanted if (case := _case(graph, full, draw)) is not None]
        if cases:
            return cases
    return []


def _case(graph: SubGraph, sizes: Mapping[str, int], draw: Draw) -> Case | None:
    """A made call; None where operators do not allow it, or make anything of another shape than the graph says."""
    try:
        inputs = dict(zip(graph.inputs, made_inputs(graph, sizes, draw), strict=True))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            eager = run_as_told(graph, inputs, sizes)
    except (RuntimeError, ValueError, IndexError, TypeError, ZeroDivisionError, FusionError):
        return None
    return None if eager is None else Case(sizes, draw, inputs, eager)


class _Comparison:
    """Runs a kernel on its cases and compares. References that cost more are made where cheaper ones do not settle it.

    Args:
        graph: canonical.
        cases: the calls.
    """

    def __init__(self, graph: SubGraph, cases: Sequence[Case]) -> None:
        self.graph = graph
        self.cases = cases
        self.signs = not choosing(graph)

    def verdict(self, kernel: Artifact, launch: Launcher) -> Verdict:
        names = given_symbols(kernel.nest)
        for case in self.cases:
            try:
                made = launch(*case.inputs.values(), *(case.sizes[name] for name in names))
            except StructureMismatch:
                continue  # it does not take such tensors: operators would run
            results = made if isinstance(made, tuple) else (made,)
            wrong = self._wrong(case, dict(zip(self.graph.outputs, results, strict=True)))
            if wrong:
                where = ", ".join(f"{name}={size}" for name, size in case.sizes.items())
                return Verdict("inaccurate", f"On made data ({case.draw.value}; {where}), {wrong}")
        return Verdict()

    def _wrong(self, case: Case, results: Mapping[str, torch.Tensor]) -> str:
        open_ = {name: fused for name, fused in results.items() if not equal(fused, case.eager[name])}
        if not open_:
            return ""
        exact = run_fp64(self.graph, case.inputs, case.sizes)
        among = {name: References(case.eager[name], exact[name]) for name in open_}
        if not any(disagreement(f, among[name], 0.0, signs=self.signs) for name, f in open_.items()):
            return ""
        singly = run_singly(self.graph, case.inputs, case.sizes)
        for name, fused in open_.items():
            full = References(case.eager[name], exact[name], singly[name])
            wrong = disagreement(fused, full, self._relative(case.draw, name), signs=self.signs)
            if wrong:
                return f"output {name!r}: {wrong}"
        return ""

    def _relative(self, draw: Draw, name: str) -> float:
        """Eager's worst error over the scale of the result, on data of one kind at all sizes."""
        worst = 0.0
        for case in self.cases:
            if case.draw is draw and case.eager[name].is_floating_point() and case.eager[name].numel():
                among = References(case.eager[name], run_fp64(self.graph, case.inputs, case.sizes)[name])
                worst = max(worst, among.error / scale if (scale := among.scale) else 0.0)
        return worst


def _distinct(sizes: Sequence[Mapping[str, int]]) -> list[Mapping[str, int]]:
    return list({tuple(s.items()): s for s in sizes}.values())


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _key(graph: SubGraph, kernel: Artifact) -> str:
    parts = ["trial", _FORMAT, graph.digest, kernel.digest, torch.__version__, torch.get_num_threads()]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
