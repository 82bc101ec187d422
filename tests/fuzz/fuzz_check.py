"""One program, fused against eager: results, arguments, state, memory, and what the pass says of itself."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from fuzz_compare import Mismatch, difference, equal, too_far
from fuzz_failure import calls
from fuzz_numerics import MOST_ULPS, Unspecified, Watch
from fuzz_pass import complain, judge_proofs, proofs
from fuzz_program import Program, load
from torch.utils import _pytree as pytree

import fusion
from fusion import api

TRIALS = (8, 64)  # runs with what is inexact moved at random; the second where the first explain too little


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


def check(program: Program) -> Outcome:
    """Calls a program at each of its sizes, fused and eager.

    Raises:
        Mismatch: they differ.
    """
    return _Check(program).run()


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
        with torch.no_grad(), warnings.catch_warnings(), proofs() as failed:
            warnings.simplefilter("ignore")
            try:
                for number, (sizes, seed) in enumerate(calls(self.program)):
                    self._happen(number)
                    self._call(sizes, seed)
            finally:
                torch.set_default_dtype(torch.float32)
                torch.set_default_device(None)
        judge_proofs(failed)
        scopes = [s for _, s in api._enabled(self.fused)[""].scopes]
        outcome = Outcome(
            self.calls,
            sum(s.statistics.planned[0] for s in scopes),
            len(fusion.kernels_in_use(self.fused)),
            self.skipped,
        )
        refused = [r for s in scopes for r in s.refused.values()]
        complain(scopes, self.raised)
        fusion.disable(self.fused)
        outcome = replace(outcome, unproved=len(failed))
        return replace(outcome, refusal=f"{refused[0].code}: {refused[0].sentence.splitlines()[0]}" if refused else "")

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
        differ = difference(ours, yours)
        if differ and isinstance(differ, str):
            if not self._unspecified(before, sizes, seed):
                raise Mismatch("structure", f"{where}: {differ}")
        elif differ and not self._within(before, sizes, seed, ours, yours, where):
            self.skipped += 1
        ours, yours = ([*module.buffers(), *module.parameters()] for module in (self.fused, self.eager))
        for a, b in zip(ours, yours, strict=True):
            if not equal(a, b):
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
        found = ""
        for count in TRIALS:
            try:
                trials = [self._trial(before, sizes, seed, Watch(MOST_ULPS, k)) for k in range(count)]
            except Unspecified:
                return False
            found = _too_far(ours, yours, trials)
            if not found:
                return True
        raise Mismatch("values", f"{where}, {found}")


def _too_far(ours: Any, yours: Any, trials: list[Any]) -> str:
    """What of a result differs by more than trials explain, in words; "" where nothing does."""
    moved = [pytree.tree_leaves(t) for t in trials]
    pairs = zip(pytree.tree_leaves(ours), pytree.tree_leaves(yours), *moved, strict=True)
    paths = [pytree.keystr(p) for p, _ in pytree.tree_leaves_with_path(ours)]
    for path, (mine, eager, *others) in zip(paths, pairs, strict=True):
        if isinstance(eager, torch.Tensor) and not equal(mine, eager):
            bad = too_far(mine, eager, others)
            if bad:
                return f"{path}: {bad}\nfused {mine}\neager {eager}"
    return ""


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
