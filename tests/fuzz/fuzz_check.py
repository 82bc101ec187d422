"""One program, fused against eager: results, arguments, state, memory, and what the pass says of itself."""

from __future__ import annotations

import copy
import functools
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from fuzz_failure import calls
from fuzz_numerics import EXACT, MOST_ULPS, Unspecified, Watch
from fuzz_program import Program, load
from torch.utils import _pytree as pytree

import fusion
from fusion import api
from fusion.choices.decision import Decision
from fusion.choices.heuristics import FusionHeuristics
from fusion.choices.trial import Trials, Verdict
from fusion.kernels.backends.cpp import compile as cpp_compile
from fusion.kernels.store import Store
from fusion.patterns.graph import SubGraph
from fusion.patterns.ops import canonical

TRIALS = 8
_LOST = 0.5  # of a value: moved so far, it is what rounding left
SLACK = 6.0  # TRIALS random moves see a part of how far results can move; a normal deviation's 6 sigma
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


class Mismatch(Exception):
    """Fused and eager differ, or the pass had to catch an error of its own.

    Attributes:
        kind: "values", "structure", "raised", "random", or the code of a refusal; it stays the same while a program is
            shrunk.
    """

    def __init__(self, kind: str, message: str) -> None:
        self.kind = kind
        super().__init__(message)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What checking a program exercised.

    Attributes:
        calls: calls compared.
        planned: of these, those that a plan answered.
        kernels: kernels in use at the end.
        skipped: calls whose result torch does not specify.
        unproved: kernels that failed their proof as inexact ones may, and were used all the same.
        refusal: the reason code of a program that stayed eager, or "".
    """

    calls: int = 0
    planned: int = 0
    kernels: int = 0
    skipped: int = 0
    unproved: int = 0
    refusal: str = ""


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


def check(program: Program) -> Outcome:
    """Calls a program at each of its sizes, fused and eager.

    Raises:
        Mismatch: they differ.
    """
    return _Check(program).run()


@contextmanager
def _proofs() -> Iterator[list[tuple[Decision, SubGraph]]]:
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


class _Check:
    def __init__(self, program: Program) -> None:
        self.program = program
        self.names = load(program, {"fusion": fusion})
        self.arguments = self.names["arguments"]
        self.eager = self.names["Forward"]().eval()
        start = self.names["effects"]() if program.around else []
        self.left = {"eager": start, "fused": start}  # what the calls of each side have left around the program
        self.fused = copy.deepcopy(self.eager)
        config = {"profile": False, "verify": True, "min_nodes": program.min_nodes, "enable_cache": False}
        fusion.enable(self.fused, config)
        self.skipped = 0
        self.calls = 0
        self.raised = False  # whether eager did: then a plan stops too

    def run(self) -> Outcome:
        with torch.no_grad(), warnings.catch_warnings(), _proofs() as failed:
            warnings.simplefilter("ignore")
            try:
                for number, (sizes, seed) in enumerate(calls(self.program)):
                    self._happen(number)
                    self._call(sizes, seed)
            finally:
                torch.set_default_dtype(torch.float32)
                torch.set_default_device(None)
        for decision, graph in failed:
            if not _is_known(decision.reason) and _exact(graph):
                raise Mismatch("inaccurate", f"a kernel fails its proof: {decision.reason}\n{graph}")
        scopes = [s for _, s in api._enabled(self.fused)[""].scopes]
        outcome = Outcome(
            self.calls,
            sum(s.statistics.planned[0] for s in scopes),
            len(fusion.kernels_in_use(self.fused)),
            self.skipped,
        )
        refused = [r for s in scopes for r in s.refused.values()]
        self._complain(scopes)
        fusion.disable(self.fused)
        outcome = replace(outcome, unproved=len(failed))
        return replace(outcome, refusal=f"{refused[0].code}: {refused[0].sentence.splitlines()[0]}" if refused else "")

    def _complain(self, scopes: list[Any]) -> None:
        """Errors that the pass caught by itself are its own."""
        for scope in scopes:
            said = [*scope.refused.values(), *(k.refusal for k in scope.known), scope.statistics.last_failure]
            for refusal in said:
                users = self.raised and refusal is not None and refusal.code == "plan_error"
                if refusal is not None and refusal.code in BUGS and not users and not _is_known(refusal.sentence):
                    raise Mismatch(refusal.code, f"the pass refused: {refusal}")
            for known in scope.known:
                for compiled, _ in known.plans.values():
                    for candidate in compiled.candidates:
                        decision = candidate.decision
                        if decision.code in BUGS and not _is_known(decision.reason):
                            said = f"a kernel was refused: {decision.code}: {decision.reason}"
                            raise Mismatch(decision.code, f"{said}\n{candidate.region.subgraph}")

    # ---- one call

    def _happen(self, number: int) -> None:
        """What the caller changes before a call, on both sides."""
        for at, statement in self.program.events:
            if at == number:
                for side, module in (("eager", self.eager), ("fused", self.fused)):
                    with self._around(side):
                        exec(statement, {**self.names, "module": module})

    @contextmanager
    def _around(self, side: str) -> Iterator[None]:
        """Has Python's state as the calls of one side left it."""
        if not self.program.around:
            yield
            return
        held = self.names["effects"]()
        self.names["put_effects"](self.left[side])
        try:
            yield
        finally:
            self.left[side] = self.names["effects"]()
            self.names["put_effects"](held)

    def _call(self, sizes: dict[str, int], seed: int) -> None:
        mine, theirs = self.arguments(**sizes, seed=seed), self.arguments(**sizes, seed=seed)
        before = copy.deepcopy(self.eager)
        where = f"sizes {sizes}, seed {seed}"
        torch.manual_seed(seed)
        self.start = self.left["eager"]
        with self._around("eager"):
            wanted, raised = _attempt(self.eager, theirs)
        drawn = torch.get_rng_state()
        torch.manual_seed(seed)
        with self._around("fused"):
            found, failed = _attempt(self.fused, mine)
        if raised is None and not torch.equal(drawn, torch.get_rng_state()):
            raise Mismatch("random", f"{where}: the generator is in another state than after eager's call")
        self.calls += 1
        self.raised = self.raised or raised is not None
        if (raised is None) != (failed is None):
            if self._unspecified(before, sizes, seed):
                return
            raise Mismatch("raised", f"{where}: eager raised {raised!r}, fused raised {failed!r}") from failed
        ours, yours = self._seen("fused", self.fused, mine, found), self._seen("eager", self.eager, theirs, wanted)
        differ = _differ(ours, yours)
        if differ and isinstance(differ, str):
            if not self._unspecified(before, sizes, seed):
                raise Mismatch("structure", f"{where}: {differ}")
        elif differ and not self._within(before, sizes, seed, ours, yours, where):
            self.skipped += 1
        ours, yours = ([*module.buffers(), *module.parameters()] for module in (self.fused, self.eager))
        for a, b in zip(ours, yours, strict=True):
            if not _equal(a, b):
                a.copy_(b)  # a difference that is allowed is not to grow from call to call

    def _seen(self, side: str, module: torch.nn.Module, arguments: Any, result: Any) -> Any:
        """All that a caller can see after a call."""
        kept = [a.kept for a in arguments if hasattr(a, "kept")]
        plain = tuple(a for a in arguments if not hasattr(a, "kept"))
        state = {**dict(module.named_buffers()), **dict(module.named_parameters())}
        python = [[m.log, m.count, m.last] for m in module.modules() if hasattr(m, "log")]
        left = [self.left[side], python]
        return {"result": result, "arguments": plain, "state": state, "kept": kept, "left": copy.deepcopy(left)}

    def _trial(self, before: torch.nn.Module, sizes: dict[str, int], seed: int, watch: Watch) -> Any:
        module, arguments = copy.deepcopy(before), self.arguments(**sizes, seed=seed)
        torch.manual_seed(seed)
        self.left["trial"] = self.start
        with self._around("trial"), watch:
            result = _called(module, arguments)
        return self._seen("trial", module, arguments, result)

    def _unspecified(self, before: torch.nn.Module, sizes: dict[str, int], seed: int) -> bool:
        try:
            self._trial(before, sizes, seed, Watch())
        except Unspecified:
            return True
        except Exception:
            return False
        return False

    def _within(self, before: Any, sizes: dict[str, int], seed: int, ours: Any, yours: Any, where: str) -> bool:
        """Whether what differs is as small as it may be. False where the result is not specified."""
        try:
            trials = [self._trial(before, sizes, seed, Watch(MOST_ULPS, k)) for k in range(TRIALS)]
        except Unspecified:
            return False
        moved = [pytree.tree_leaves(t) for t in trials]
        pairs = zip(pytree.tree_leaves(ours), pytree.tree_leaves(yours), *moved, strict=True)
        paths = [pytree.keystr(p) for p, _ in pytree.tree_leaves_with_path(ours)]
        for path, (mine, eager, *others) in zip(paths, pairs, strict=True):
            if isinstance(eager, torch.Tensor) and not _equal(mine, eager):
                bad = _too_far(mine, eager, others)
                if bad:
                    raise Mismatch("values", f"{where}, {path}: {bad}\nfused {mine}\neager {eager}")
        return True


def _exact(graph: SubGraph) -> bool:
    """Whether every operator of a region has one right result: then none may be worse than eager's.

    Of a few elements, whose errors are by chance a tenth of an ulp in one order of a sum and a whole one in another,
    the proof says nothing; `_Check._within` judges such results by how far rounding can move them.
    """
    names = [canonical(node.op).split(".")[1] for node in graph.nodes]
    return all(name in EXACT for name in names)


def _is_known(sentence: str) -> bool:
    return any(text in sentence for text in KNOWN)


def _called(module: Any, arguments: Any) -> tuple[Any, bool]:
    """A call's result, and whether it leaves gradients enabled, which are disabled again."""
    try:
        result = module(*arguments)
        return result, torch.is_grad_enabled()
    finally:
        torch.set_grad_enabled(False)


def _attempt(module: Any, arguments: Any) -> tuple[Any, Exception | None]:
    try:
        return _called(module, arguments), None
    except Exception as error:
        return None, error


def _differ(ours: Any, yours: Any) -> str | bool:
    """What no rounding explains, in words; else whether values differ."""
    (left, tree), (right, wanted) = pytree.tree_flatten(ours), pytree.tree_flatten(yours)
    if tree != wanted:
        return f"the structure is {tree}, eager's is {wanted}"
    paths = [pytree.keystr(p) for p, _ in pytree.tree_leaves_with_path(ours)]
    values = False
    for path, a, b in zip(paths, left, right, strict=True):
        if type(a) is not type(b):
            return f"{path} is a {type(a).__name__}, eager's is a {type(b).__name__}"
        if not isinstance(b, torch.Tensor):
            if a != b:
                return f"{path} is {a!r}, eager's is {b!r}"
            continue
        looks = [_looks(t) for t in (a, b)]
        if looks[0] != looks[1]:
            return f"{path} is {looks[0]}, eager's is {looks[1]}"
        if not _equal(a, b):
            values = True
            if not b.is_floating_point():
                return f"{path} differs:\nfused {a}\neager {b}"
    if _sharing(left) != _sharing(right):
        return f"results share memory as {_sharing(left)}, eager's as {_sharing(right)}; of {paths}"
    return values


def _looks(t: torch.Tensor) -> str:
    flags = [name for name in ("requires_grad", "is_leaf") if getattr(t, name)]
    flags += ["inference"] if t.is_inference() else []
    strides = t.stride() if t.numel() else "any"
    return f"{t.dtype}{list(t.shape)} strides {strides} {' '.join(flags)}"


def _sharing(leaves: list[Any]) -> list[Any]:
    """For each tensor, the first that shares its memory, and where in it this one begins."""
    first: dict[int, int] = {}
    found = []
    for k, leaf in enumerate(leaves):
        if isinstance(leaf, torch.Tensor) and leaf.numel():
            owner = first.setdefault(leaf.untyped_storage()._cdata, k)
            found.append((owner, leaf.storage_offset() - leaves[owner].storage_offset()))
    return found


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """To the bit but for the bits of a NaN; 0.0 and -0.0 differ."""
    if torch.equal(a, b) and not b.is_floating_point():
        return True
    if not b.is_floating_point():
        return False
    same = ((a == b) & (a.signbit() == b.signbit())) | (a.isnan() & b.isnan())
    return bool(same.all())


def _too_far(mine: torch.Tensor, eager: torch.Tensor, trials: list[torch.Tensor]) -> str:
    """Why `mine` cannot be eager's result with other last places; "" where it can."""
    a, b = mine.double(), eager.double()
    others = [t.double() for t in trials]
    steady = torch.ones_like(b, dtype=torch.bool)
    for t in others:
        steady &= (t.isfinite() == b.isfinite()) & (t.isnan() == b.isnan())
    special = steady & ~b.isfinite()
    wrong = special & ~((a == b) | (a.isnan() & b.isnan()))
    if bool(wrong.any()):
        return f"{int(wrong.sum())} values that are not finite differ"
    finite = steady & b.isfinite()
    if not bool(finite.any()):
        return ""
    most = max(float((t - b)[finite].abs().max()) for t in others)
    moved = torch.stack([(t - b).abs() for t in others]).amax(0)
    finite &= a.isfinite() | (moved < _LOST * b.abs())  # an inverse of what rounding left of a 0 may be infinite too
    if not bool(finite.any()):
        return ""
    off = float((a - b)[finite].abs().nan_to_num(float("inf")).max())
    return f"off by {off:.3g}, where rounding explains {SLACK * most:.3g}" if off > SLACK * most else ""
