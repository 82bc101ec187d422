"""One look at a call's arguments."""

import collections
from collections.abc import Callable
from typing import Any

import pytest
import torch

import fusion
from fusion.capture.python import argument_snapshot, argument_tree, state_changes
from fusion.jit import bound_call
from fusion.jit.bound_call import BoundCall


def call(**arguments: Any) -> BoundCall:
    return BoundCall(tuple(arguments), tuple(arguments.values()))


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who flattens a call's arguments, in order."""
    found: list[str] = []

    def noted(module: Any, flatten: Callable[..., Any]) -> Callable[..., Any]:
        name = module.__name__.rpartition(".")[2]
        return lambda arguments: (found.append(name) if arguments else None) or flatten(arguments)

    for module in (bound_call, argument_snapshot, state_changes):
        monkeypatch.setattr(module, "flatten", noted(module, module.flatten))
    return found


def test_arguments_are_flattened_once(looks: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bound_call.pytree, "tree_flatten", lambda *_: pytest.fail("torch flattens them once more"))
    one = call(x=torch.rand(2, 3), sizes=[1, 2], past={"k": torch.rand(4)})
    for _ in range(3):
        assert one.structure is not None and one.form is not None and one.tree.leaves
        assert one.snapshot().leaves is one.tree.leaves
    assert looks == ["bound_call"]


UNPROFILED = {"profile": False, "enable_cache": False}


def test_a_recorded_call_is_flattened_once(looks: list[str]) -> None:
    """It is made twice, and what each run does to its dicts is seen all the same."""

    def forward(x: torch.Tensor, past: dict[str, Any]) -> torch.Tensor:
        past["seen"] = x + 1
        return torch.tanh(x) * past["k"] + 1

    fused = fusion.fuse(forward, UNPROFILED)
    past = {"k": torch.rand(4)}
    with torch.no_grad():
        fused(torch.rand(3, 4), past)
    assert fused.scope.statistics.recordings == 1 and fused.scope.known[0].graph.items
    assert looks == ["bound_call"] and list(past) == ["k", "seen"]


@pytest.mark.parametrize("fails", [False, True])
def test_a_refused_call_is_flattened_once_more_for_the_symbols_that_it_left(looks: list[str], fails: bool) -> None:
    def forward(x: torch.Tensor, found: list[Any]) -> torch.Tensor:
        found.append({"size": x.shape[0]})
        if fails and type(x.shape[0]) is not int:
            raise TypeError("a number is needed")
        return torch.tanh(x)

    found: list[Any] = []
    fused = fusion.fuse(forward, UNPROFILED)
    with torch.no_grad():
        fused(torch.rand(3, 4), found)
    assert not fused.scope.known and looks == ["bound_call", "state_changes"]
    assert all(type(held["size"]) is int for held in found)


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


def test_structures_tell_what_torch_finds_in_other_objects() -> None:
    """Containers that plans do not take apart count with what is in them, as torch sees it."""
    one, other, same = (call(x=collections.deque([torch.rand(2), n])) for n in (1, 2, 1))
    assert one.structure != other.structure and one.structure == same.structure


def test_an_argument_that_holds_itself_has_no_structure() -> None:
    held: list[Any] = []
    held.append(held)
    with pytest.raises(RecursionError):
        _ = call(x=held).structure


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
