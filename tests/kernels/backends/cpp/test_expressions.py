"""Primitives in C++: each in every dtype, vector math, conversions, integers."""

import pytest
import torch
from compiled_examples import needs_compiler
from cpp_nests import compiled, flat, load, run

from fusion.kernels.backends.cpp import compile as cpp_compile
from fusion.kernels.backends.cpp import expressions as cpp_expressions
from fusion.patterns import scalar
from fusion.patterns.scalar import Apply, apply, cast, round_to

pytestmark = [pytest.mark.slow, needs_compiler]

BELOW_ULP = {"exp": 1.0, "log": 1.0, "expm1": 2.0, "log1p": 2.0, "tanh": 2.0, "erf": 2.0, "sin": 2.0, "cos": 2.0}


def test_table_covers_every_primitive_and_no_other():
    assert set(cpp_expressions.EXPRESSIONS) == set(scalar.PRIMITIVES)
    for name, operands in scalar.PRIMITIVES.items():
        for template in cpp_expressions.EXPRESSIONS[name]:
            assert template.count("{0}") and f"{{{operands - 1}}}" in template and f"{{{operands}}}" not in template


def test_apply_of_an_unknown_primitive_does_not_reach_the_emitter():
    with pytest.raises(KeyError):
        cpp_expressions.apply_text(Apply(torch.float32, "nothing", (load(),)), ["a"])


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
