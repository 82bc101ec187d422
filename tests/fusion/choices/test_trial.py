"""Trials: once for a kernel's text, remembered with it, on no sizes that operators do not allow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from graphs import trace

import fusion
from fusion.choices import trial
from fusion.choices.trial import Trials, made_cases
from fusion.kernels import processes
from fusion.kernels.backends.cpp.compile import CompiledKernel, compile_cpp
from fusion.kernels.lower import lower
from fusion.kernels.store import Store
from fusion.patterns.graph import SubGraph
from fusion.runtime.launch import make_launcher


def compiled(graph: SubGraph) -> CompiledKernel:
    return compile_cpp([lower(graph)], None)[0]


def program(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) * 2 + 1


def test_a_verdict_is_kept_for_the_next_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = trace(program, torch.randn(7, 24), dynamic={7: "s0"})
    kernel = compiled(graph)
    assert Trials(Store(tmp_path)).verdicts([(graph, kernel, make_launcher(kernel))])[0].code == ""

    def never(*arguments: object) -> None:
        raise AssertionError("the kernel is tried again")

    monkeypatch.setattr(trial, "made_cases", never)
    again = Trials(Store(tmp_path)).verdicts([(graph, kernel, make_launcher(kernel))])
    assert again[0].code == ""


def test_a_wrong_kernel_is_refused_for_the_next_process_too(tmp_path: Path) -> None:
    graph = trace(program, torch.randn(7, 24), dynamic={7: "s0"})
    kernel = compiled(graph)
    for _ in range(2):
        found = Trials(Store(tmp_path)).verdicts([(graph, kernel, lambda x: x * 2 + 1)])[0]
        assert found.code == "inaccurate" and "made data" in found.reason


def test_an_error_in_a_trial_refuses_the_kernel_for_now(tmp_path: Path) -> None:
    graph = trace(program, torch.randn(7, 24), dynamic={7: "s0"})
    kernel = compiled(graph)

    def fails(x: torch.Tensor) -> torch.Tensor:
        raise ValueError

    trials = Trials(Store(tmp_path))
    verdict = trials.verdicts([(graph, kernel, fails)])[0]
    assert verdict.code == "unproved" and "ValueError" in verdict.reason
    assert Trials(Store(tmp_path)).verdicts([(graph, kernel, make_launcher(kernel))])[0].code == ""


def test_sizes_that_operators_do_not_allow_are_not_made() -> None:
    def halves(x: torch.Tensor) -> torch.Tensor:
        a, b = x.view(2, -1).unbind()
        return a * b + 1

    graph = trace(halves, torch.randn(14), dynamic={7: "s0"})
    cases = made_cases(graph.canonical, lower(graph), "cpp")
    assert cases and all(case.inputs["a0"].shape[0] % 2 == 0 for case in cases)


def test_sizes_at_which_a_value_inside_has_another_shape_are_not_made() -> None:
    halves = {14: "s0", 7: "s0//2"}  # tensor_split makes the first half of 11 rows 6 of them
    graph = trace(lambda x: torch.tensor_split(x, 2)[0].sum() * 2, torch.randn(14, 3), dynamic=halves)
    cases = made_cases(graph.canonical, lower(graph), "cpp")
    assert cases and all(case.sizes["s0"] % 2 == 0 for case in cases)


def test_a_deviation_is_not_tried_on_one_element(capfd: pytest.CaptureFixture[str]) -> None:
    graph = trace(lambda x: x.std(-1) * 2, torch.randn(7, 13), dynamic={7: "s0", 13: "s1"})
    assert made_cases(graph.canonical, lower(graph), "cpp")
    assert "degrees of freedom" not in capfd.readouterr().err


def test_a_stored_verdict_of_another_form_is_a_miss(tmp_path: Path) -> None:
    graph = trace(program, torch.randn(7, 24), dynamic={7: "s0"})
    kernel = compiled(graph)
    store = Store(tmp_path)
    for value in ([], {"code": 1, "reason": ""}, {"code": "", "reason": "", "more": ""}):
        store.put_json(trial._key(graph, kernel), value)
        assert Trials(store).verdicts([(graph, kernel, lambda x: x)])[0].code == "inaccurate"


@pytest.mark.usefixtures("without_gradients")
def test_verify_off_means_no_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Trials, "verdicts", None)
    fused = fusion.fuse(program, {"profile": False, "enable_cache": False, "verify": False})
    x = torch.randn(16, 64)
    fused(x)
    assert torch.equal(fused(x), program(x))
    assert fusion.report(fused).scopes[0].regions[0].decision == "fused"


def test_calls_are_made_while_the_compiler_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = trace(program, torch.randn(7, 24), dynamic={7: "s0"})
    nest, store = lower(graph), Store(tmp_path)
    trials, running = Trials(store), []
    made = trial.made_cases

    def watched(*arguments: Any) -> list[trial.Case]:
        running.append(bool(processes._all))
        return made(*arguments)

    monkeypatch.setattr(trial, "made_cases", watched)
    with trials.ahead("cpp", [(graph, nest)]):
        processes.run([["true"]], processor_s=1.0)  # what stands for a compiler
        processes.run([["true"]], processor_s=1.0)  # the linker
    kernel = compile_cpp([nest], store)[0]
    assert trials.verdicts([(graph, kernel, lambda x: x * 2 + 1)])[0].code == "inaccurate"
    assert running == [True], "made once, beside the first program, and used by the trial"


def test_calls_that_cannot_be_made_ahead_are_made_in_the_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = trace(program, torch.randn(7, 24), dynamic={7: "s0"})
    trials, kernel, asked = Trials(None), compiled(graph), []

    def fails(*arguments: Any) -> None:
        asked.append(arguments)
        raise ValueError

    with monkeypatch.context() as patched:
        patched.setattr(trial, "made_cases", fails)
        with trials.ahead("cpp", [(graph, kernel.nest)]):
            processes.run([["true"]], processor_s=1.0)
    assert len(asked) == 1
    assert trials.verdicts([(graph, kernel, lambda x: x * 2 + 1)])[0].code == "inaccurate"
