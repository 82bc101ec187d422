"""Kernels that are compiled on the side: what calls do meanwhile, and afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from compiled_examples import needs_compiler

import fusion
from fusion.choices import background
from fusion.jit import stages
from fusion.kernels import processes
from fusion.kernels.backends.cpp import compile as compiler
from fusion.patterns.errors import CompileError, FusionError

pytestmark = [needs_compiler, pytest.mark.usefixtures("without_gradients")]


@pytest.fixture
def aside(tmp_path: Path) -> fusion.FusionConfig:
    """Compiles on the side, with a cache of its own."""
    return fusion.FusionConfig(compile="background", profile=False, cache_dir=tmp_path)


class Gate:
    """Where compilers on the side wait."""

    def __init__(self) -> None:
        self.opened = threading.Event()
        self.reached = 0

    def open(self, model: Any) -> None:
        """Lets them work, and waits until they are done."""
        self.opened.set()
        assert fusion.wait(model)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    """Holds compilers on the side back until it is opened."""
    held, prepare = Gate(), compiler.prepare_cpp

    def waiting(*arguments: Any) -> None:
        held.reached += 1
        assert held.opened.wait(60)
        prepare(*arguments)

    monkeypatch.setattr(compiler, "prepare_cpp", waiting)
    yield held
    held.opened.set()


def gated(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.silu(x) * y + 1


def test_calls_run_eagerly_until_the_kernels_are_there(aside, gate):
    fused = fusion.fuse(gated, aside)
    x, y = torch.randn(2, 40, 50)
    for _ in range(4):
        assert torch.equal(fused(x, y), gated(x, y))
    scope = fused.report().scopes[0]
    assert (scope.state, scope.fused_calls, scope.recordings) == ("eager", 0, 1)
    assert scope.reason.startswith("compiling: ") and "fusion.wait(model)" in scope.reason
    assert not fusion.wait(fused, 0.01) and not fusion.kernels_in_use(fused)
    gate.open(fused)
    for _ in range(3):
        torch.testing.assert_close(fused(x, y), gated(x, y))
    scope = fused.report().scopes[0]
    assert (scope.state, scope.fused_calls, scope.recordings, gate.reached) == ("fused", 2, 1, 1)


def test_other_sizes_are_compiled_once_for_all(aside, gate):
    fused = fusion.fuse(gated, aside)
    gate.opened.set()
    for n in (40, 3000, 40, 3000):
        x, y = torch.randn(2, n, 50)
        torch.testing.assert_close(fused(x, y), gated(x, y))
        fusion.wait(fused)
    fusion.warmup(fused, x, y)
    assert gate.reached == 1 and len(fusion.kernels_in_use(fused)) == 1
    before = fused.report().scopes[0].fused_calls
    fused(x, y)
    assert fused.report().scopes[0].fused_calls == before + 1


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.randn(50))
        self.activation = torch.nn.SiLU()  # a block has modules below it

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(x) * self.scale + x


def test_equal_modules_share_what_one_of_them_decides(aside, gate):
    model = torch.nn.Sequential(*(Block() for _ in range(5))).eval()
    x = torch.randn(40, 50)
    eager = model(x)
    fusion.enable(model, aside)
    assert torch.equal(model(x), eager)
    model(x)  # the model around the blocks is recorded, and runs them eagerly
    gate.open(model)
    model(x)  # the first block checks and decides, the others take its kernels in the same call
    blocks = [scope for scope in fusion.report(model).scopes if scope.recordings and scope.name.isdecimal()]
    assert [(b.state, b.fused_calls) for b in blocks] == [("fused", 0)] + [("fused", 1)] * 4
    torch.testing.assert_close(model(x), eager)
    assert gate.reached == 1


def test_a_kernel_that_does_not_compile_is_refused_and_not_tried_again(aside, monkeypatch):
    tried = []

    def fails(nests: Any, store: Any) -> None:
        tried.append(len(nests))
        raise CompileError("no such instruction")

    monkeypatch.setattr(compiler, "prepare_cpp", fails)
    monkeypatch.setattr(compiler, "compile_cpp", fails)
    fused = fusion.fuse(gated, aside)
    x, y = torch.randn(2, 40, 50)
    report = fusion.warmup(fused, x, y)
    assert torch.equal(fused(x, y), gated(x, y))
    assert [r.code for r in report.scopes[0].regions] == ["compile_error"] and tried == [1]


@pytest.mark.parametrize("compile", ["blocking", "background"])
def test_warmup_calls_until_nothing_changes(tmp_path, compile):
    fused = fusion.fuse(gated, fusion.FusionConfig(compile=compile, profile=False, cache_dir=tmp_path))
    x, y = torch.randn(2, 40, 50)
    report = fusion.warmup(fused, x, y)
    assert report.scopes[0].state == "fused" and report.scopes[0].fused_calls >= 1
    calls = report.scopes[0].calls
    assert fusion.warmup(fused, x, y=y).scopes[0].calls == calls + 1


def test_what_is_not_enabled_has_nothing_to_wait_for():
    with pytest.raises(FusionError, match="not under fusion"):
        fusion.wait(torch.nn.Linear(2, 2))
    with pytest.raises(FusionError, match="not under fusion"):
        fusion.warmup(torch.nn.Linear(2, 2), torch.ones(2))


def test_nothing_is_begun_while_a_call_is_recorded():
    begun = threading.Event()
    with background.postponed():
        build = background.begin(begun.set)
        time.sleep(0.1)
        assert not begun.is_set() and not build.done
    assert build.wait(60) and begun.is_set()


def test_an_error_in_the_thread_ends_nothing_but_its_own_work():
    def fails() -> None:
        raise MemoryError

    first, done = background.begin(fails), threading.Event()
    second = background.begin(done.set)
    assert first.wait(60) and second.wait(60) and done.is_set()


_FORKS = """
import os, sys, threading
from fusion.choices import background
from fusion.jit import stages
inside, ended = threading.Event(), threading.Event()

def records():
    with background.postponed():
        inside.set()
        ended.wait(60)

threading.Thread(target=records).start()
inside.wait(60)
child = os.fork()
if not child:
    os._exit(0 if background.begin(lambda: None).wait(30) else 1)
status = os.waitpid(child, 0)[1]
held = not background.begin(lambda: None).wait(0.2)
ended.set()
print(status, held)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="there are no forks")
def test_a_child_that_is_forked_while_a_thread_records_compiles():
    ended = subprocess.run([sys.executable, "-c", _FORKS], capture_output=True, text=True, check=False)
    assert (ended.stdout, ended.returncode) == ("0 True\n", 0), ended.stderr


def test_calls_of_several_threads_run_side_by_side_meanwhile(aside, gate):
    together = threading.Barrier(2)

    class Meets(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.silu(x) * 2 + x

    def call() -> None:
        with torch.no_grad():
            results.append(fused(x))

    module, results = Meets().eval(), []
    x = torch.randn(40, 50)
    fused = fusion.fuse(module.forward, aside)
    fused(x)
    original = fused.scope._original

    def meets(call: Any, reason: Any = None) -> Any:
        together.wait(60)
        return type(original).eager(original, call, reason)

    original.eager = meets
    threads = [threading.Thread(target=call) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2 and not together.broken


def test_a_plan_that_equal_modules_cannot_be_given_leaves_them_eager(aside, gate, monkeypatch):
    model = torch.nn.Sequential(*(Block() for _ in range(3))).eval()
    x = torch.randn(40, 50)
    eager = model(x)
    fusion.enable(model, aside)
    model(x)
    model(x)
    gate.open(model)
    planned = stages.write_plan

    def fails(shape: Any, steps: Any, *arguments: Any, **options: Any) -> Any:
        if any(kind == "region" for kind, _ in steps):
            raise KeyError("plan")
        return planned(shape, steps, *arguments, **options)

    monkeypatch.setattr(stages, "write_plan", fails)
    for _ in range(3):
        assert torch.equal(model(x), eager)
    assert any("KeyError" in scope.reason for scope in fusion.report(model).scopes)


def test_what_is_forgotten_is_compiled_on_the_side_again(aside, gate):
    fused = fusion.fuse(gated, aside)
    gate.opened.set()
    x, y = torch.randn(2, 40, 50)
    fusion.warmup(fused, x, y)
    fused.stages.forget()
    again = fusion.fuse(gated, aside)
    again.stages.backends = fused.stages.backends
    again.stages.decider.backends = fused.stages.backends
    fusion.warmup(again, x, y)
    assert gate.reached == 2 and again.report().scopes[0].state == "fused"


def test_a_forked_child_waits_for_nothing_of_its_parent(monkeypatch):
    opened = threading.Event()
    build = background.begin(lambda: opened.wait(60) and None)
    assert not build.wait(0.01)
    monkeypatch.setattr(os, "getpid", lambda: -1)
    assert build.done
    monkeypatch.undo()
    opened.set()
    assert build.wait(60)


@pytest.mark.skipif(not hasattr(os, "SCHED_IDLE"), reason="the system has no such policy")
def test_compilers_on_the_side_run_where_nothing_else_does():
    program = ["sh", "-c", f"{sys.executable} -c 'import os; print(os.sched_getscheduler(0))'; true"]
    with processes.aside():
        (told,) = processes.run([program], processor_s=60)
    (usual,) = processes.run([program], processor_s=60)
    assert (int(told.output), int(usual.output)) == (os.SCHED_IDLE, os.sched_getscheduler(0))


_ENDS = """
import fusion, sys, torch
f = fusion.fuse(lambda x, y: torch.nn.functional.silu(x) * y + 1, {"compile": "background", "cache_dir": sys.argv[1]})
with torch.no_grad():
    f(*torch.randn(2, 40, 50))
"""


@pytest.mark.slow
def test_a_process_that_ends_meanwhile_leaves_nothing(tmp_path):
    folder = tmp_path / "temporary"
    folder.mkdir()
    environment = {**os.environ, "TMPDIR": str(folder)}
    command = [sys.executable, "-c", _ENDS, str(tmp_path / "cache")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert [path.name for path in folder.iterdir() if "torch" not in path.name] == []
