"""What a C++ kernel takes and gives: inputs of its structure, sizes, permuted outputs."""

import pytest
import torch
from compiled_examples import needs_compiler
from cpp_nests import J, N, compiled, load, run
from graphs import DYNAMIC, EXAMPLES, normal, trace

from fusion.kernels.backends.cpp import compile as cpp_compile
from fusion.kernels.loops import Argument, Axis, LoopNest, Output, SizeParameter, Store
from fusion.kernels.lower import lower
from fusion.patterns import scalar, symbols
from fusion.patterns.errors import StructureMismatch

pytestmark = needs_compiler


def test_inputs_that_do_not_fit_are_refused_by_name():
    nest = lower(trace(EXAMPLES["swiglu"].fn, *EXAMPLES["swiglu"].inputs(), dynamic=DYNAMIC))
    (kernel,) = compiled(nest)
    good = EXAMPLES["swiglu"].inputs(length=4)
    assert torch.equal(cpp_compile.run_ctypes(kernel, good)[0].isnan(), torch.zeros(2, 4, 64, dtype=torch.bool))
    bad = [
        good[1].double(),
        good[1].to(torch.bfloat16),
        good[1].int(),
        good[1][:, :3],
        good[1][..., :32],
        good[1][0],
        good[1].transpose(0, 1).contiguous().transpose(0, 1),
        good[1].to("meta"),
        torch._neg_view(good[1]),
        good[1].to_sparse(),
    ]
    for tensor in bad:
        with pytest.raises(StructureMismatch, match=r"input a1 .*float32 on cpu.*Record"):
            cpp_compile.run_ctypes(kernel, (good[0], tensor))
    with pytest.raises(StructureMismatch, match="takes 2 tensors, not 1"):
        cpp_compile.run_ctypes(kernel, good[:1])


def test_strides_of_size_one_and_empty_dimensions_do_not_matter():
    nest = lower(trace(EXAMPLES["swiglu"].fn, *EXAMPLES["swiglu"].inputs(), dynamic=DYNAMIC))
    gate, up = EXAMPLES["swiglu"].inputs(length=1)
    odd = gate.as_strided(gate.shape, (64, 999, 1))
    assert torch.equal(run(nest, odd, up)[0], run(nest, gate, up)[0])
    empty = torch.empty(2, 0, 64)
    assert run(nest, empty.as_strided((2, 0, 64), (5, 6, 7)), empty)[0].shape == (2, 0, 64)


def test_sizes_can_be_given_and_outputs_permuted():
    k, i0 = symbols.symbol("k"), symbols.index_symbol("i0")
    value = load(offset=3 * i0 + J) * scalar.Size(torch.float32, k)
    nest = LoopNest(
        "scaled", "", (Argument("a0", torch.float32, (N, 3), (3, 1)),), (Output("o0", torch.float32, (3, N), (1, 0)),),
        (Axis("i0", N),), Axis("j", 3), (), (Store("o0", 3 * i0 + J, value),),
        (SizeParameter("s0", "shape", 0, 0), SizeParameter("k", "given", 0)),
    )  # fmt: skip
    (kernel,) = compiled(nest)
    x = normal(4, 3)
    (y,) = cpp_compile.run_ctypes(kernel, (x,), (5,))
    assert torch.equal(y, (x * 5).t())
    assert y.stride() == (1, 3)
    with pytest.raises(StructureMismatch, match="takes 1 sizes, not 0"):
        cpp_compile.run_ctypes(kernel, (x,))
