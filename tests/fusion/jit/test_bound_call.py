"""One look at a call's arguments."""

from typing import Any

import pytest
import torch

from fusion.capture.python import argument_tree
from fusion.jit import bound_call
from fusion.jit.bound_call import BoundCall


def call(**arguments: Any) -> BoundCall:
    return BoundCall(tuple(arguments), tuple(arguments.values()))


def test_arguments_are_flattened_once_each_way(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    flatten, tree_flatten = bound_call.flatten, bound_call.pytree.tree_flatten
    monkeypatch.setattr(bound_call, "flatten", lambda *a: looks.append("tree") or flatten(*a))
    monkeypatch.setattr(
        bound_call.pytree, "tree_flatten", lambda *a, **k: looks.append("structure") or tree_flatten(*a, **k)
    )
    one = call(x=torch.rand(2, 3), sizes=[1, 2], past={"k": torch.rand(4)})
    for _ in range(3):
        assert one.structure is not None and one.form is not None and one.tree.leaves
        assert one.snapshot().leaves is one.tree.leaves
    assert looks == ["structure", "tree"]


def test_structures_leave_out_sizes_but_for_none_and_one() -> None:
    assert call(x=torch.rand(2, 3)).structure == call(x=torch.rand(5, 7)).structure
    assert call(x=torch.rand(1, 3)).structure != call(x=torch.rand(2, 3)).structure
    assert call(x=torch.rand(0, 3)).structure != call(x=torch.rand(1, 3)).structure


@pytest.mark.parametrize(
    "one, other",
    [(1, 2), (1, True), (1, 1.0), (0, False), ("a", "b"), (None, 0), ([1, 2], [1, 3]), ([1], [1, 2]), ((1,), [1])],
)
def test_structures_tell_plain_values_apart(one: Any, other: Any) -> None:
    assert call(x=one).structure != call(x=other).structure


def test_forms_leave_out_the_numbers_in_lists_of_numbers() -> None:
    assert call(x=[1, 2]).form == call(x=[3, 4]).form
    assert call(x=[1, 2]).form != call(x=[1, 2, 3]).form
    assert call(x=[1.0, 2]).form is None and call(x=(1, 2)).form is None and call(x=[]).form is None


def test_kinds_are_types_and_the_three_words() -> None:
    assert call(a=None, b=True, c=False, d=3, e=torch.rand(2)).kinds == (None, True, False, int, torch.Tensor)


def test_the_tree_is_what_the_call_finds() -> None:
    held = {"k": 1}
    one = call(x=held)
    before = one.tree
    held["k"] = 2
    assert one.tree is before and before.leaves == [argument_tree.Leaf(("x", "k"), 1)]
