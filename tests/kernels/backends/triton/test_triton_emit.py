"""The emitted Triton source as text: no compiler, no device."""

from __future__ import annotations

import ast
import dataclasses

import bundles
import pytest
import torch
import triton_nests as nests
from by_rule import emit, emit_all, forms
from graphs import LENGTH, trace

from fusion.kernels.backends.triton import math as triton_math
from fusion.kernels.backends.triton import primitives as triton_primitives
from fusion.kernels.backends.triton.schedule import (
    Kind,
    column_count,
    in_phases,
    launch_options,
    needs_int64,
    parameters,
    pieces,
    programs,
    row_count,
    schedule_for,
)
from fusion.kernels.lower import lower, lower_kernel
from fusion.kernels.memory_order import row_neighbours
from fusion.patterns import scalar, symbols
from fusion.patterns.errors import LoweringError

S1 = symbols.symbol("s1")


def test_the_table_covers_every_primitive() -> None:
    assert set(triton_primitives.EXPRESSIONS) == set(scalar.PRIMITIVES)
    assert set(triton_primitives.REDUCTIONS) == set(scalar.REDUCTIONS)
    for fn, operands in scalar.PRIMITIVES.items():
        for form in triton_primitives.EXPRESSIONS[fn].values():
            assert f"{{{operands - 1}}}" in form and f"{{{operands}}}" not in form


def test_helpers_call_what_they_say_they_call() -> None:
    for name, (callees, source) in triton_math.HELPERS.items():
        called = {n.id for n in ast.walk(ast.parse(source)) if isinstance(n, ast.Name)} & set(triton_math.HELPERS)
        assert called == set(callees), name


def test_a_module_holds_the_kernel_and_only_the_helpers_it_uses() -> None:
    tree = ast.parse(emit(nests.unary("tanh")))
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert functions == ["_power_of_two", "_exp_reduce", "_exp", "_tanh", "tanh_float32"]
    plain = ast.parse(emit(nests.binary("add")))
    assert [node.name for node in plain.body if isinstance(node, ast.FunctionDef)] == ["add_float32"]


def test_the_text_is_deterministic() -> None:
    assert emit(nests.row_sum(64)) == emit(nests.row_sum(64))


def test_the_origin_and_the_loop_nest_stand_above_the_kernel() -> None:
    nest = dataclasses.replace(nests.row_sum(64), origin=("sum @ model.py:7", "evil @ a\nimport os:1"))
    text = emit(nest)
    assert "#   sum @ model.py:7" in text
    assert "#   for i0 in s0:" in text
    assert not any(isinstance(n, ast.Import) and n.names[0].name == "os" for n in ast.walk(ast.parse(text)))


def test_whole_rows_are_loaded_once() -> None:
    text = emit(nests.row_sum(64))
    assert launch_options(nests.row_sum(64)).kind is Kind.ROWS
    assert text.count("tl.load(") == 1
    assert "for start" not in text


def test_rows_of_unknown_length_are_looped_over() -> None:
    nest = nests.row_sum(S1)
    assert launch_options(nest).kind is Kind.LOOPED
    text = emit(nest)
    assert text.count("for start in range(0, s1, COLS):") == 2
    assert text.count("tl.load(") == 2
    assert "mask=(j < s1)" in text


def test_column_masks_vanish_where_the_block_is_the_row() -> None:
    assert "(j <" not in emit(nests.row_sum(64))
    assert "(j < 100)" in emit(nests.row_sum(100))


def test_every_case_of_a_select_masks_its_loads() -> None:
    text = emit(nests.rotate(64))
    assert "mask=(row < s0) & (j < 32)" in text
    assert "mask=(row < s0) & (j >= 32)" in text


def test_a_load_that_both_cases_use_is_masked_by_either() -> None:
    text = emit(nests.shared_case())
    assert text.count("tl.load(") == 1
    assert "mask=(row < s0) & (((j < 8)) | ((j >= 8) & (j < 16)))" in text


def test_reductions_over_less_than_the_row_do_not_share_masked_loads() -> None:
    text = emit(nests.short_reduction())
    assert text.count("tl.load(") == 2
    assert "(j < 32)" in text


def test_what_does_not_vary_with_the_column_is_computed_before_the_loop() -> None:
    lines = emit(nests.scaled_rows(S1)).splitlines()
    division = next(i for i, line in enumerate(lines) if "tl.div_rn(1.0" in line)
    last_loop = max(i for i, line in enumerate(lines) if "for start" in line)
    assert division < last_loop


@pytest.mark.parametrize(
    ("nest", "rows", "columns", "programs"),
    [
        (nests.row_sum(64), 33, 64, 3),  # 16 rows of 64 a program
        (nests.row_sum(4096), 33, 4096, 33),
        (nests.row_sum(S1), 5, 100, 5),
        (nests.rotate(4096), 3, 4096, 12),  # no reduction: the row is cut into blocks
        (nests.unary("neg"), 1, 1025, 2),
        (nests.unary("neg"), 1, 0, 0),
        (nests.row_sum(64), 0, 64, 0),
    ],
)
def test_the_grid_covers_every_element(nest: nests.LoopNest, rows: int, columns: int, programs: int) -> None:
    assert launch_options(nest).programs(rows, columns) == programs


@pytest.mark.parametrize("columns", [1, 3, 16, 64, 100, 1024, 1025, 4096, 11008, 16384])
def test_blocks_are_powers_of_two_that_hold_the_row(columns: int) -> None:
    schedule = launch_options(nests.row_sum(columns))
    assert schedule.columns >= columns and schedule.columns.bit_count() == schedule.rows.bit_count() == 1
    assert schedule.num_warps in (1, 2, 4, 8, 16)
    assert schedule.rows * schedule.columns <= 32 * 32 * schedule.num_warps  # at most 32 elements a thread


@pytest.mark.parametrize(
    ("rows", "columns", "processors", "made"),
    [
        (1, 1_000_000, 132, (123, 8192)),  # 977 chunks of 1024: 8 to a piece, the last piece with 1
        (1, 128256, 132, (63, 2048)),  # pieces of at least two chunks
        (1, 32000, 132, (16, 2048)),
        (1, 31744, 132, ()),  # 31 chunks are not worth two launches
        (8, 128256, 132, (16, 8192)),
        (66, 128256, 132, (2, 64512)),
        (67, 128256, 132, ()),  # half of the multiprocessors at least have a row
        (4096, 128256, 132, ()),
        (0, 128256, 132, ()),
        (1, 128256, 1, ()),
        (1, 128256, 20, (18, 7168)),
        (1, 10**9, 1000, (256, 3815 * 1024)),  # what the pieces come to is put together by every program
    ],
)
def test_few_long_rows_are_cut_into_pieces(rows: int, columns: int, processors: int, made: tuple[int, ...]) -> None:
    nest = nests.row_sum(S1)
    cut = pieces(nest, launch_options(nest), {"s0": rows, "s1": columns}, processors)
    assert cut == made
    if cut:
        assert (cut[0] - 1) * cut[1] < columns <= cut[0] * cut[1]  # no piece is empty, none is missing
        level, schedule = in_phases(nest, launch_options(nest))[0]
        values = {"s0": rows, "s1": columns, "splits": cut[0], "chunk0": cut[1]}
        assert programs(nest, launch_options(nest), values) < programs(level, schedule, values) == rows * cut[0]
        assert programs(level, schedule, values) <= processors


@pytest.mark.parametrize("rows", [64, 4096])
def test_rows_that_are_neighbours_are_cut_together(rows: int) -> None:
    x = torch.randn(LENGTH, rows)
    nest = lower(trace(lambda x: x.sum(0), x, dynamic={LENGTH: "s0"}))
    schedule = launch_options(nest)
    splits, chunk = pieces(nest, schedule, {"s0": 8192}, 132)
    level, own = in_phases(nest, schedule)[0]
    assert schedule.rows == own.rows == 64 and row_neighbours(level) == level.rows[1]
    assert programs(level, own, {"s0": 8192, "splits": splits, "chunk0": chunk}) == splits * rows // 64 <= 132


def test_one_processor_takes_whole_rows_however_many_go_together() -> None:
    nest = lower(trace(lambda x: x.sum(0), torch.randn(LENGTH, 5), dynamic={LENGTH: "s0", 5: "s1"}))
    schedule = launch_options(nest)
    lengths = {s.symbol: 8192 if s.dim == 0 else 2 for s in nest.sizes}
    assert schedule.rows == 64
    assert pieces(nest, schedule, lengths, 2) == (64, 128) and pieces(nest, schedule, lengths, 1) == ()


def test_only_rows_in_chunks_are_cut() -> None:
    scanned = lower(trace(lambda x: x.cumsum(-1).amax(-1), torch.randn(3, LENGTH), dynamic={LENGTH: "s0"}))
    for nest in (scanned, nests.row_sum(4096), nests.rotate(64), lower_kernel(bundles.graph_of())):
        values = {s.symbol: 2**20 for s in nest.sizes} | {"s0": 1}
        assert pieces(nest, schedule_for(nest), values, 132) == ()
        assert forms(nest) == ((nest, schedule_for(nest)),)


def test_what_takes_the_place_of_cut_rows() -> None:
    nest = nests.row_sum(S1)
    whole, level, last = forms(nest)
    assert whole == (nest, launch_options(nest))
    assert [phase.name for phase, _ in (level, last)] == ["row_sum_level0", "row_sum_last"]
    assert (level[1].kind, last[1].kind) == (Kind.LOOPED, Kind.TILE)
    assert "for start in range(0, chunk0, COLS):" in emit(*level) and "range(0, s1" not in emit(*level)
    lines = emit(*last).splitlines()
    loop = next(i for i, line in enumerate(lines) if "for start in range(0, splits, COLS):" in line)
    tile = next(i for i, line in enumerate(lines) if "j = (program % blocks) * COLS" in line)
    assert emit_all(nest) == "\n\n".join(emit(*form) for form in (whole, level, last))
    assert loop < tile, "the columns that are stored are those of the program, not of the loop"


def test_64_thread_warps_are_half_as_many() -> None:
    nest = nests.row_sum(4096)
    schedule = launch_options(nest)
    assert schedule.options(nest, 64)["num_warps"] * 2 == schedule.options(nest, 32)["num_warps"]


def test_offsets_get_64_bits_where_they_need_them() -> None:
    nest = nests.row_sum(4096)
    schedule = schedule_for(nest)
    assert not needs_int64(nest, schedule, {"s0": 1000})
    assert needs_int64(nest, schedule, {"s0": 2**19})
    assert not needs_int64(nests.far_rows(), schedule_for(nests.far_rows()), {"s0": 2, "s1": 2**30})
    assert needs_int64(nests.far_rows(), schedule_for(nests.far_rows()), {"s0": 3, "s1": 2**30})


@pytest.mark.parametrize(
    ("value", "dtype", "text"),
    [
        (0.1, torch.float32, "0.1"),
        (float("-inf"), torch.float32, 'float("-inf")'),
        (float("nan"), torch.float32, 'float("nan")'),
        (1e39, torch.float32, 'float("inf")'),
        (1e39, torch.float64, "1e+39"),
        (True, torch.bool, "True"),
        (-3, torch.int64, "-3"),
    ],
)
def test_constants_keep_their_value(value: float, dtype: torch.dtype, text: str) -> None:
    assert triton_primitives.literal(scalar.Constant(dtype, value)) == text


def test_constants_that_triton_would_widen_are_typed() -> None:
    x = nests.load("a0", nests.J, torch.float32)
    text = emit(nests.flat("tiny", x + 1e-40, (torch.float32,), torch.float32))
    assert "tl.full([1], 1e-40, tl.float32)" in text


@pytest.mark.parametrize("name", ["class", "has space", "row", "x\nimport os", "_hidden"])
def test_no_name_but_a_plain_one_reaches_the_source(name: str) -> None:
    with pytest.raises(LoweringError, match="cannot be a name"):
        emit(dataclasses.replace(nests.row_sum(64), name=name))


def test_parameters_are_inputs_outputs_sizes() -> None:
    assert parameters(nests.row_sum(S1)) == ("a0", "o0", "o1", "s0", "s1")


def test_a_bundle_divides_the_programs_among_its_parts() -> None:
    nest = lower_kernel(bundles.graph_of())
    text = emit(nest)
    assert text == emit(lower_kernel(bundles.graph_of()))
    assert [f"_part{k}(" in text for k in range(4)] == [True, True, True, False]
    assert "elif program < end1:" in text
    schedule = schedule_for(nest)
    values = {s.symbol: 300 for s in nest.sizes}
    counts = [
        own.programs(symbols.evaluate(row_count(part), values), symbols.evaluate(column_count(part), values))
        for part, own in zip(nest.parts, schedule.parts, strict=True)
    ]
    assert programs(nest, schedule, values) == sum(counts) and min(counts) >= 1
    assert list(schedule.constants) == ["ROWS0", "COLS0", "ROWS1", "COLS1", "ROWS2", "COLS2"]
    assert schedule.options(nest)["num_warps"] == max(part.num_warps for part in schedule.parts)
