"""First runs in a process of their own: what a kernel does to memory that is not its own is found out there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from graphs import trace

from fusion.kernels.backends.cpp import isolated as cpp_isolated
from fusion.kernels.backends.cpp import toolchain as cpp_toolchain
from fusion.kernels.backends.cpp.compile import CompiledKernel, compile_cpp
from fusion.kernels.backends.cpp.isolated import FirstRuns
from fusion.kernels.lower import lower

GRAPH = trace(lambda x, w: torch.relu(x + w) * 2, torch.randn(7, 24), torch.randn(24), dynamic={7: "s0"})
CASES = [{"s0": 1}, {"s0": 7}]


@pytest.fixture(scope="module")
def kernel() -> CompiledKernel:
    return compile_cpp([lower(GRAPH)], None)[0]


def broken(kernel: CompiledKernel, folder: Path, old: str, new: str) -> CompiledKernel:
    """`kernel` with its source changed and compiled again."""
    toolchain = cpp_toolchain.find_toolchain()
    assert toolchain is not None and old in kernel.source
    library = folder / "broken.so"
    toolchain.compile_library((kernel.source.replace(old, new),), library)
    return replace(kernel, library=str(library))


def outcome(*kernels: CompiledKernel) -> dict[int, cpp_isolated.Fault]:
    return FirstRuns().outcome([(kernel, CASES) for kernel in kernels])


def test_a_sound_kernel_passes(kernel: CompiledKernel) -> None:
    assert outcome(kernel, kernel) == {}


def test_outputs_with_strides_that_no_element_depends_on() -> None:
    """The kernel tells them after the sizes of each output."""
    x = torch.randn(1, 8).to(torch.bfloat16).as_strided((1, 8), (0, 1))
    (kernel,) = compile_cpp([lower(trace(lambda x: (x.float(), x.double(), x.half()), x))], None)
    assert all(output.loose for output in kernel.nest.outputs)
    assert FirstRuns().outcome([(kernel, [{}])]) == {}


LOOP = "for (int64_t row = first; row < last; ++row) {"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (LOOP.replace("row < last", "row <= last"), "SIGSEGV"),
        (f"o0[-1] = 0; {LOOP}", "writes outside its outputs"),
        (f"((float*)a0)[0] = 0; {LOOP}", "SIGSEGV"),
        (f"__builtin_trap(); {LOOP}", "SIG"),
    ],
    ids=["past_its_end", "before_its_start", "into_an_input", "a_trap"],
)
def test_a_kernel_that_goes_astray_is_named_and_the_others_run(
    kernel: CompiledKernel, tmp_path: Path, changed: str, reason: str
) -> None:
    found = outcome(kernel, broken(kernel, tmp_path, LOOP, changed), kernel)
    assert set(found) == {1} and reason in found[1].reason and found[1].lasting


def test_a_kernel_that_does_not_end_is_no_lasting_fact(
    kernel: CompiledKernel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpp_isolated, "_TIMEOUT_S", 3.0)
    endless = broken(kernel, tmp_path, LOOP, "for (volatile int k = 1; k;) {} " + LOOP)
    found = outcome(endless)
    assert set(found) == {0} and "did not end" in found[0].reason and not found[0].lasting


def test_without_such_a_process_nothing_is_refused(kernel: CompiledKernel, monkeypatch: pytest.MonkeyPatch) -> None:
    for executable in ("/nowhere/python", "/usr/bin/true", ""):  # gone; a program that embeds Python; unknown
        monkeypatch.setattr(cpp_isolated.sys, "executable", executable)
        assert outcome(kernel) == {}
