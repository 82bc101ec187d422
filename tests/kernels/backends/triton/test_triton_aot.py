"""Ahead-of-time compilation for GPUs that are not here: kernels compile, do not spill, and load 16 bytes at a time.

By default each example, reduction, cut row and primitive is compiled for one target, the next one for the next target;
`make test-all` compiles each for all.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace

import bundles
import graphs
import long_rows
import pytest
import torch
import triton_nests as nests
from by_rule import compile_ahead, emit, forms, make_cuda_launcher
from graphs import EXAMPLES
from thorough import combined
from triton_example_cases import lowered

from fusion.kernels.backends.triton import toolchain as toolchain
from fusion.kernels.backends.triton.schedule import Kind, launch_options, tensors
from fusion.kernels.lower import lower, lower_kernel
from fusion.patterns import scalar
from fusion.patterns.errors import BackendUnavailable, LoweringError

pytest.importorskip("triton", reason="Triton is not installed")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(toolchain.interpreted(), reason="TRITON_INTERPRET is set: nothing is compiled"),
]

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
FULL_LOAD = r"ld\.global(?:\.\w+)*\.v(?:4\.b32|2\.b64)|ld\.global(?:\.\w+)*\.v8\.b32"
FULL_STORE = r"st\.global(?:\.\w+)*\.v(?:4\.b32|2\.b64)|st\.global(?:\.\w+)*\.v8\.b32"


@pytest.mark.parametrize(("name", "target"), combined(EXAMPLES, TARGETS))
def test_every_example_compiles_without_spills(name: str, target: str) -> None:
    kernel = compile_ahead(lowered(name, torch.bfloat16)[0], target)
    assert kernel.asm["amdgcn" if target.startswith("gfx") else "ptx"]
    assert kernel.target == target
    assert not kernel.spills
    assert kernel.shared <= 48 * 1024  # what every GPU grants without asking
    if target.startswith("gfx"):
        assert kernel.spills == 0 and kernel.registers  # AMD always tells


def rotations(q: torch.Tensor, k: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
    def rotated(x: torch.Tensor) -> torch.Tensor:
        return x * cos + torch.cat((-x[..., 64:], x[..., :64]), -1) * sin

    return rotated(q), rotated(k)


@pytest.mark.parametrize("target", TARGETS)
def test_a_bundle_is_one_kernel_without_spills(target: str) -> None:
    kernel = compile_ahead(lower_kernel(bundles.graph_of()), target)
    assert kernel.asm["amdgcn" if target.startswith("gfx") else "ptx"]
    assert not kernel.spills
    assert kernel.shared <= 48 * 1024
    if target.startswith("gfx"):
        assert kernel.spills == 0 and kernel.registers


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_the_parts_of_a_bundle_move_16_bytes_at_a_time(target: str) -> None:
    heads = [torch.randn(2, n, 7, 128).bfloat16() for n in (8, 2, 1, 1)]
    graph = replace(graphs.trace(rotations, *heads, dynamic=graphs.DYNAMIC), bundle=(1, 1))
    kernel = compile_ahead(lower_kernel(graph), target)
    ptx = kernel.asm["ptx"]
    assert len(re.findall(r"\.entry", ptx)) == 1
    assert len(re.findall(FULL_STORE, ptx)) >= 2, "one for each part"
    assert not kernel.spills


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("name", ["rms_norm", "add_rms_norm", "swiglu", "gelu_bias", "layer_norm", "where_positive"])
def test_contiguous_tensors_move_16_bytes_at_a_time(name: str, target: str) -> None:
    ptx = compile_ahead(lowered(name, torch.bfloat16)[0], target).asm["ptx"]
    assert re.search(FULL_LOAD, ptx)
    assert re.search(FULL_STORE, ptx)
    assert not re.search(r"(?:ld|st)\.global(?:\.\w+)*\.b16", ptx)  # no element goes alone


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("fn", "shapes"),
    [
        (graphs.add_rms_norm, ((2, 7, 4096), (2, 7, 4096), (4096,))),
        (graphs.rms_norm, ((2, 7, 16384), (16384,))),
        (graphs.layer_norm, ((2, 7, 11008), (11008,), (11008,))),
        (graphs.chunk_swiglu, ((2, 7, 22016),)),
        (graphs.qk_norm_rope, ((2, 7, 16 * 128), (128,), (2, 7, 128), (2, 7, 128))),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_the_widths_of_real_models_fit_the_registers(
    fn: Callable[..., object], shapes: tuple[tuple[int, ...], ...], target: str
) -> None:
    inputs = [graphs.normal(*shape, dtype=torch.bfloat16) for shape in shapes]
    kernel = compile_ahead(lower(graphs.trace(fn, *inputs, dynamic={graphs.LENGTH: "s0"})), target)
    assert not kernel.spills
    # 16 warps of 128 registers are what a multiprocessor's 64K registers hold; fewer would leave it half empty.
    assert kernel.registers is None or kernel.registers <= 128
    wide = r"(?:global|buffer)_load_dwordx4" if target.startswith("gfx") else FULL_LOAD
    assert re.search(wide, kernel.asm["amdgcn" if target.startswith("gfx") else "ptx"])


def test_without_alignment_nothing_is_assumed() -> None:
    ptx = compile_ahead(lowered("swiglu", torch.bfloat16)[0], "sm_90", aligned=False).asm["ptx"]
    assert not re.search(FULL_LOAD, ptx)


INTEGER = ("shl", "shr", "wrap_int8", "wrap_int16", "wrap_uint8")
ELSEWHERE = ("and", "or", "xor", "where", "atan2")  # on bools, in other tests; atan2 has no form in Triton


@pytest.mark.parametrize(
    ("fn", "target"), combined([f for f in scalar.PRIMITIVES if f not in ELSEWHERE], ("sm_80", "gfx942"))
)
def test_every_primitive_compiles_everywhere(fn: str, target: str) -> None:
    result = torch.bool if fn in ("isnan", "lt", "le", "gt", "ge", "eq", "ne") else None
    if fn in ("cast", "round_bfloat16", "round_float16"):
        half = {"round_float16": torch.float16, "round_bfloat16": torch.bfloat16}
        nest = nests.conversion(torch.float32, half.get(fn, torch.int64))
    elif fn == "not":
        nest = nests.unary(fn, torch.bool)
    elif fn == "fma":
        nest = nests.fused()
    elif fn in INTEGER:
        nest = (nests.unary if scalar.PRIMITIVES[fn] == 1 else nests.binary)(fn, torch.int32)
    else:
        nest = (nests.unary if scalar.PRIMITIVES[fn] == 1 else nests.binary)(fn, result=result)
    assert not compile_ahead(nest, target).spills


@pytest.mark.parametrize(
    ("columns", "kind"), [(64, Kind.ROWS), (4096, Kind.ROWS), (16384, Kind.ROWS), (50000, Kind.LOOPED)]
)
def test_rows_of_every_length_fit_the_registers(columns: int, kind: Kind) -> None:
    nest = nests.row_sum(columns, "max", torch.bfloat16)
    assert launch_options(nest).kind is kind
    for target in ("sm_80", "sm_100", "gfx942"):
        assert not compile_ahead(nest, target).spills


BFLOAT16 = graphs.normal(8, 1024, 96, dtype=torch.bfloat16)
REDUCING = {
    "softmax over the middle": lambda x: x.softmax(1),
    "mean over two": lambda x: x - x.mean((1, 2), keepdim=True),
    "variance and mean": lambda x: torch.var_mean(x, (0, 1)),
    "argmax": lambda x: x.max(1),
    "cumsum": lambda x: x.cumsum(1) * 2.0,
    "cumsum along the last": lambda x: (x > 0).long().cumsum(-1) - 1,
    "product": lambda x: x.float().prod(-1),
    "layer norm": lambda x: torch.layer_norm(x, (1024, 96)),
    "any": lambda x: (x > 0).any(0),
}


@pytest.mark.parametrize(("name", "target"), combined(REDUCING, TARGETS))
def test_reductions_over_any_dimensions_compile(name: str, target: str) -> None:
    nest = lower(graphs.trace(lambda x: REDUCING[name](x), BFLOAT16))
    assert nest.reductions and not compile_ahead(nest, target).spills


@pytest.mark.parametrize(("name", "target"), combined(long_rows.LONG_ROWS, TARGETS))
def test_every_nest_of_cut_rows_compiles_without_spills(name: str, target: str) -> None:
    _, nest = long_rows.lowered(name)
    _, *cut = forms(nest)
    assert len(cut) == long_rows.LONG_ROWS[name].levels + 1
    for phase, schedule in cut:
        assert not compile_ahead(phase, target, schedule=schedule).spills


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_pieces_of_rows_move_16_bytes_at_a_time(target: str) -> None:
    x = graphs.normal(1, 128256, dtype=torch.bfloat16)
    _, *cut = forms(lower(graphs.trace(lambda x: x.softmax(-1), x)))
    texts = [compile_ahead(nest, target, schedule=schedule).asm["ptx"] for nest, schedule in cut]
    assert len(texts) == 3 and all(re.search(FULL_LOAD, ptx) for ptx in texts)
    assert re.search(FULL_STORE, texts[-1])


def test_rows_that_are_neighbours_in_memory_are_loaded_side_by_side() -> None:
    nest = lower(graphs.trace(lambda x: x.sum(0), graphs.normal(4096, 4096, dtype=torch.bfloat16)))
    schedule = launch_options(nest)
    assert schedule.kind is Kind.LOOPED and schedule.rows == 64
    assert re.search(FULL_LOAD, compile_ahead(nest, "sm_90").asm["ptx"])


def test_eager_numerics_never_fuse_a_multiply_with_an_add() -> None:
    nest = nests.multiply_add("eager")
    assert not re.search(r"\bfma\.", compile_ahead(nest, "sm_90").asm["ptx"])
    assert re.search(r"\bfma\.", compile_ahead(nests.multiply_add("fp32"), "sm_90").asm["ptx"])


def test_division_and_square_root_are_rounded_to_nearest() -> None:
    assert "div.rn.f32" in compile_ahead(nests.binary("div"), "sm_90").asm["ptx"]
    assert "sqrt.rn.f32" in compile_ahead(nests.unary("sqrt"), "sm_90").asm["ptx"]


def test_the_maximum_hands_nan_on() -> None:
    ptx = compile_ahead(nests.row_sum(64, "max"), "sm_90").asm["ptx"]
    assert "max.NaN" in ptx and not re.search(r"max\.f32", ptx)


def test_equal_kernels_have_equal_digests() -> None:
    first, second = (compile_ahead(nests.rotate(64), target) for target in ("sm_90", "sm_90"))
    assert first.digest == second.digest != compile_ahead(nests.rotate(64), "sm_80").digest


def test_the_numbers_of_a_kernel_are_read_from_its_binary() -> None:
    kernel = compile_ahead(nests.row_sum(4096), "sm_90")
    if kernel.registers is None:
        pytest.skip("no cuobjdump here")
    assert 0 < kernel.registers <= 255
    assert kernel.shared > 0  # warps exchange their parts of the sum


def test_an_unknown_target_is_refused_by_name() -> None:
    with pytest.raises(BackendUnavailable, match=r"'sm90'.*sm_90"):
        compile_ahead(nests.rotate(64), "sm90")


def test_a_primitive_without_a_form_is_refused() -> None:
    with pytest.raises(LoweringError, match=r"tanh.*float64") as refusal:
        compile_ahead(nests.unary("tanh", torch.float64), "sm_90")
    assert refusal.value.code == "primitive"


@pytest.mark.parametrize("wide", [False, True], ids=["int32", "int64"])
@pytest.mark.parametrize("name", ["masked_softmax", "cat_sizes", "swiglu", "strided"])
def test_sizes_of_one_are_constants_to_the_compiler(name: str, wide: bool) -> None:
    from triton import compile
    from triton.compiler import ASTSource

    nest, _ = lowered(name, torch.bfloat16)
    schedule = launch_options(nest)
    signature = {tensor.name: toolchain.POINTERS[tensor.dtype] for tensor in tensors(nest)}
    ones = {size.symbol: 1 for size in nest.sizes}  # what Triton's JIT makes of an argument that is 1
    constants = ones | toolchain.block_constants(schedule, wide=wide)
    kernel = toolchain.load(emit(nest, schedule), nest.name)
    source = ASTSource(kernel, signature | dict.fromkeys(constants, "constexpr"), constants, {})
    assert "ptx" in compile(source, target=toolchain.parse_target("sm_90"), options=schedule.options(nest)).asm


def test_a_launcher_that_cannot_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendUnavailable, match=r"rotate_half cannot run: .*TRITON_INTERPRET=1"):
        make_cuda_launcher(nests.rotate(64))


def test_why_triton_cannot_run_here_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "TRITON_INTERPRET=1" in (toolchain.available() or "")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert toolchain.available() is None
