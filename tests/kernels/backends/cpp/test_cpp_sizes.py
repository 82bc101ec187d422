"""The sizes a kernel is tried at: every branch of its schedule is among them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from graphs import trace

from fusion.kernels.backends.cpp import emit as cpp_emit
from fusion.kernels.backends.cpp.trial_sizes import branch_sizes
from fusion.kernels.loops import LoopNest
from fusion.kernels.lower import lower
from fusion.patterns import symbols

ROWS, COLUMNS = 7, 13


def nest_of(fn: Callable[..., Any], *example: torch.Tensor, fixed: bool = False) -> LoopNest:
    return lower(trace(fn, *example, dynamic={ROWS: "s0"} if fixed else {ROWS: "s0", COLUMNS: "s1"}))


def work(nest: LoopNest, sizes: dict[str, int]) -> int:
    """Elements times instructions of a whole run."""
    rows = symbols.evaluate(symbols.product(a.extent for a in nest.rows), sizes)
    return rows * sum(symbols.evaluate(extent, sizes) * of for extent, of in cpp_emit.column_passes(nest))


def test_a_softmax_reaches_every_branch() -> None:
    nest = nest_of(lambda x: torch.softmax(x * 2, -1), torch.randn(ROWS, COLUMNS))
    found = [(s["s0"], s["s1"]) for s in branch_sizes(nest)]
    columns = [c for _, c in found]
    assert (1, 1) in found
    assert any(512 < c < 4096 and c % 32 for c in columns)  # blocks, and a rest that is no multiple of a vector
    assert any(c > 4096 for c in columns)  # more than the row buffer holds
    assert any(
        r > 64 and r % 2 and work(nest, {"s0": r, "s1": c}) > cpp_emit.PARALLEL_WORK for r, c in found
    )  # shared rows
    assert any(r == 1 and work(nest, {"s0": 1, "s1": c}) > cpp_emit.PARALLEL_WORK for r, c in found)  # one shared row


def test_fixed_columns_are_reached_by_rows() -> None:
    nest = nest_of(lambda x: torch.softmax(x * 2, -1), torch.randn(ROWS, COLUMNS), fixed=True)
    found = [s["s0"] for s in branch_sizes(nest)]
    assert 1 in found and any(work(nest, {"s0": r}) > cpp_emit.PARALLEL_WORK for r in found)


def test_neighbouring_rows_make_more_than_a_block() -> None:
    nest = nest_of(lambda x: x.sum(0) * 2, torch.randn(ROWS, COLUMNS))
    assert any(s["s1"] > 256 for s in branch_sizes(nest))


def test_a_stride_of_its_own_keeps_elements_apart() -> None:
    x = torch.randn(ROWS, 3 * COLUMNS)[:, ::3]
    graph = trace(lambda x: x * 2 + 1, x, dynamic={ROWS: "s0", COLUMNS: "s1", 3 * COLUMNS: "s2"})
    for sizes in branch_sizes(lower(graph)):
        shape, strides = (
            [symbols.evaluate(d, sizes) for d in dims] for dims in (graph.spec["x0"].shape, graph.spec["x0"].strides)
        )
        offsets = {i * strides[0] + j * strides[1] for i in range(shape[0]) for j in range(shape[1])}
        assert len(offsets) == shape[0] * shape[1]


def test_there_are_few_of_them() -> None:
    nest = nest_of(lambda x, w: torch.softmax(x * w, -1), torch.randn(ROWS, COLUMNS), torch.randn(COLUMNS))
    assert len(branch_sizes(nest)) <= 7
