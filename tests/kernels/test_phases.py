"""Nests whose rows are cut into pieces: what the nests that take their place mean together. No compiler, no device."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from evaluate import evaluate
from graphs import normal, trace
from long_rows import LONG_ROWS, lowered, values
from reduction_cases import CASES, FAIR, judge
from reduction_cases import lowered as lowered_case

from fusion.kernels.loops import LoopNest, SizeParameter
from fusion.kernels.lower import lower
from fusion.kernels.split_reduction import can_split, extents, phases
from fusion.patterns import symbols
from fusion.patterns.scalar import Select


def in_pieces(nest: LoopNest, inputs: tuple[torch.Tensor, ...], pieces: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    """What the phases make of `inputs`."""
    *levels, last = phases(nest)
    for level in levels:
        inputs += evaluate(level, *inputs, given=pieces)
    return evaluate(last, *inputs, given=pieces)


def cut(nest: LoopNest, inputs: tuple[torch.Tensor, ...], splits: int) -> tuple[int, ...]:
    """So many pieces of every row, the last ones shorter than the others or empty."""
    by_name = {s.symbol: inputs[s.argument].shape[s.dim] for s in nest.sizes if s.source == "shape"}
    return (splits, *(-(-symbols.evaluate(extent, by_name) // splits) for extent in extents(nest)))


@pytest.mark.parametrize("name", FAIR)
def test_pieces_come_to_what_whole_rows_do(name: str) -> None:
    """Every reduction over every kind of dimensions and layouts, in more pieces than some rows have columns."""
    for graph, nest, inputs in ((*lowered_case(*case), case[1]) for case in CASES[name]):
        if not can_split(nest):
            assert any(r.running for r in nest.reductions)
            continue
        for splits in (2, 5, 13):
            assert not judge(graph, in_pieces(nest, inputs, cut(nest, inputs, splits)), inputs), nest


@pytest.mark.parametrize("columns", [1, 16, 100, 257])
@pytest.mark.parametrize("name", LONG_ROWS)
def test_rows_of_any_length_come_in_any_pieces(name: str, columns: int) -> None:
    graph, nest = lowered(name)
    x = values(name, 3, columns)
    for splits in (1, 2, 16, 300):
        assert not judge(graph, in_pieces(nest, (x,), cut(nest, (x,), splits)), (x,)), splits


@pytest.mark.parametrize("name", LONG_ROWS)
def test_a_nest_for_each_level_and_one_that_stores(name: str) -> None:
    _, nest = lowered(name)
    assert len(phases(nest)) == LONG_ROWS[name].levels + 1


def test_what_needs_nothing_of_each_other_is_one_level() -> None:
    _, nest = lowered("several outputs")
    level, last = phases(nest)
    assert [o.name for o in level.outputs] == ["p0", "p1"] and len(last.reductions) == 2


def test_a_level_reads_only_what_it_needs() -> None:
    _, nest = lowered("softmax of a norm")
    *levels, last = phases(nest)
    # The mean; then from it the variance; from both the highest; from all three the sum.
    assert [len(level.reductions) for level in levels] == [1, 2, 3, 4]
    assert len(last.reductions) == 4
    _, nest = lowered("argmax")
    assert [len(phase.reductions) for phase in phases(nest)] == [1, 2, 1]


def test_no_piece_counts_what_is_beyond_the_row() -> None:
    _, nest = lowered("amin")
    body = phases(nest)[0].reductions[0].body
    assert isinstance(body, Select) and body.bounds == (nest.reductions[0].extent,)


def test_every_extent_has_chunks_of_its_own() -> None:
    x, y = normal(3, 5), normal(3, 9)
    nest = lower(trace(lambda x, y: x.amax(-1, keepdim=True) + y.sum(-1, keepdim=True), x, y))
    assert extents(nest) == (5, 9)
    assert [s.symbol for s in phases(nest)[0].sizes] == ["splits", "chunk0", "chunk1"]


def test_the_integers_a_kernel_is_given_stay_before_those_of_the_pieces() -> None:
    _, nest = lowered("softmax")
    given = replace(nest, sizes=(SizeParameter("s0", "given", 0), SizeParameter("s1", "given", 1)))
    assert [s.argument for s in phases(given)[0].sizes] == [0, 1, 2, 3]


def test_scans_need_their_columns_in_order() -> None:
    nest = lower(trace(lambda x: x.cumsum(-1).amax(-1), normal(3, 8)))
    assert not can_split(nest)
    assert not can_split(lower(trace(lambda x: x * 2, normal(3, 8))))
