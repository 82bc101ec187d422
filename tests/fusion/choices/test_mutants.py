"""Broken kernels: each mutant of the generated C++ goes through the real compiler, and must be refused at first use."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F

import fusion
from fusion.kernels.backends.cpp import toolchain as cpp_toolchain

Function = Callable[..., torch.Tensor]


def scores(x: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x * 0.25, -1)


def hidden_scores(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.softmax(x.masked_fill(mask, float("-inf")), -1)


def normed(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.float().square().mean(-1, keepdim=True) + 1e-5).to(x.dtype) * w


def gated(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.silu(x) * y


def biased(x: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return torch.relu(x + b) * 1.5


def bounded(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 7.0, -x, x) * y


def negated(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return -x * y


def counted(i: torch.Tensor) -> torch.Tensor:
    return (i * 5 + 2) // 3


def rand(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(dtype)


HALF = torch.bfloat16
MASK = rand(16, 64) > 1.0
ROWS = rand(16, 64)
BIAS = rand(64)
COUNTS = torch.arange(90).reshape(9, 10)


class Mutant(NamedTuple):
    """What is replaced in the source of a kernel, by pattern; "*" replaces it everywhere."""

    name: str
    function: Function
    arguments: tuple[torch.Tensor, ...]
    pattern: str
    replacement: str
    everywhere: bool = False


LOST_ROW = r"\g<0> - (thread + 1 == threads)"
MUTANTS = (
    # values that the arguments do not hold
    Mutant("softmax_without_maximum", scores, (ROWS,), r" - r0\)", " - 0.0f)", True),
    Mutant("mask_is_a_large_number", hidden_scores, (ROWS, MASK), r"\? \(-__builtin_inff\(\)\)", "? -1e5f", True),
    Mutant("another_epsilon", normed, (rand(16, 64, dtype=HALF), rand(64, dtype=HALF)), "1e-05f", "1e-06f", True),
    Mutant("exp_makes_nan_finite", gated, (ROWS, ROWS), r"return x <= 88\.\d+f \?[^;]*;", "return bounded;", True),
    Mutant("threshold_far_away", bounded, (ROWS, ROWS), r"> 7\.0f", "> 6.5f"),
    Mutant("threshold_included", bounded, (ROWS, ROWS), r"> 7\.0f", ">= 7.0f"),
    Mutant("sign_of_zero_lost", negated, (ROWS, ROWS), r"\(-(x\d+)\)", r"(0.0f - \1)"),
    Mutant("integers_saturate", counted, (COUNTS,), r"mul_of\((\w+), \S+\)", r"(\1 > 99 ? 500 : \g<0>)"),
    # sizes that the arguments do not have
    Mutant("tail_left_out", scores, (ROWS,), r"(sum_of\(\w+ \+ cut\d+), (cut\d+ - cut\d+)\)", r"\1, (\2) / 32 * 32)"),
    Mutant("bias_wraps", biased, (ROWS, BIAS), r"a1\[j\]", "a1[j % 1024]"),
    Mutant("rows_wrap", normed, (ROWS, BIAS), "i0 = row;", "i0 = row % 64;", True),
    Mutant("past_the_buffer", scores, (ROWS,), r"(else \{.*?) / r1", r"\1 / (r1 + r1)"),
    Mutant("threads_lose_a_row", scores, (ROWS,), r"last = total \* \(thread \+ 1\) / threads", LOST_ROW),
    Mutant("threads_of_one_row", scores, (ROWS,), r"(_shared\(.*?) / r1", r"\1 / (r1 + r1)"),
    # memory that is none of the kernel's
    Mutant("writes_past_its_end", biased, (ROWS, BIAS), r"o0\[(\w+) \+ j\] =", r"o0[\1 + j + (j + 1 == s1)] =", True),
    Mutant("writes_before_its_start", biased, (ROWS, BIAS), r"o0\[(\w+) \+ j\] =", r"o0[\1 + j - (j == 0)] =", True),
    Mutant("reads_past_its_end", normed, (ROWS, BIAS), r"a1\[j\]", "a1[j + 4000 * (j == 0 && s1 == 1)]", True),
    Mutant("writes_to_an_input", biased, (ROWS, BIAS), r"(o0\[\w+ \+ j\]) =", r"((float*)a1)[j] = \1 =", True),
)  # fmt: skip


@pytest.mark.usefixtures("without_gradients")
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_kernel_is_refused_at_first_use(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    compile_library, changes = cpp_toolchain.Toolchain.compile_library, [0]

    def broken(toolchain: cpp_toolchain.Toolchain, sources: tuple[str, ...], path: Path, *shared: Any) -> None:
        most = 0 if mutant.everywhere else 1
        pairs = [re.subn(mutant.pattern, mutant.replacement, s, count=most, flags=re.S) for s in sources]
        changes[0] += sum(count for _, count in pairs)
        compile_library(toolchain, tuple(text for text, _ in pairs), path, *shared)

    monkeypatch.setattr(cpp_toolchain.Toolchain, "compile_library", broken)
    fused = fusion.fuse(mutant.function, {"profile": False, "enable_cache": False})
    results = [fused(*mutant.arguments) for _ in range(2)]
    expected = mutant.function(*mutant.arguments)
    assert changes[0], "the mutation found nothing to change"
    regions = [r for scope in fusion.report(fused).scopes for r in scope.regions]
    assert regions and {r.decision for r in regions} == {"refused"}
    assert {r.code for r in regions} <= {"inaccurate", "launch_error"}
    assert all(torch.equal(result, expected) for result in results)


SOUND = (
    (scores, (ROWS,)),
    (hidden_scores, (ROWS, MASK)),
    (normed, (rand(16, 64, dtype=HALF), rand(64, dtype=HALF))),
    (gated, (ROWS, ROWS)),
    (counted, (COUNTS,)),
    (lambda x, y: F.gelu(x, approximate="tanh") + y, (ROWS, ROWS)),
    (lambda x, y: torch.maximum(x, y) * torch.minimum(x, y), (ROWS, ROWS)),
    (lambda x, y: F.layer_norm(x * y, (64,)) + x.amax(-1, keepdim=True), (ROWS, ROWS)),
    (lambda x, y: (x % y) + torch.floor(x / y), (ROWS, ROWS)),
    (lambda x, y: -torch.add(x, y, alpha=2), (ROWS, ROWS)),  # g++ makes one instruction of it, with another zero
    (lambda x, y: F.elu(x, -0.5) * y, (ROWS, ROWS)),
    (lambda x, y: torch.sin(x) * torch.log1p(y.abs()), (ROWS, ROWS)),
)  # what eager does with zeros and infinities depends on the size for some of these


@pytest.mark.usefixtures("without_gradients")
@pytest.mark.parametrize("case", range(len(SOUND)))
def test_a_sound_kernel_is_not_refused(case: int, quick: fusion.FusionConfig) -> None:
    function, arguments = SOUND[case]
    fused = fusion.fuse(function, quick)
    fused(*arguments)
    regions = [r for scope in fusion.report(fused).scopes for r in scope.regions]
    assert regions and {r.decision for r in regions} == {"fused"}, [r.reason for r in regions]
