"""Dicts that a call is given: which items it set, when a plan can set the same, and taking them back."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch

from fusion.capture.python.argument_snapshot import ArgumentSnapshot
from fusion.runtime.plan import MISS

X = torch.zeros(2)


def test_items_that_were_set_are_told_by_path_and_key() -> None:
    held: dict[Any, Any] = {"old": X, "same": 1}
    given = ArgumentSnapshot({"a": [held], "x": X})
    assert given.set_items() == () and not given.changes()
    held["old"], held["new"] = (X, 3), None
    assert given.changes() and given.set_items() == ((("a", 0), "old"), (("a", 0), "new"))
    assert given.values((((("a", 0)), "old"),)) == ((X, 3),)


def _moves(held: dict[Any, Any]) -> None:
    held["old"] = held.pop("old")


@dataclasses.dataclass
class Sized:
    size: int


CHANGES: dict[str, Callable[[dict[Any, Any], list[Any]], Any]] = {
    "an item is gone": lambda held, _: held.pop("old"),
    "an item has moved": lambda held, _: _moves(held),
    "a key that is no text or number": lambda held, _: held.update({(1,): X}),
    "an object": lambda held, _: held.update(new=object()),
    "a list": lambda held, _: held.update(new=[X]),
    "a list beside has grown": lambda _, beside: beside.append(1),
    "a list inside has grown": lambda held, _: held["list"].append(1),
    "a list beside holds another tensor": lambda _, beside: beside.__setitem__(0, X.clone()),
    "an object beside has another attribute": lambda _, beside: setattr(beside[1], "size", 2),
    "an ordered dict beside has another item": lambda _, beside: beside[2].update(b=2),
}


@pytest.mark.parametrize("name", CHANGES)
def test_other_changes_are_none_that_a_plan_makes(name: str) -> None:
    held: dict[Any, Any] = {"old": X, "other": 1, "list": [X]}
    beside: list[Any] = [X, Sized(1), collections.OrderedDict(a=1)]
    given = ArgumentSnapshot({"a": held, "b": beside})
    CHANGES[name](held, beside)
    assert given.set_items() is None


def test_a_list_that_takes_the_place_of_one_in_a_dict_is_none_that_a_plan_makes() -> None:
    held: dict[str, Any] = {"list": [X]}
    given = ArgumentSnapshot({"a": held})
    held["list"] = (X,)
    assert given.set_items() == ((("a",), "list"),), "what was in the list is no longer there, and does not count"
    held["list"] = [X]
    assert given.set_items() is None


def test_a_dict_that_is_given_twice_is_not_set_by_a_plan() -> None:
    held: dict[str, Any] = {}
    given = ArgumentSnapshot({"a": held, "b": held})
    held["new"] = X
    assert given.set_items() is None


def test_dicts_of_one_class_have_to_stay_apart() -> None:
    first, second, other = {}, {}, collections.UserDict()  # type: ignore[var-annotated]
    given = ArgumentSnapshot({"a": first, "b": second, "c": other})
    first["new"] = X
    items = given.set_items()
    assert items is not None and given.apart(items) == ((("a",), ("b",)),)


def test_the_outcome_holds_what_was_set_or_is_a_miss() -> None:
    held: dict[str, Any] = {}
    given = ArgumentSnapshot({"a": held})
    assert given.outcome("result", ()) == "result"
    held["new"] = 5
    items = ((("a",), "new"),)
    assert given.outcome("result", items) == ("result", (5,))
    assert given.outcome("result", ()) is MISS


@pytest.mark.parametrize("kind", [dict, collections.UserDict])
def test_items_are_taken_back_and_put_again(kind: Any) -> None:
    held = kind(old=1)
    given = ArgumentSnapshot({"a": held})
    held["old"], held["new"] = 2, X
    with given.rewound():
        assert dict(held) == {"old": 1}
        held["again"] = 3
    assert list(held) == ["old", "new"] and held["old"] == 2 and held["new"] is X
    given.rewind()
    assert dict(held) == {"old": 1} and not given.changes()
