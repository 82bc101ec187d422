"""What one run writes to and draws from: its own memory or another's, in which order, and past torch's operators."""

from __future__ import annotations

import pytest
import torch

from fusion.capture.mutation import MutationTracker, has_memory, mapped, storage_key, tensors_written, view_in_place
from fusion.refusal import Refused

aten = torch.ops.aten


def run(tracker: MutationTracker, function: object, *args: object, **kwargs: object) -> torch.Tensor:
    """An operator as a recorder calls it."""
    tracker.before(function, args, kwargs)
    result: torch.Tensor = function(*args, **kwargs)  # type: ignore[operator]
    tracker.after(args, kwargs, result)
    return result


def test_the_tensors_that_an_operator_writes_to() -> None:
    x, y = torch.zeros(2), torch.zeros(2)
    assert tensors_written(aten.add.Tensor, (x, y), {}) == []
    assert [id(t) for t in tensors_written(aten.add_.Tensor, (x, y), {})] == [id(x)]
    assert [id(t) for t in tensors_written(aten.add.out, (x, y), {"out": y})] == [id(y)]
    assert [id(t) for t in tensors_written(aten._foreach_add_.Scalar, ([x, y], 1), {})] in (
        [id(x), id(y)],
        [id(y), id(x)],
    )


def test_memory_of_results_is_the_runs_own_and_that_of_views_is_not() -> None:
    tracker = MutationTracker()
    outer = torch.ones(4)
    made = run(tracker, aten.add.Tensor, outer, 1)
    view = run(tracker, aten.slice.Tensor, outer, 0, 1)
    assert tracker.made_here(made) and not tracker.made_here(view) and not tracker.made_here(outer)
    assert tracker.knows(made) and not tracker.knows(outer)
    tracker.memory["v0"] = storage_key(outer)
    assert tracker.knows(view)


def test_writes_to_outer_memory_are_taken_back_and_those_to_the_runs_own_are_not() -> None:
    tracker = MutationTracker()
    outer = torch.ones(4)
    made = run(tracker, aten.add.Tensor, outer, 1)
    run(tracker, aten.mul_.Tensor, outer, 3)
    run(tracker, aten.mul_.Tensor, made, 3)
    tracker.undo.rewind()
    assert outer.tolist() == [1] * 4 and made.tolist() == [6] * 4


def test_native_writes_count_where_the_run_knows_the_memory() -> None:
    tracker = MutationTracker()
    known, outer, unknown = (torch.zeros(2) for _ in range(3))
    tracker.memory["v0"] = storage_key(known)
    tracker.native_write(3, known)
    tracker.native_write(4, outer, outer={storage_key(outer)})
    tracker.native_write(5, unknown)
    assert tracker.writes == tracker.native == [(3, storage_key(known)), (4, storage_key(outer))]


def test_draws_by_operators_are_fine_and_those_past_them_are_refused() -> None:
    tracker = MutationTracker()
    run(tracker, aten.rand.default, [2])
    tracker.after_draw()
    tracker.check_generators()
    torch.rand(2)  # no operator that the tracker was told of
    with pytest.raises(Refused) as refused:
        tracker.check_generators()
    assert refused.value.refusal.code == "random"


def test_a_seed_before_a_draw_is_refused_at_the_draw() -> None:
    generator = torch.Generator()
    tracker = MutationTracker([generator])
    generator.manual_seed(5)
    run(tracker, aten.rand.generator, [2], generator=generator)
    with pytest.raises(Refused, match="seeds a generator"):
        tracker.after_draw()


def test_native_calls_may_draw_unless_operators_do_too() -> None:
    tracker = MutationTracker()
    tracker.before_native()
    torch.rand(2)
    tracker.after_native()
    tracker.check_generators()
    run(tracker, aten.rand.default, [2])
    tracker.after_draw()
    with pytest.raises(Refused, match="both operators and native calls"):
        tracker.check_generators()


def test_views_in_place_have_a_view_and_other_changes_of_a_tensor_none() -> None:
    assert view_in_place(aten.add_.Tensor) is None
    assert view_in_place(aten.t_.default) == "aten.t.default"
    assert view_in_place(aten.squeeze_.dim) == "aten.squeeze.dim"
    with pytest.raises(Refused) as refused:
        view_in_place(aten.set_.source_Tensor)
    assert refused.value.refusal.code == "outer_write"


def test_only_strided_tensors_have_memory() -> None:
    assert has_memory(torch.zeros(2)) and not has_memory(3)
    assert not has_memory(torch.eye(2).to_sparse())


def test_arguments_keep_their_containers_under_a_function() -> None:
    made = mapped(lambda x: x + 1 if isinstance(x, int) else x, ([1, (2, None)], {"a": 3}, torch.Size([4])))
    assert made[:2] == ([2, (3, None)], {"a": 4}) and tuple(made[2]) == (5,)
