"""Every row of the operator table against torch's own samples (OpInfo), as compiled C++, by the fp64 rule.

A sample is one kernel, run on the sample's tensors and on special values: NaN, inf, subnormals, signed zeros, the ends
of the integers. By default an operator is taken in one sample of float32, of it in one of three other layouts
(strided, expanded, without elements), and in one sample of one other dtype; neighbours in the list of operators take
the next layout and the next dtype. That leaves out an operator's other samples, layouts and dtypes. FUSION_OPINFO=full
(`make test-all`) takes all samples of all dtypes in all layouts.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import opinfo_cases
import pytest
import torch
from opinfo_cases import LAYOUTS, Case, Found, Sample
from row_samples import SAMPLES, called, tensors_of
from thorough import FULL

from fusion.kernels.backends.cpp import compile as cpp_compile
from fusion.kernels.backends.cpp.toolchain import find_toolchain
from fusion.kernels.inline import DTYPES
from fusion.patterns.errors import CompileError
from fusion.patterns.ops import TABLE, Kind, kind_of, lookup

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(0),  # a busy machine is no fault, and the full samples take an hour
]
_OTHERS = (  # besides float32
    torch.bfloat16, torch.int64, torch.float16, torch.bool, torch.float64, torch.int32, torch.uint8, torch.int8,
    torch.int16,
)  # fmt: skip
_UNIT = 300  # kernels compiled as one file: some three seconds

# Operators real forwards use (the counts behind this list are the project's; see README), by the names of their calls.
FUSABLE = [
    "add.Tensor", "mul.Tensor", "arange.start_step", "to.dtype", "eq.Tensor", "sub.Tensor", "ne.Tensor",
    "pow.Tensor_Scalar", "cat.default", "diff.default", "neg.default", "mean.dim", "cos.default", "sin.default",
    "rsqrt.default", "silu.default", "sum.dim_IntList", "div.Tensor", "contiguous.default", "masked_fill.Scalar",
    "gelu.default", "clamp.default", "softmax.int", "ge.Tensor", "le.Tensor", "floor_divide.default",
    "reshape.default", "bitwise_and.Tensor", "sigmoid.default", "new_ones.default", "gt.Tensor", "ones.default",
    "zeros_like.default", "where.self", "zeros.default", "exp.default", "copy.default", "softplus.default",
    "bitwise_not.default", "stack.default", "relu.default", "pad.default", "tanh.default", "repeat.default",
    "square.default", "triu.default", "clone.default", "full.default", "tril.default", "bitwise_or.Tensor",
    "full_like.default", "logsumexp.default", "abs.default", "rsub.Scalar", "sqrt.default", "new_zeros.default",
    "lt.Tensor", "log.default", "reciprocal.default", "ones_like.default", "maximum.default", "floor.default",
    "remainder.Tensor", "log_sigmoid.default", "flip.default", "log1p.default",
    "scalar_tensor.default", "clamp_min.default", "flatten.using_ints", "new_full.default", "expm1.default",
    "erfinv.default", "eye.default", "logical_not.default",
]  # fmt: skip
NO_CALL = {
    "aten.lift_fresh.default": "gives its operand itself, so nothing is recorded",
    "aten.positive.default": "gives its operand itself, so nothing is recorded",
    "aten.split.default": "recorded as split_with_sizes",
}
LIBRARY = {
    "aten.polar.default": "makes complex numbers, which kernels do not hold",
    "aten.randn.default": "draws random numbers, in an order that is torch's own",
}


@pytest.mark.parametrize("op", FUSABLE)
def test_operators_of_real_forwards_have_a_row(op: str) -> None:
    row = lookup(f"aten.{op}")
    assert row is not None and row.kind in (Kind.POINTWISE, Kind.REDUCTION, Kind.VIEW, Kind.ELEMENT)


@pytest.mark.parametrize("op", LIBRARY)
def test_library_operators_have_none(op: str) -> None:
    assert lookup(op) is None and kind_of(op) is Kind.LIBRARY


@pytest.fixture(scope="module")
def found() -> Found:
    """All cases: OpInfo's, and of operators that no OpInfo calls the samples of the table's own test."""
    if FULL:
        made = opinfo_cases.collect([(dtype,) for dtype in DTYPES], None, layouts=len(LAYOUTS))
    else:
        made = opinfo_cases.collect([(torch.float32,)], 1, layouts=1)
        others = opinfo_cases.collect([_OTHERS], 1, layouts=0)
        made.cases += others.cases
        made.covered += others.covered
        made.refused += others.refused
    for op, row in TABLE.items():
        if not made.covered[op] and row.kind is not Kind.PRODUCT:
            samples = SAMPLES[row.kind][op.removeprefix("aten.")]
            calls = (Sample(functools.partial(called, row, s), _single(tensors_of(s))) for s in samples)
            made.take(op.removeprefix("aten."), calls, None if FULL else 2, LAYOUTS)
    made.cases = [c for c in made.cases if all(kind_of(op) is not Kind.PRODUCT for op in c.operators)]
    return made


def _single(tensors: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    return tuple(t.float() if t.dtype is torch.float64 else t for t in tensors)


@pytest.fixture(scope="module")
def wrong(found: Found) -> dict[str, list[str]]:
    """By operator, why kernels of it are wrong."""
    if find_toolchain() is None:
        pytest.skip("no C++ compiler")
    units = [found.cases[k : k + _UNIT] for k in range(0, len(found.cases), _UNIT)]
    with ThreadPoolExecutor(2) as pool:
        reasons = [reason for unit in pool.map(_judged, units) for reason in unit]
    by_operator: dict[str, list[str]] = {}
    for case, reason in zip(found.cases, reasons, strict=True):
        for op in case.operators if reason else ():
            by_operator.setdefault(op, []).append(reason)
    return by_operator


def _judged(cases: Sequence[Case]) -> list[str]:
    """Why each case's kernel is wrong; "" where it is right."""
    try:
        kernels = cpp_compile.compile_cpp([case.nest for case in cases], None)
    except CompileError as error:
        if len(cases) == 1:
            return [f"{cases[0].name}: {str(error)[-1000:]}"]
        half = len(cases) // 2
        return _judged(cases[:half]) + _judged(cases[half:])

    def reason(case: Case, kernel: cpp_compile.CompiledKernel) -> str:
        return opinfo_cases.verdict(case, functools.partial(cpp_compile.run_ctypes, kernel))

    return list(map(reason, cases, kernels))


# Of products, torch's samples are a few elements, where eager's error is chance, and of NaN scores torch's attention
# makes zeros: test_product_kernels.py, test_convolution_kernels.py and test_attention_kernels.py hold them to the rule,
# and each kernel is proved before it is used.
@pytest.mark.parametrize("op", [op for op, row in TABLE.items() if row.kind is not Kind.PRODUCT])
def test_row(op: str, found: Found, wrong: dict[str, list[str]]) -> None:
    assert bool(found.covered[op]) != (op in NO_CALL), f"no sample of {op} became a kernel, or one did after all"
    assert not wrong.get(op), "\n".join(wrong[op])
