"""Taking back what operators did to memory and generators: whole tensors, the part an operator names, and draws."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from fusion.runtime.rollback import UndoLog

aten = torch.ops.aten
ROWS = torch.tensor([0, 2])
# Writes to a part of x [4, 3]: the operator, and its arguments behind x.
PARTS = {
    "index_copy_": (aten.index_copy_.default, (0, ROWS, torch.ones(2, 3))),
    "index_add_": (aten.index_add_.default, (0, ROWS, torch.ones(2, 3))),
    "index_fill_": (aten.index_fill_.int_Scalar, (0, ROWS, 7.0)),
    "index_put_": (aten.index_put_.default, ([ROWS], torch.tensor(7.0))),
    "scatter_": (aten.scatter_.value, (0, ROWS[:, None], 7.0)),
    "scatter_add_": (aten.scatter_add_.default, (0, ROWS[:, None], torch.ones(2, 1))),
}
# Writes to all of x.
WHOLE: dict[str, Callable[[torch.Tensor], tuple[object, tuple[object, ...]]]] = {
    "dense": lambda x: (aten.add_.Tensor, (x, 1)),
    "a view": lambda x: (aten.mul_.Tensor, (x.t()[1:], 2)),
    "out=": lambda x: (aten.exp.out, (x.clone(),)),
}


def run(undo: UndoLog, function: object, *args: object, **kwargs: object) -> None:
    undo.before(function, args, kwargs)
    function(*args, **kwargs)  # type: ignore[operator]


def sample() -> torch.Tensor:
    return torch.arange(12.0).view(4, 3)


@pytest.mark.parametrize("name", PARTS)
def test_a_part_is_kept_and_taken_back(name: str) -> None:
    function, arguments = PARTS[name]
    x = sample()
    undo = UndoLog(limit=8 * 4)  # less than the whole tensor
    run(undo, function, x, *arguments)
    assert not torch.equal(x, sample()) and not undo.partial
    undo.rewind()
    assert torch.equal(x, sample())


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_tensor_is_kept_and_taken_back(name: str) -> None:
    x = sample()
    function, arguments = WHOLE[name](x)
    undo = UndoLog()
    run(undo, function, *arguments, **({"out": x} if name == "out=" else {}))
    assert not torch.equal(x, sample()) and undo
    undo.rewind()
    assert torch.equal(x, sample())


def test_writes_are_taken_back_in_reverse_order() -> None:
    x = sample()
    undo = UndoLog()
    run(undo, aten.index_fill_.int_Scalar, x, 0, ROWS, 7.0)
    run(undo, aten.add_.Tensor, x, 1)
    run(undo, aten.index_fill_.int_Scalar, x, 0, ROWS, 9.0)
    undo.rewind()
    assert torch.equal(x, sample())


def test_an_expanded_tensor_is_kept_by_the_memory_behind_it() -> None:
    row = torch.zeros(3)
    undo = UndoLog()
    undo.writing(None, row.expand(4, 3), ())
    row.add_(1)
    undo.rewind()
    assert not row.any()


def test_inside_the_block_a_run_is_taken_back_and_afterwards_it_stands() -> None:
    x = sample()
    generator = torch.Generator().manual_seed(0)
    undo = UndoLog()
    run(undo, aten.uniform_.default, x, generator=generator)
    drawn, state = x.clone(), generator.get_state()
    now = undo.now()
    assert undo.draws and undo.agrees(now)
    with undo.rewound():
        assert torch.equal(x, sample()) and not undo.agrees(now)
        assert torch.equal(x.uniform_(generator=generator), drawn), "the same numbers are drawn again"
        x.zero_()
    assert torch.equal(x, drawn) and torch.equal(generator.get_state(), state)


def test_states_agree_where_both_are_nan() -> None:
    x = torch.zeros(2)
    undo = UndoLog()
    run(undo, aten.fill_.Scalar, x, float("nan"))
    now = undo.now()
    assert undo.agrees(now)
    x[0] = 1
    assert not undo.agrees(now)
    undo.put(now)
    assert x.isnan().all()


def test_beyond_its_limit_a_log_says_that_it_is_partial() -> None:
    x = sample()
    undo = UndoLog(limit=x.nbytes)
    run(undo, aten.add_.Tensor, x, 1)
    run(undo, aten.add_.Tensor, x, 1)  # the same place: nothing more is kept
    assert not undo.partial
    run(undo, aten.add_.Tensor, torch.zeros(1), 1)
    assert undo.partial and undo


def test_what_only_reads_leaves_nothing() -> None:
    undo = UndoLog()
    run(undo, aten.add.Tensor, sample(), 1)
    assert not undo and not undo.draws
