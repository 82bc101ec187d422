"""The pass under the fuzzer: made quick; every kernel is proved, and used anyway; errors that it caught are its own."""

from __future__ import annotations

import functools
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from fuzz_compare import Mismatch
from fuzz_numerics import EXACT

from fusion.choices.decision import Decision
from fusion.choices.heuristics import FusionHeuristics
from fusion.choices.trial import Trials, Verdict
from fusion.kernels.backends.cpp import compile as cpp_compile
from fusion.kernels.store import Store
from fusion.patterns.graph import SubGraph
from fusion.patterns.ops import canonical

# torch's shadow tensors cannot be padded by some symbolic sizes, and refuse an empty norm and a softmax of no bools,
# which its kernels take; a double cannot be checked to more places than it has. A condition that fails after an effect
# is no fault of a plan's.
KNOWN = (
    "Repeats cannot be negative",
    "Deoptimized",
    "Cannot call storage_offset()",
    "linalg.vector_norm cannot compute",
    "operator, with two bool tensors is not supported",
    "one ulp of float64",
)
BUGS = {
    "inaccurate",
    "plan_mismatch",
    "plan_error",
    "launch_error",
    "compile_error",
    "recorder_error",
    "shape_mismatch",
}


@functools.cache
def _folder() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fusion-fuzz-")


@contextmanager
def quick() -> Iterator[None]:
    """Keeps kernels for this process and silences torch's logs. Kernels are used untried: what they compute is seen.

    The compiler's flags are those of every other use: at -O1 and -O2 g++ 12 vectorises some loops that run backwards
    wrong, which would be no finding.
    """
    logging.disable(logging.CRITICAL)
    before = cpp_compile.compile_cpp
    store = Store(Path(_folder().name))
    cpp_compile.compile_cpp = lambda nests, _: before(nests, store)  # type: ignore[assignment]
    tried = Trials.verdicts
    Trials.verdicts = lambda self, kernels: [Verdict()] * len(kernels)  # type: ignore[method-assign]
    try:
        yield
    finally:
        cpp_compile.compile_cpp, Trials.verdicts = before, tried  # type: ignore[method-assign]
        logging.disable(logging.NOTSET)


@contextmanager
def proofs() -> Iterator[list[tuple[Decision, SubGraph]]]:
    """Proves every kernel, and uses also those that fail the proof, which it gives: what they compute is seen too."""
    judge = FusionHeuristics.judge
    failed: list[tuple[Decision, SubGraph]] = []

    def judged(self: FusionHeuristics, graph: SubGraph, *given: Any, **named: Any) -> Decision:
        decision = judge(self, graph, *given, **named)
        if decision.code != "inaccurate":
            return decision
        failed.append((decision, graph))
        return replace(decision, fused=True, code="unmeasured")

    FusionHeuristics.judge = judged  # type: ignore[method-assign]
    try:
        yield failed
    finally:
        FusionHeuristics.judge = judge  # type: ignore[method-assign]


def judge_proofs(failed: list[tuple[Decision, SubGraph]]) -> None:
    """A kernel of exact operators has one right result, and no excuse.

    Args:
        failed: what `proofs` gave.

    Raises:
        Mismatch: there is one.
    """
    for decision, graph in failed:
        if not _is_known(decision.reason) and _exact(graph):
            raise Mismatch("inaccurate", f"a kernel fails its proof: {decision.reason}\n{graph}")


def complain(scopes: list[Any], raised: bool) -> None:
    """Errors that the pass caught by itself are its own.

    Args:
        scopes: of the module.
        raised: whether eager did: then a plan stops too.

    Raises:
        Mismatch: there is one.
    """
    for scope in scopes:
        said = [*scope.refused.values(), *(k.refusal for k in scope.known), scope.statistics.last_failure]
        for refusal in said:
            users = raised and refusal is not None and refusal.code == "plan_error"
            if refusal is not None and refusal.code in BUGS and not users and not _is_known(refusal.sentence):
                raise Mismatch(refusal.code, f"the pass refused: {refusal}")
        for known in scope.known:
            for compiled, _ in known.plans.values():
                for candidate in compiled.candidates:
                    decision = candidate.decision
                    if decision.code in BUGS and not _is_known(decision.reason):
                        said = f"a kernel was refused: {decision.code}: {decision.reason}"
                        raise Mismatch(decision.code, f"{said}\n{candidate.region.subgraph}")


def _exact(graph: SubGraph) -> bool:
    """Whether every operator of a region has one right result: then none may be worse than eager's.

    Of a few elements, whose errors are by chance a tenth of an ulp in one order of a sum and a whole one in another,
    the proof says nothing; `fuzz_check` judges such results by how far rounding can move them.
    """
    names = [canonical(node.op).split(".")[1] for node in graph.nodes]
    return all(name in EXACT for name in names)


def _is_known(sentence: str) -> bool:
    return any(text in sentence for text in KNOWN)
