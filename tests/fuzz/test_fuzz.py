"""Random programs, fused against eager: 30, with `make test-all` 500. And that the fuzzer finds what is wrong."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_examples import needs_compiler
from fuzz_check import Outcome, check
from fuzz_compare import Mismatch
from fuzz_failure import script
from fuzz_numerics import Unspecified, Watch
from fuzz_pass import quick
from fuzz_program import Group, Program, Step, Tensor
from fuzz_run import Tally, run
from fuzz_shrink import shrunk
from thorough import FULL

from fusion.kernels.backends.cpp import compile as cpp_compile
from fusion.kernels.loops import LoopNest
from fusion.patterns.scalar import Apply

pytestmark = pytest.mark.slow
COUNT = 500 if FULL else 30
SEED = 20250


def example(*texts: str, result: str = "v1") -> Program:
    """A program over one float32 input [B, N] that runs `texts`, which make v0, v1, ..."""
    steps = tuple(Step(text, ("x0",), (f"v{k}",)) for k, text in enumerate(texts))
    sizes = tuple((("B", b), ("N", n)) for b, n in ((2, 5), (3, 7), (2, 12)))
    return Program(
        (Tensor("x0", ("B", "N"), torch.float32),), (), (Group("x0", "plain", ("x0",)),), steps, result, sizes
    )


EXACT = example("v0 = x0 * 2", "v1 = torch.where(v0 > 0, v0, x0 + 1)")
INEXACT = example("v0 = torch.exp(x0)", "v1 = v0 / v0.sum(-1, keepdim=True)")


@needs_compiler
def test_random_programs_agree_with_eager(tmp_path: Path) -> None:
    tally = run(SEED, COUNT, folder=tmp_path)
    written = "\n\n".join(path.read_text() for path in tally.failures)
    assert not tally.failures, f"seed {SEED}: {tally}\n{written}"
    assert tally.fused > tally.programs / 2, f"too few programs were fused to show anything: {tally}"
    assert tally.kernels > tally.programs and tally.planned > tally.calls / 4, tally
    assert tally.skipped < tally.calls / 20, tally


def test_a_seed_draws_the_same_programs_every_time() -> None:
    drawn: list[list[str]] = [[], []]
    for digests in drawn:

        def note(program: Program, digests: list[str] = digests) -> Any:
            digests.append(program.digest)
            return Outcome()

        run(7, 20, checked=note)
    assert drawn[0] == drawn[1] and len(set(drawn[0])) > 10


# ---- the fuzzer sees what is wrong


def broken(monkeypatch: pytest.MonkeyPatch, before: str, after: str) -> None:
    """Kernels compute `after` where they should compute `before`."""
    compiled = cpp_compile.compile_cpp

    def wrong(node: Any) -> Any:
        return replace(node, fn=after) if isinstance(node, Apply) and node.fn == before else node

    def compile_wrong(nests: Any, store: Any) -> Any:
        from fusion.patterns import scalar

        def changed(nest: LoopNest) -> LoopNest:
            def of(root: Any) -> Any:
                memo: dict[int, Any] = {}
                for node in scalar.walk(root):
                    memo[id(node)] = wrong(
                        scalar.with_children(node, tuple(memo[id(c)] for c in scalar.children(node)))
                    )
                return memo[id(root)]

            stores = tuple(replace(s, value=of(s.value)) for s in nest.stores)
            reductions = tuple(replace(r, body=of(r.body)) for r in nest.reductions)
            return replace(nest, stores=stores, reductions=reductions)

        return compiled([changed(n) for n in nests], store)

    monkeypatch.setattr(cpp_compile, "compile_cpp", compile_wrong)


@needs_compiler
@pytest.mark.parametrize(("program", "before", "after"), [(EXACT, "mul", "add"), (INEXACT, "exp", "neg")])
def test_a_wrong_kernel_is_seen(program: Program, before: str, after: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with quick():
        outcome = check(program)
        assert outcome.planned > 0 and outcome.kernels > 0
        with monkeypatch.context() as patch, pytest.raises(Mismatch) as found:  # undone before `quick` is
            broken(patch, before, after)
            check(program)
        assert found.value.kind == "values"


@needs_compiler
def test_a_failure_is_shrunk_and_written_as_a_script(tmp_path: Path) -> None:
    def fails_on_cat(program: Program) -> Any:
        if any("torch.cat" in step.text for step in program.steps):
            raise Mismatch("values", "a cat")
        return Outcome()

    tally = run(3, 40, folder=tmp_path, checked=fails_on_cat)
    path = tally.failures[0]
    assert path.name.startswith("fuzz-failure-")
    text = path.read_text()
    forward = next(n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.FunctionDef) and n.name == "forward")
    assert "torch.cat" in ast.unparse(forward)
    assert len(forward.body) <= 3, ast.unparse(forward)  # the cat, at most a step that it needs, and the return


def test_shrinking_ends_when_its_time_is_up() -> None:
    asked: list[Program] = []
    assert shrunk(EXACT, lambda p: not asked.append(p), seconds=0) is EXACT
    assert not asked
    assert shrunk(EXACT, lambda p: not asked.append(p)) is not EXACT


@needs_compiler
def test_a_script_runs_alone_and_prints_both_results(tmp_path: Path) -> None:
    """A program of its own state: eager counts its calls in Python, which differs between two modules never in step."""
    path = tmp_path / "alone.py"
    path.write_text(script(EXACT, "nothing"))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fused" in done.stdout  # the report
    wrong = script(EXACT, "nothing").replace("found = flatten(attempt(fused,", "found = flatten(attempt(lambda x: x,")
    state = "{**dict(module.named_parameters()), **dict(module.named_buffers())}"
    path.write_text(wrong.replace(state, "{}").replace("module.modules()", "()"))
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "fused tensor(" in done.stdout and "eager tensor(" in done.stdout


# ---- what is inexact, and what is not specified


def watched(function: Any, *tensors: torch.Tensor) -> bool:
    """Whether a result is inexact."""
    watch = Watch()
    with watch:
        made = function(*tensors)
    return watch.inexact(made)


def test_what_is_rounded_once_is_exact_and_the_rest_is_not() -> None:
    x = torch.randn(4, 4)
    assert not watched(lambda x: ((x * 2 + 1).t().contiguous() / 3).relu(), x)
    assert watched(lambda x: x.exp() * 0, x)
    assert watched(lambda x: x.sum(0), x)
    assert not watched(lambda x: (x > 0).sum(0), x)
    assert watched(lambda x: torch.add(x, x, alpha=0.3), x)


def test_what_torch_does_not_specify_is_noticed() -> None:
    for unspecified in (
        lambda x: x.exp() > 1,
        lambda x: (x * 1e30).to(torch.int32),
        lambda x: (x / 0).to(torch.int64),
        lambda x: x.sum().floor(),
        lambda x: torch.tensor([1, 2]) << torch.tensor([70, 1]),
        lambda x: torch.std_mean(x / 0),
        lambda x: torch.full((3,), 1e30).prod(0),
        lambda x: torch.full((2, 40), 1e-30).prod(),
        torch.sinc,
        lambda x: (x * 1e-39).erf(),
        lambda x: x % (x * 1e-39),
        lambda x: x.expand(2, 3).median(0),
    ):
        with pytest.raises(Unspecified), Watch():
            unspecified(torch.ones(3))


def test_a_tally_counts_only_programs_that_agree() -> None:
    assert str(Tally()).startswith("0 programs agree")


def test_a_gelu_far_below_0_may_be_off_by_a_last_place_of_what_it_is_computed_from() -> None:
    x = torch.full((4,), -3.8)
    moved = []
    for seed in range(8):
        with Watch(2.0, seed):
            moved.append(torch.nn.functional.gelu(x))
    spread = torch.stack(moved).double() - torch.nn.functional.gelu(x).double()
    assert 1e-7 < spread.abs().max() < 1e-6, "of a value of 3e-4"
