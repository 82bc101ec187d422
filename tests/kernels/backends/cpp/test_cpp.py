"""C++ kernels: values against eager by the acceptance rule, vector math, special values, structure checks."""

import contextlib
import os
import re
import subprocess
import sys

import graphs
import pytest
import torch
from graphs import DYNAMIC, EXAMPLES, LENGTH, normal, trace
from random_programs import OTHER_LENGTH, start
from random_programs import program as random_program

from fusion.kernels.backends.cpp import compile as cpp_compile
from fusion.kernels.backends.cpp import emit as cpp_emit
from fusion.kernels.backends.cpp import expressions as cpp_expressions
from fusion.kernels.backends.cpp.toolchain import find_toolchain, openmp_runtime
from fusion.kernels.loops import Argument, Axis, LoopNest, Output, Reduction, SizeParameter, Store
from fusion.kernels.lower import lower
from fusion.patterns import reference, scalar, symbols
from fusion.patterns.errors import CompileError, LoweringError, StructureMismatch
from fusion.patterns.scalar import Apply, Constant, Load, Reduced, Select, apply, cast, round_to
from fusion.patterns.verify import accept

pytestmark = [pytest.mark.slow, pytest.mark.skipif(find_toolchain() is None, reason="no C++ compiler")]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
N, J = symbols.symbol("s0"), symbols.index_symbol("j")
BELOW_ULP = {"exp": 1.0, "log": 1.0, "expm1": 2.0, "log1p": 2.0, "tanh": 2.0, "erf": 2.0, "sin": 2.0, "cos": 2.0}


def flat(name, value, inputs, dtype):
    """A kernel over one dimension of free length."""
    arguments = tuple(Argument(f"a{k}", t, (N,), (1,)) for k, t in enumerate(inputs))
    sizes = (SizeParameter("s0", "shape", 0, 0),)
    stores = (Store("o0", J, value),)
    return LoopNest(name, "", arguments, (Output("o0", dtype, (N,), (0,)),), (), Axis("j", N), (), stores, sizes)


def row(name, columns, reductions, stores, sizes=(), dtype=torch.float32, inputs=None):
    """A kernel over the rows of a matrix [s0, columns] to [s0] or [s0, columns]."""
    arguments = inputs or (Argument("a0", dtype, (N, columns), (columns, 1)),)
    outputs = tuple(
        Output(s.output, dtype, (N,) if s.per_row else (N, columns), (0,) if s.per_row else (0, 1)) for s in stores
    )
    sizes = (SizeParameter("s0", "shape", 0, 0), *sizes)
    rows = (Axis("i0", N),)
    return LoopNest(name, "", arguments, outputs, rows, Axis("j", columns), reductions, stores, sizes)


def reduced(fn, columns):
    """A kernel of one reduction, from [s0, columns] to [s0]."""
    i0 = symbols.index_symbol("i0")
    reductions = (Reduction("r0", fn, load(offset=columns * i0 + J), columns),)
    return row(fn, columns, reductions, (Store("o0", i0, Reduced(torch.float32, "r0"), per_row=True),))


def load(k=0, dtype=torch.float32, offset=J):
    return Load(scalar.compute_type(dtype), f"a{k}", offset, dtype)


def compiled(*nests):
    return cpp_compile.compile_cpp(nests, None)


def run(nest, *inputs):
    (kernel,) = compiled(nest)
    return cpp_compile.run_ctypes(kernel, inputs)


@pytest.fixture(scope="module")
def kernels():
    """Every example in every dtype, compiled as one unit: (graph, kernel)."""
    graphs = {
        (name, dtype): trace(example.fn, *example.inputs(dtype), dynamic=DYNAMIC)
        for name, example in EXAMPLES.items()
        for dtype in DTYPES
    }
    made = compiled(*(lower(graph) for graph in graphs.values()))
    return {key: (graph, kernel) for (key, graph), kernel in zip(graphs.items(), made, strict=True)}


@pytest.mark.parametrize("length", [LENGTH, 1, 2, 33, 0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", EXAMPLES)
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
    for name in ("where_positive", "cat_sizes", "strided", "rope"):
        inputs = EXAMPLES[name].inputs(torch.float32, 33)
        expected = EXAMPLES[name].fn(*inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for ours, theirs in zip(cpp_compile.run_ctypes(kernels[name, torch.float32][1], inputs), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_table_covers_every_primitive_and_no_other():
    assert set(cpp_expressions.EXPRESSIONS) == set(scalar.PRIMITIVES)
    for name, operands in scalar.PRIMITIVES.items():
        for template in cpp_expressions.EXPRESSIONS[name]:
            assert template.count("{0}") and f"{{{operands - 1}}}" in template and f"{{{operands}}}" not in template


def test_every_primitive_compiles_in_every_dtype_it_has():
    floats, wholes, bools = (torch.float32, torch.float64), (torch.int64, torch.int32), (torch.bool,)
    only_floats = {"exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "sin", "cos", "tanh", "erf", "atan2", "fma"}
    only_whole = {"and", "or", "xor", "shl", "shr"}
    on_bools = {"and", "or", "xor", "not", "eq", "ne", "where", "cast"}
    nests = []
    for name, operands in scalar.PRIMITIVES.items():
        kinds = floats if name in only_floats else wholes if name in only_whole else floats + wholes
        kinds = (torch.float32,) if name.startswith("round_") else kinds
        kinds = (torch.int32,) if name.startswith("wrap_") else kinds
        for dtype in kinds + (bools if name in on_bools else ()):
            parts = [load(k, dtype) for k in range(operands)]
            types = [dtype] * operands
            if name == "where":
                parts[0], types[0] = load(0, torch.bool), torch.bool
            value = (
                apply(name, *parts) if name != "cast" else cast(parts[0], torch.int64 if dtype in floats else floats[0])
            )
            nests.append(flat(f"{name}_{str(dtype)[6:]}", value, types, value.dtype))
    kernels = compiled(*nests)
    assert len({k.symbol for k in kernels}) == len(nests) > 70
    three = torch.arange(1, 20)
    for kernel in kernels:
        inputs = [three.to(a.dtype) for a in kernel.nest.inputs]
        (result,) = cpp_compile.run_ctypes(kernel, inputs)
        assert result.shape == (19,)


@pytest.mark.parametrize("fn", ["max", "min"])
@pytest.mark.parametrize("made", ["and", "or", "xor"])
def test_the_larger_of_two_made_bools(fn, made):
    a, b = load(0, torch.bool), load(1, torch.bool)
    value = apply(fn, apply(made, a, b), apply("eq", a, b))
    x, y = torch.tensor([False, False, True, True]), torch.tensor([False, True, False, True])
    (result,) = run(flat(f"{fn}_{made}", value, [torch.bool] * 2, torch.bool), x, y)
    of_two = {"and": x & y, "or": x | y, "xor": x ^ y}[made]
    assert torch.equal(result, {"max": torch.maximum, "min": torch.minimum}[fn](of_two, x == y))


@pytest.mark.parametrize("fn", BELOW_ULP)
def test_vector_math_over_the_full_range(fn):
    bits = torch.arange(-(2**31), 2**31, 1009, dtype=torch.int64).to(torch.int32)
    special = torch.tensor(
        [0.0, -0.0, torch.inf, -torch.inf, torch.nan, -1.0, 1.0, 1e-45, -1e-45, 88.72283, 88.72284, -103.9]
    )
    more = torch.linspace(-110, 110, 100_001), torch.linspace(-1.5, 1.5, 100_001)
    x = torch.cat([bits.view(torch.float32), special, *more])
    (y,) = run(flat(fn, apply(fn, load()), [torch.float32], torch.float32), x)
    exact = getattr(torch, fn)(x.double())
    rounded = exact.float()
    assert torch.equal(y.isnan(), rounded.isnan())
    assert torch.equal(torch.where(rounded.isinf(), y, 0), torch.where(rounded.isinf(), rounded, 0))
    finite = rounded.isfinite()
    exponent = torch.frexp(rounded.double()).exponent.clamp(min=-125)
    ulp = torch.ldexp(torch.ones_like(exact), exponent - 24)
    assert ((y.double() - exact).abs() / ulp)[finite].max() <= BELOW_ULP[fn]
    assert torch.equal(torch.signbit(y)[finite], torch.signbit(rounded)[finite])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_rounds_as_torch_does(dtype):
    bits = torch.arange(-(2**31), 2**31, 499, dtype=torch.int64).to(torch.int32)
    odd = torch.tensor([0x7FFFFFFF, -1, 0x7F800001, 0x7F7FFFFF], dtype=torch.int32)  # NaNs that carry, and the maximum
    x = torch.cat([bits, odd]).view(torch.float32)
    for value in (round_to(load(), dtype), apply("add", round_to(load(), dtype), 0.0)):
        (y,) = run(flat("narrow", value, [torch.float32], dtype), x)
        assert torch.equal(y.isnan(), x.isnan())
        assert torch.equal(torch.where(x.isnan(), 0, y), torch.where(x.isnan(), 0, x.to(dtype)))
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(dtype)
    (wide,) = run(flat("widen", load(dtype=dtype), [dtype], torch.float32), every)
    assert torch.equal(wide.nan_to_num(nan=7.5), every.float().nan_to_num(nan=7.5))
    (same,) = run(flat("through", round_to(apply("mul", load(dtype=dtype), 1.0), dtype), [dtype], dtype), every)
    assert torch.equal(same.isnan(), every.isnan())
    assert torch.equal(torch.where(every.isnan(), 0, same), torch.where(every.isnan(), 0, every))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_special_values_come_out_where_eager_has_them(kernels, dtype):
    values = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0, 0.0, 1e-40, -1e-40, 1e4, -1e4, 3e38, -3e38])
    for name in (
        "swiglu",
        "add_rms_norm",
        "gelu_bias",
        "where_positive",
        "log_softmax",
        "row_statistics",
        "layer_norm",
    ):
        inputs = [t.clone() for t in EXAMPLES[name].inputs(dtype, len(values))]
        for k, value in enumerate(values.to(dtype)):
            inputs[0][0, k, 5 + k] = value
        eager = EXAMPLES[name].fn(*inputs)
        for ours, theirs in zip(
            cpp_compile.run_ctypes(kernels[name, dtype][1], inputs),
            eager if isinstance(eager, tuple) else (eager,),
            strict=True,
        ):
            assert torch.equal(ours.isnan(), theirs.isnan()), name
            assert torch.equal(ours.isinf(), theirs.isinf()), name


def test_maximum_of_a_row_keeps_nan_wherever_it_stands():
    columns = 700  # more than one block
    nest = reduced("max", columns)
    x = normal(9, columns)
    for k, at in enumerate((0, 1, 31, 32, 511, 512, 698, 699)):
        x[k, at] = torch.nan
    (highest,) = run(nest, x)
    assert highest.isnan().tolist() == [True] * 8 + [False]
    assert highest[8] == x[8].max()


def test_sum_of_a_long_row_is_as_exact_as_float32_allows():
    columns = 151_936
    nest = reduced("sum", columns)
    x = normal(2, columns).abs()
    (total,) = run(nest, x)
    # 16 additions per lane of a block before double precision takes over: at most 16 roundings of half an ulp.
    assert ((total.double() - x.double().sum(-1)).abs() <= 8 * 2**-23 * x.double().sum(-1)).all()


@pytest.mark.parametrize("columns", [1, 31, 32, 512, 513, 1100, 4096, 4097, 9000])
def test_a_softmax_keeps_its_exponentials_or_makes_them_again(columns):
    def fn(x):
        return (x * 0.5).softmax(-1)

    graph = trace(fn, normal(3, LENGTH), dynamic=DYNAMIC)
    (kernel,) = compiled(lower(graph))
    assert "<= 4096" in kernel.source
    x = normal(3, columns) * 30  # far enough apart for subnormal results
    exact = reference.run_fp64(graph, {"x0": x})
    (ours,) = cpp_compile.run_ctypes(kernel, (x,))
    verdict = accept(ours, fn(x), *exact.values())
    assert verdict.ok, verdict.reason


@pytest.mark.parametrize("bounds", [(0,), (3, 40), (64,), (40, 3), (N,), (3, N + 3)], ids=str)
def test_selects_on_the_column_take_the_right_case(bounds):
    index = J if bounds != (64,) else J + 1
    cases = tuple(load(offset=64 * symbols.index_symbol("i0") + J) * float(k + 2) for k in range(len(bounds) + 1))
    value = Select(torch.float32, index, bounds, cases)
    i0 = symbols.index_symbol("i0")
    for rows in (1, 2, 50, 70):
        x = normal(rows, 64)
        (y,) = run(row("pick", 64, (), (Store("o0", 64 * i0 + J, value),)), x)
        limits = [int(symbols.evaluate(b, {"s0": rows})) for b in bounds]
        position = [j + (index is not J) for j in range(64)]
        factor = torch.tensor([next((k for k, b in enumerate(limits) if p < b), len(limits)) + 2.0 for p in position])
        assert torch.equal(y, x * factor)


def test_selects_on_the_row_and_beyond_reach():
    i0 = symbols.index_symbol("i0")
    here = load(offset=64 * i0 + J)
    previous = load(offset=64 * i0 + J - 64)  # lies outside for the first row, where it must not be read
    by_row = Select(torch.float32, i0, (1, 3), (here, previous, here * 2.0))
    scattered = Select(torch.float32, symbols.modulo(3 * J, 5), (2,), (here, by_row))
    x = normal(5, 64)
    (y, z) = run(row("rows", 64, (), (Store("o0", 64 * i0 + J, by_row), Store("o1", 64 * i0 + J, scattered))), x)
    expected = torch.stack([x[0], x[0], x[1], x[3] * 2, x[4] * 2])
    assert torch.equal(y, expected)
    assert torch.equal(z, torch.where(torch.arange(64) * 3 % 5 < 2, x, expected))


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


def test_integers_wrap_and_division_never_traps():
    a = torch.tensor([2**62, -(2**63), 7, -7, 5, 0])
    b = torch.tensor([2**62, -1, 2, 2, 0, 0])
    pair = (load(0, torch.int64), load(1, torch.int64))
    types = (torch.int64, torch.int64)
    names = ("add", "mul", "div", "fmod")
    kernels = compiled(*(flat(n, apply(n, *pair), types, torch.int64) for n in names))
    total, product, quotient, rest = (cpp_compile.run_ctypes(k, (a, b))[0] for k in kernels)
    assert torch.equal(total, a + b)
    assert torch.equal(product, a * b)
    assert quotient.tolist() == [1, -(2**63), 3, -3, 0, 0]
    assert rest.tolist() == [0, 0, 1, -1, 0, 0]


def test_source_is_deterministic_and_free_of_what_users_wrote():
    value = apply("exp", load())
    origin = ("aten.exp.default @ we*/ird\n#include.py:3 \\",)
    plain = flat("exp; drop", value, [torch.float32], torch.float32)
    marked = LoopNest(**{**{f: getattr(plain, f) for f in plain.__dataclass_fields__}, "origin": origin})
    assert cpp_emit.symbol(plain) == cpp_emit.symbol(marked)
    assert cpp_emit.symbol(plain).isidentifier()
    assert "// aten.exp.default @ we?/ird?include.py:3 ?\n" in cpp_emit.emit(marked).replace("??", "?")
    assert cpp_emit.code(plain) == cpp_emit.code(marked)
    assert compiled(plain, marked)[0].digest == compiled(plain, marked)[1].digest
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import graphs, hashlib\nfrom fusion.kernels.lower import lower\n"
        "from fusion.kernels.backends.cpp import emit as cpp\n"
        "e = graphs.EXAMPLES['rope']\n"
        "print(hashlib.sha256(cpp.translation_unit([lower(graphs.trace(e.fn, *e.inputs()))]).encode()).hexdigest())"
    )
    here = os.path.dirname(graphs.__file__)
    texts = {
        subprocess.run(
            [sys.executable, "-c", script, here], env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(texts) == 1


def test_names_and_dtypes_without_a_place_in_cpp_are_refused():
    with pytest.raises(LoweringError, match="complex64"):
        cpp_emit.emit(flat("c", Constant(torch.float32, 1.0), [torch.complex64], torch.float32))
    nest = flat("n", load(), [torch.float32], torch.float32)
    fields = {f: getattr(nest, f) for f in nest.__dataclass_fields__}
    with pytest.raises(LoweringError, match="'x1'"):
        cpp_emit.emit(LoopNest(**{**fields, "rows": (Axis("x1", 1),)}))


def test_loops_of_every_example_vectorise(kernels, tmp_path):
    toolchain = find_toolchain()
    if "clang" in toolchain.version or not os.path.exists("/proc/cpuinfo"):
        pytest.skip("reads gcc's -fopt-info")
    wanted = "loop vectorized|library calls"  # a loop that only copies becomes memcpy
    for name in ("swiglu", "add_rms_norm", "rope", "qk_norm_rope", "gelu_bias", "masked_softmax", "layer_norm"):
        for dtype in DTYPES:
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
                assert vectorised & set(range(first, end + 1)), (name, dtype, lines[first])


def test_apply_of_an_unknown_primitive_does_not_reach_the_emitter():
    with pytest.raises(KeyError):
        cpp_expressions.apply_text(Apply(torch.float32, "nothing", (load(),)), ["a"])


def test_threads_are_torchs_own():
    assert openmp_runtime()
    script = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import graphs, os, re, torch\nfrom fusion.kernels.backends.cpp import compile as compiler\n"
        "from fusion.kernels.lower import lower\n"
        "def threads(): return len(os.listdir('/proc/self/task'))\n"
        "def runtimes():\n"
        "    files = {line.split()[-1] for line in open('/proc/self/maps')}\n"
        "    return {f for f in files if re.match('lib(g|i)?omp', os.path.basename(f))}\n"
        "torch.set_num_threads(3)\n"
        "x = torch.randn(512, 4096); (x * x).sum(); before = threads(), runtimes()\n"
        "k, = compiler.compile_cpp([lower(graphs.trace(graphs.swiglu, x, x))], None)\n"
        "assert 'parallel' in k.source\n"
        "compiler.run_ctypes(k, (x, x))\n"
        "assert (threads(), runtimes()) == before, (threads(), runtimes(), before)\n"
        "print(threads())"
    )
    here = os.path.dirname(graphs.__file__)
    done = subprocess.run([sys.executable, "-c", script, here], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 3


def test_a_compile_error_carries_the_compilers_words(tmp_path):
    with pytest.raises(CompileError, match=r"error: .*nonsense"):
        find_toolchain().compile_library(("int f() { return nonsense; }",), tmp_path / "x.so")


def test_one_unit_in_error_is_an_error_whatever_the_others_are(tmp_path):
    good, bad = 'extern "C" int g() { return 1; }', "int f() { return nonsense; }"
    for units in ((good, bad), (bad, good)):
        with pytest.raises(CompileError, match=r"error: .*nonsense"):
            find_toolchain().compile_library(units, tmp_path / "x.so")
    assert not (tmp_path / "x.so").exists()
