"""Examples as C++ kernels: values against eager by the acceptance rule, on threads and in vectors.

By default an example is compiled in one dtype, the next one in the next; `make test-all` takes all in all.
"""

import contextlib
import os
import re
import subprocess

import pytest
import torch
from compiled_examples import needs_compiler
from cpp_nests import DTYPES, compiled
from graphs import DYNAMIC, EXAMPLES, LENGTH, normal, trace
from random_programs import OTHER_LENGTH, start
from random_programs import program as random_program
from thorough import combined

from fusion.kernels.backends.cpp import compile as cpp_compile
from fusion.kernels.backends.cpp.toolchain import find_toolchain
from fusion.kernels.lower import lower
from fusion.patterns import reference
from fusion.patterns.errors import LoweringError
from fusion.patterns.verify import accept

pytestmark = [pytest.mark.slow, needs_compiler]
POINTWISE = ("where_positive", "cat_sizes", "strided", "rope")
SPECIAL = ("swiglu", "add_rms_norm", "gelu_bias", "where_positive", "log_softmax", "row_statistics", "layer_norm")
IN_VECTORS = ("swiglu", "add_rms_norm", "rope", "qk_norm_rope", "gelu_bias", "masked_softmax", "layer_norm")
CASES = combined(EXAMPLES, DTYPES)
OF_SPECIAL_VALUES = combined(SPECIAL, DTYPES)
OF_VECTORS = combined(IN_VECTORS, DTYPES)


@pytest.fixture(scope="module")
def kernels():
    """The examples in the dtypes that tests need, compiled as one unit: (graph, kernel)."""
    needed = dict.fromkeys([*CASES, *OF_SPECIAL_VALUES, *OF_VECTORS, *((name, torch.float32) for name in POINTWISE)])
    graphs = {
        (name, dtype): trace(EXAMPLES[name].fn, *EXAMPLES[name].inputs(dtype), dynamic=DYNAMIC)
        for name, dtype in needed
    }
    made = compiled(*(lower(graph) for graph in graphs.values()))
    return {key: (graph, kernel) for (key, graph), kernel in zip(graphs.items(), made, strict=True)}


@pytest.mark.parametrize("length", [LENGTH, 1, 2, 33, 0])
@pytest.mark.parametrize(("name", "dtype"), CASES, ids=str)
def test_examples_meet_the_rule_at_every_length_with_one_kernel(kernels, name, dtype, length):
    if name == "qk_norm_rope" and length == 0:
        pytest.skip("eager itself refuses view(2, 0, -1, 16)")
    graph, kernel = kernels[name, dtype]
    inputs = EXAMPLES[name].inputs(dtype, length)
    before = [t.clone() for t in inputs]
    if name == "masked_softmax" and length == 0:
        pytest.skip("a maximum over no elements")
    fused = cpp_compile.run_ctypes(kernel, inputs)
    eager = EXAMPLES[name].fn(*inputs)
    eager = eager if isinstance(eager, tuple) else (eager,)
    exact = reference.run_fp64(graph, dict(zip(graph.inputs, inputs, strict=True)))
    assert len(fused) == len(eager)
    for ours, theirs, truth in zip(fused, eager, exact.values(), strict=True):
        verdict = accept(ours, theirs, truth)
        assert verdict.ok, verdict.reason
    for tensor, copy in zip(inputs, before, strict=True):
        assert torch.equal(tensor, copy)


@pytest.mark.parametrize("numerics", ["eager", "fp32"])
def test_large_rows_run_on_threads_and_meet_the_rule(numerics):
    inputs = (normal(64, 3000, dtype=torch.bfloat16), normal(64, 3000, dtype=torch.bfloat16, seed=1))
    inputs += (normal(3000, dtype=torch.bfloat16),)
    fn = EXAMPLES["add_rms_norm"].fn
    graph = trace(fn, *inputs, dynamic={})
    (kernel,) = compiled(lower(graph, numerics=numerics))
    exact = reference.run_fp64(graph, dict(zip(graph.inputs, inputs, strict=True)))
    for ours, theirs, truth in zip(cpp_compile.run_ctypes(kernel, inputs), fn(*inputs), exact.values(), strict=True):
        assert accept(ours, theirs, truth).ok


def test_pointwise_float32_is_bit_equal_to_eager(kernels):
    for name in POINTWISE:
        inputs = EXAMPLES[name].inputs(torch.float32, 33)
        expected = EXAMPLES[name].fn(*inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for ours, theirs in zip(cpp_compile.run_ctypes(kernels[name, torch.float32][1], inputs), expected, strict=True):
            assert torch.equal(ours, theirs)


@pytest.mark.parametrize(("name", "dtype"), OF_SPECIAL_VALUES, ids=str)
def test_special_values_come_out_where_eager_has_them(kernels, name, dtype):
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 0.0, 1e-40, -1e-40, 1e4, -1e4, 3e38, -3e38])
    inputs = [t.clone() for t in EXAMPLES[name].inputs(dtype, len(values))]
    for k, value in enumerate(values.to(dtype)):
        inputs[0][0, k, 5 + k] = value
    eager = EXAMPLES[name].fn(*inputs)
    for ours, theirs in zip(
        cpp_compile.run_ctypes(kernels[name, dtype][1], inputs),
        eager if isinstance(eager, tuple) else (eager,),
        strict=True,
    ):
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.isinf(), theirs.isinf())


def test_random_programs_give_exactly_what_eager_gives():
    programs = []
    for seed in range(60):
        fn = random_program(seed)
        with contextlib.suppress(LoweringError):
            programs.append((fn, lower(trace(fn, start(LENGTH), dynamic={LENGTH: "s0"}))))
    assert len(programs) > 40
    for (fn, nest), kernel in zip(programs, compiled(*(nest for _, nest in programs)), strict=True):
        for length in (LENGTH, OTHER_LENGTH):  # small integers: every result is exact
            (result,) = cpp_compile.run_ctypes(kernel, (start(length),))
            assert torch.equal(result, fn(start(length))), nest


@pytest.mark.parametrize(("name", "dtype"), OF_VECTORS, ids=str)
def test_loops_of_examples_vectorise(kernels, tmp_path, name, dtype):
    toolchain = find_toolchain()
    if "clang" in toolchain.version or not os.path.exists("/proc/cpuinfo"):
        pytest.skip("reads gcc's -fopt-info")
    wanted = "loop vectorized|library calls"  # a loop that only copies becomes memcpy
    source = kernels[name, dtype][1].source
    path = tmp_path / "unit.cpp"
    path.write_text(source)
    command = [*toolchain.command, *toolchain.flags, "-fopt-info-optimized", "-c", str(path), "-o", os.devnull]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    vectorised = {int(line.split(":")[1]) for line in told.splitlines() if re.search(wanted, line)}
    lines = source.splitlines()
    loops = [n + 1 for n, line in enumerate(lines) if line.strip() == "#pragma omp simd"]
    assert loops
    for first in loops:  # gcc names the pragma, the loop, or a line of its body
        end = next(n for n in range(first, len(lines)) if lines[n].strip() == "}") + 1
        assert vectorised & set(range(first, end + 1)), lines[first]
