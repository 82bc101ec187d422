"""Schedules of matrix products, and the Triton source that follows from them: no compiler, no device."""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from by_rule import emit, forms
from graphs import trace

from fusion.kernels.backends.triton.product_schedule import (
    FEW_ROWS,
    PROGRAMS,
    ProductSchedule,
    operand_type,
    product_schedule,
    products_of,
)
from fusion.kernels.backends.triton.schedule import (
    BundleSchedule,
    Schedule,
    needs_int64,
    pieces,
    programs,
    schedule_for,
)
from fusion.kernels.backends.triton.script import standalone
from fusion.kernels.bundle import Bundle
from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import lower, lower_kernel
from fusion.patterns.errors import LoweringError

BF16 = torch.bfloat16


def nest_of(
    rows: int, columns: int, terms: int, dtype: torch.dtype = BF16, fn: Callable[..., Any] = F.linear, **how: Any
) -> LoopNest:
    """`fn` of a matrix of such rows and a weight."""
    return lower(trace(fn, torch.empty(rows, terms, dtype=dtype), torch.empty(columns, terms, dtype=dtype), **how))


def chosen(nest: LoopNest) -> ProductSchedule:
    """The schedule by rule, which is one of products."""
    schedule = schedule_for(nest)
    assert isinstance(schedule, ProductSchedule)
    return schedule


@pytest.mark.parametrize(("rows", "few"), [(1, True), (3, True), (FEW_ROWS, True), (FEW_ROWS + 1, False), (256, False)])
def test_few_rows_are_multiplied_in_registers(rows: int, few: bool) -> None:
    nest = nest_of(rows, 3072, 1024)
    assert chosen(nest).few == few
    assert ("tl.dot(" in emit(nest)) != few and ("tl.fma(" in emit(nest)) == few


@pytest.mark.parametrize("dtype", [BF16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows", [1, 2, 4, 5, 16, 17, 33, 64, 100, 256, 2000])
@pytest.mark.parametrize("columns", [2, 33, 1024, 5000])
def test_blocks_are_powers_of_two_that_fit(rows: int, columns: int, dtype: torch.dtype) -> None:
    schedule = chosen(nest_of(rows, columns, 128, dtype))
    sizes = (schedule.rows, schedule.columns, schedule.depth, schedule.num_warps)
    assert all(size.bit_count() == 1 for size in sizes)
    operands = (schedule.rows + schedule.columns) * schedule.depth * dtype.itemsize * schedule.num_stages
    assert operands <= 163 * 1024, "what a program may have of an A100's shared memory"
    sums = schedule.rows * schedule.columns * (schedule.depth if schedule.few else 1)
    assert sums <= 128 * 32 * schedule.num_warps, "sums in half of the registers"
    assert schedule.few or min(schedule.rows, schedule.columns, schedule.depth) >= 16
    assert schedule.rows < 2 * max(16, rows)


def test_small_products_make_more_programs_of_smaller_tiles() -> None:
    small, large = (chosen(nest_of(rows, 1024, 128)) for rows in (256, 8192))
    assert small.rows * small.columns < large.rows * large.columns
    for rows in (256, 8192):
        nest = nest_of(rows, 1024, 128)
        assert programs(nest, schedule_for(nest), {}) >= PROGRAMS


def test_products_of_one_kernel_share_the_registers_and_load_their_left_factors_once() -> None:
    inputs = [torch.empty(n, 1024, dtype=BF16) for n in (256, 3072, 3072)]
    nest = lower(trace(lambda x, g, u: F.silu(F.linear(x, g)) * F.linear(x, u), *inputs))
    assert chosen(nest).columns < chosen(nest_of(256, 3072, 1024)).columns
    text = emit(nest)
    assert text.count("tl.load(a0") == text.count("tl.load(a1") == text.count("tl.load(a2") == 1
    assert text.count("tl.dot(") == 2 and text.count("for start in") == 1


def test_products_of_other_lengths_have_loops_of_their_own() -> None:
    inputs = [torch.empty(*shape, dtype=BF16) for shape in ((64, 32), (48, 32), (64, 80), (48, 80))]
    nest = lower(trace(lambda x, w, y, v: F.linear(x, w) + F.linear(y, v), *inputs))
    assert chosen(nest).depth >= 32 and emit(nest).count("for start in") == 2


@pytest.mark.parametrize(
    ("fn", "dtypes", "wanted"),
    [
        (F.linear, (BF16, BF16), BF16),
        (F.linear, (torch.float16, torch.float16), torch.float16),
        (F.linear, (torch.float32, torch.float32), torch.float32),
        (lambda x, w: F.linear(x.to(w.dtype), w), (torch.float32, BF16), BF16),
        (lambda x, w: F.linear(x.float(), w), (BF16, torch.float32), torch.float32),
        (lambda x, w: F.linear(x.float(), w.float()), (BF16, BF16), BF16),  # exactly what halves were widened from
        (lambda x, w: F.linear(x.float(), w.float()), (BF16, torch.float16), torch.float32),
        (lambda x, w: F.linear(x.float() * 3.0, w.float()), (BF16, BF16), torch.float32),
    ],
)
def test_factors_go_to_the_tensor_cores_only_where_nothing_is_lost(
    fn: Callable[..., Any], dtypes: tuple[torch.dtype, torch.dtype], wanted: torch.dtype
) -> None:
    x, w = torch.empty(64, 32, dtype=dtypes[0]), torch.empty(48, 32, dtype=dtypes[1])
    nest = lower(trace(fn, x, w))
    (product,) = products_of(nest).products
    assert operand_type(product) is wanted
    assert ('input_precision="ieee"' in emit(nest)) == (wanted is torch.float32)


def test_terms_that_are_a_whole_number_of_chunks_need_no_mask() -> None:
    whole, cut = emit(nest_of(256, 3072, 1024)), emit(nest_of(256, 3072, 1000))
    assert "mask=" not in whole
    assert cut.count("mask=(j < 1000), other=0.0") == 1 and "mask=(depth < 1000), other=0.0" in cut


def test_both_factors_are_zero_beyond_the_end_also_where_they_are_computed() -> None:
    text = emit(nest_of(64, 48, 40, fn=lambda x, w: F.linear(x * 2.0 + 1.0, w + 1.0)))
    assert "tl.where((j < 40)," in text and "tl.where((depth < 40)," in text


def test_sizes_of_a_call_and_batches() -> None:
    symbolic = nest_of(17, 31, 23, dynamic={17: "s0", 31: "s1", 23: "s2"})
    schedule = chosen(symbolic)
    down, across = -(-1000 // schedule.rows), -(-300 // schedule.columns)
    assert programs(symbolic, schedule, {"s0": 1000, "s1": 23, "s2": 300}) == down * across
    assert programs(symbolic, schedule, {"s0": 0, "s1": 23, "s2": 300}) == 0
    batched = lower(trace(torch.bmm, torch.empty(3, 40, 32), torch.empty(3, 32, 50)))
    own = chosen(batched)
    assert programs(batched, own, {}) == 3 * -(-40 // own.rows) * -(-50 // own.columns)


def test_indices_take_32_bits_unless_a_tensor_needs_more() -> None:
    nest = nest_of(17, 3072, 1024, dynamic={17: "s0"})
    assert not needs_int64(nest, schedule_for(nest), {"s0": 65536})  # though there are more products than that
    assert needs_int64(nest, schedule_for(nest), {"s0": 2**20})


def test_products_are_not_cut_into_pieces() -> None:
    nest = nest_of(1, 16, 1 << 20)
    assert pieces(nest, schedule_for(nest), {}, 132) == ()
    assert forms(nest) == ((nest, schedule_for(nest)),)


@pytest.mark.parametrize(
    "fn",
    [
        lambda x, w: (x.double()[:, None] * w.double()).sum(-1),
        lambda x, w: (x.long()[:, None] * w.long()).sum(-1),
        lambda x, w: (x[:, None] * w).amax(-1),
    ],
)
def test_other_sums_keep_the_schedules_of_rows(fn: Callable[..., Any]) -> None:
    nest = nest_of(64, 48, 40, torch.float32, fn)
    assert product_schedule(nest) is None and isinstance(schedule_for(nest), Schedule)


def test_amd_gpus_get_fewer_warps_and_two_stages() -> None:
    nest = nest_of(256, 3072, 1024)
    wide, narrow = chosen(nest).options(nest, 64), chosen(nest).options(nest, 32)
    assert wide["num_warps"] * 2 == narrow["num_warps"] and wide["num_stages"] == 2 < narrow["num_stages"]
    assert narrow["enable_fp_fusion"] is False


def test_a_bundle_has_the_blocks_of_each_part() -> None:
    inputs = [torch.empty(n, 1024, dtype=BF16) for n in (256, 2048, 1024, 64)]
    graph = trace(lambda x, q, k, y: (F.linear(x, q), F.linear(x, k), y.softmax(-1)), *inputs)
    nest = lower_kernel(dataclasses.replace(graph, bundle=(1, 1, 1)))
    schedule = schedule_for(nest)
    assert isinstance(nest, Bundle) and isinstance(schedule, BundleSchedule)
    blocks = [f"{name}{k}" for k in (0, 1) for name in ("ROWS", "COLS", "DEPTH", "GROUP")]
    assert list(schedule.constants) == [*blocks, "ROWS2", "COLS2"]
    text = emit(nest)
    assert "_part1(program - end0, a0, a2, o1, ROWS1, COLS1, DEPTH1, GROUP1, INDEX)" in text
    stages = [part.num_stages for part in schedule.parts if isinstance(part, ProductSchedule)]
    assert schedule.options(nest)["num_stages"] == min(stages)
    total = sum(programs(part, own, {}) for part, own in zip(nest.parts, schedule.parts, strict=True))
    assert programs(nest, schedule, {}) == total


def test_the_text_is_deterministic_and_a_program_of_its_own() -> None:
    nest = nest_of(256, 300, 1024, fn=lambda x, w: F.gelu(F.linear(x, w)))
    assert emit(nest) == emit(nest_of(256, 300, 1024, fn=lambda x, w: F.gelu(F.linear(x, w))))
    program = standalone(nest, schedule_for(nest), emit(nest))
    ast.parse(program)
    schedule = chosen(nest)
    grid = f"(1) * triton.cdiv(256, {schedule.rows}) * triton.cdiv(300, {schedule.columns})"
    assert f"[({grid},)](" in program and f"num_stages={schedule.num_stages}" in program


@pytest.mark.parametrize("name", ["depth", "rows", "place", "DEPTH", "x\nimport os"])
def test_no_name_of_a_products_own_is_taken(name: str) -> None:
    with pytest.raises(LoweringError, match="cannot be a name"):
        emit(dataclasses.replace(nest_of(64, 48, 40), name=name))
