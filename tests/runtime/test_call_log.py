"""What a plan notes of native calls, writes to tensors and changes of containers, and how a re-run is told of them."""

from __future__ import annotations

import collections

import pytest
import torch

from fusion.runtime.call_log import (
    LoggedContainerChange,
    LoggedWrite,
    Rewound,
    contents,
    held_before,
    is_nest,
    keep_outer,
    kept,
    let_go,
    log_differences,
    log_writes,
    note_overwritten,
    note_passed_back,
    noted,
    take_over,
    unchanged,
    versions,
)
from fusion.runtime.rollback import UndoLog

Point = collections.namedtuple("Point", "x y")


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).view(2, 3),
        torch.arange(6.0).view(2, 3).t(),
        torch.arange(20.0).view(4, 5)[::2, 1:4],
        torch.arange(3.0).expand(2, 3),
        torch.zeros(0, 3),
    ],
    ids=["dense", "transposed", "sliced", "expanded", "empty"],
)
def test_a_kept_tensor_has_its_originals_values_and_strides_in_other_memory(tensor: torch.Tensor) -> None:
    copy = kept(tensor)
    assert torch.equal(copy, tensor)
    assert not tensor.numel() or (copy.stride() == tensor.stride() and copy.data_ptr() != tensor.data_ptr())


def test_versions_count_writes_and_inference_mode_has_none() -> None:
    a, b = torch.zeros(2), torch.zeros(2)
    before = versions(a, b)
    b.add_(1)
    assert before is not None and versions(a, b) == [before[0], before[1] + 1]
    with torch.inference_mode():
        assert versions(a, torch.zeros(2)) is None


def test_the_log_says_what_a_call_wrote_and_a_rerun_writes_it_again() -> None:
    read, changed = torch.zeros(2), torch.zeros(2)
    before = versions(read, changed)
    changed.add_(1)
    log = ["result"]
    log_writes(log, before, (3, 5), (), read, changed)
    entry = log[0]
    assert isinstance(entry, LoggedWrite) and entry.entry == "result" and list(entry.given) == [5]
    changed.add_(7)  # a later write is not the call's
    again = [torch.full((2,), float(k)) for k in range(6)]
    seen = entry.put(again)
    assert [float(t[0]) for t in again] == [0, 1, 2, 3, 4, 1]
    assert [float(t[0]) for t in seen] == [0, 1, 2, 3, 4, 5], "what the call saw before it wrote"
    assert seen[0] is again[0] and seen[5] is not again[5]


def test_a_call_that_writes_nothing_leaves_the_log_alone() -> None:
    x = torch.zeros(2)
    log = ["result"]
    log_writes(log, versions(x), (0,), (), x)
    assert log == ["result"]


def test_without_versions_small_tensors_are_kept_and_those_that_the_plan_changes_copied() -> None:
    small, own, large = torch.ones(2), torch.ones(2), torch.empty(1 << 18).expand(2, 1 << 18).contiguous()
    log = ["result"]
    log_writes(log, None, (0, 1, 2), (1,), small, own, large)
    given = log[0].given  # type: ignore[attr-defined]  # a LoggedWrite
    assert list(given) == [0, 1] and given[0] is small and given[1] is not own and torch.equal(given[1], own)


def test_differences_are_found_by_value() -> None:
    same, other = torch.ones(2), torch.ones(2)
    before = [same.clone(), torch.ones(1), other.clone()]
    other.mul_(3)
    log = ["result"]
    log_differences(log, before, (0, 2), same, other)
    entry = log[0]
    assert isinstance(entry, LoggedWrite) and list(entry.given) == [2] and entry.later == (0, 2)


def test_a_write_is_put_only_where_it_fits() -> None:
    entry = LoggedWrite("result", {0: torch.ones(2), 1: torch.ones(2)})
    longer, overlapping = torch.zeros(3), torch.zeros(1).expand(2)
    entry.put([longer, overlapping])
    assert not longer.any() and not overlapping.any()


def test_a_write_to_an_expanded_tensor_is_put_into_one_like_it() -> None:
    given = torch.zeros(1, 3).expand(2, 3)
    before = [given.clone()]
    given[0] = 1
    log = ["result"]
    log_differences(log, before, (0,), given)
    own = torch.zeros(1, 3).expand(2, 3)
    log[0].put([own])  # type: ignore[attr-defined]  # a LoggedWrite
    assert own.tolist() == given.tolist() == [[1, 1, 1], [1, 1, 1]]


def test_only_memory_of_the_outer_tensors_is_kept_for_undoing() -> None:
    outer, inner = torch.zeros(4), torch.zeros(4)
    undo = UndoLog()
    keep_outer(undo, [outer], outer[:2], inner)
    outer[:2] = 1
    inner[:] = 1
    undo.rewind()
    assert not outer.any() and inner.all()


def test_answers_hold_what_they_held_when_their_calls_returned() -> None:
    answer, log = torch.zeros(2), []
    for _ in range(2):  # two calls that write to what an earlier one has returned
        log.append(answer if not log else "wrote")
        old = held_before([answer])
        answer.add_(1)
        log.append("wrote")
        note_overwritten(log, old)
    rewound = Rewound(log)
    assert not answer.any()
    rewound.put_back()
    assert answer.tolist() == [2, 2]


def test_large_answers_are_kept_only_where_they_are_known_to_be_written_to() -> None:
    large = torch.zeros(1 << 19)
    assert not held_before([], [large]) and held_before([large])
    log = ["result"]
    note_overwritten(log, held_before([], [large]))
    assert log == ["result"]


def test_what_a_call_returned_of_what_it_was_given_is_the_reruns_own() -> None:
    given, other = torch.zeros(3, 4), torch.zeros(2)
    result = [given, given[1:], torch.ones(1), other.view(torch.int32)]
    log = [result]
    note_passed_back(log, (2, 0), given, other)
    own = torch.ones(3, 4)
    answer = log[0].answer([other, other, own])  # type: ignore[attr-defined]  # a LoggedWrite
    assert answer[0] is own and torch.equal(answer[1], own[1:]) and answer[1].data_ptr() == own[1:].data_ptr()
    assert answer[2] is result[2] and answer[3] is result[3], "of no such memory, or of another dtype"
    turned = log[0].answer([other, other, torch.ones(4, 3).t()])  # type: ignore[attr-defined]
    assert turned[1] is result[1], "which lies in memory in another way"


def test_a_result_in_other_memory_or_past_what_was_given_is_not_noted() -> None:
    whole = torch.zeros(4)
    for result, given in ((torch.zeros(2), torch.zeros(2)), (whole, whole[:2]), (whole[:2], whole[1:3])):
        log = [result]
        note_passed_back(log, (0,), given)
        assert isinstance(log[0], torch.Tensor)


def test_a_result_that_is_let_go_keeps_what_its_call_wrote() -> None:
    wrote = LoggedWrite("big", {0: torch.ones(1)}, (0,))
    log = ["plain", wrote]
    let_go(log, 0, "gone")
    let_go(log, 1, "gone")
    assert log[0] == "gone" and isinstance(log[1], LoggedWrite)
    assert (log[1].entry, log[1].given, log[1].later) == ("gone", wrote.given, wrote.later)


@pytest.mark.parametrize(
    ("value", "nests"),
    [
        (3, True),
        ([1, {"a": (2, Point(1, [2]))}], True),
        (torch.Size([1, 2]), True),
        ({1: 2}, True),
        ({(1, 2): 3}, False),
        ({1, 2}, False),
        (collections.OrderedDict(a=1), False),
        ([{"a": {2}}], False),
    ],
)
def test_what_is_a_nest_of_plain_containers(value: object, nests: bool) -> None:
    assert is_nest(value) is nests


def test_a_change_of_a_container_is_seen_at_any_depth() -> None:
    inner = {"a": 1, "b": 2}
    nest = ([inner], 5)
    before = contents(nest)
    assert [c for c, _ in before] == [[inner], inner]
    assert unchanged(before) and noted("result", before) == "result"
    inner["a"] = inner.pop("a")  # the same items in another order
    assert not unchanged(before)
    change = noted("result", before)
    assert isinstance(change, LoggedContainerChange) and change.result == "result" and change.given == before


def test_equal_objects_are_no_change_only_if_they_are_the_same() -> None:
    held = [[1], [2]]
    before = contents(held)
    held[0] = [1]
    assert not unchanged(before)


def test_a_rerun_takes_over_what_the_call_put_in_with_its_own_containers() -> None:
    inner: dict[str, object] = {}
    theirs = [inner, 1]
    changed = contents(theirs)
    inner["self"] = inner
    theirs.append(inner)
    mine: list[object] = [{}, 1]
    own = mine[0]
    take_over(mine, changed)
    assert len(mine) == 3 and mine[0] is own and mine[2] is own
    assert isinstance(own, dict) and own["self"] is own
