"""What modules hold beside tensors and submodules: what is found, how it is put back, and what cannot be watched."""

from __future__ import annotations

import array
import collections
import functools
import random
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

from fusion.capture.python.reachable_state import Members, Numbers, ReachableState, is_library, is_of_library
from fusion.refusal import Refused
from fusion.runtime.snapshots import PythonSnapshot


class Holds(torch.nn.Module):
    """Holds what a test puts into it."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held


class Slotted:
    __slots__ = ("size",)

    def __init__(self) -> None:
        self.size = 1


class Plain:
    of_all = (1,)

    def __init__(self) -> None:
        self.size = 1

    def method(self, of: int = 1) -> int:
        return self.size + of

    @property
    def asked(self) -> int:
        return self.size


def _closure() -> tuple[Any, Callable[[], None]]:
    count = [1]
    size = 1

    def function() -> int:
        return size + len(count)

    def change() -> None:
        nonlocal size
        size = 2

    return function, change


def _function() -> Any:
    def function(size: int = 1) -> int:
        return size

    return function


def _set(held: Any, name: str, value: Any) -> Callable[[], None]:
    return lambda: setattr(held, name, value)


def holding() -> dict[str, tuple[Any, Callable[[], Any]]]:
    """What a module may hold, and a change to it."""
    plain, slotted, function = Plain(), Slotted(), _function()
    listed, mapped, among = [1], {"a": 1}, {1, 2}
    queue, numbers, text = collections.deque([1]), numpy.zeros(2), bytearray(b"ab")
    inside = {"a": ([Plain()],)}
    return {
        "an item of a list": (listed, lambda: listed.__setitem__(0, 2)),
        "a longer list": (listed, lambda: listed.append(2)),
        "an item of a dict": (mapped, lambda: mapped.update(a=2)),
        "another key": (mapped, lambda: mapped.update(b=1)),
        "a member of a set": (among, lambda: among.add(3)),
        "an item of a deque": (queue, lambda: queue.append(2)),
        "a number in an array": (numbers, lambda: numbers.__setitem__(0, 1.0)),
        "a byte": (text, lambda: text.__setitem__(0, 0)),
        "an attribute": (plain, _set(plain, "size", 2)),
        "another attribute": (plain, _set(plain, "further", 2)),
        "the class of an object": (plain, _set(plain, "__class__", type("Other", (Plain,), {}))),
        "a slot": (slotted, _set(slotted, "size", 2)),
        "a default": (function, _set(function, "__defaults__", (2,))),
        "the code of a function": (function, _set(function, "__code__", (lambda size=1: 2).__code__)),
        "a variable of a function around": _closure(),
        "what a bound method is bound to": (plain.method, _set(plain, "size", 2)),
        "what a partial call holds": (functools.partial(function, mapped), lambda: mapped.update(a=2)),
        "deep inside": (inside, _set(inside["a"][0][0], "size", 2)),
    }


@pytest.mark.parametrize("name", holding())
def test_changes_are_seen(name: str) -> None:
    held, change = holding()[name]
    holds = PythonSnapshot(ReachableState({"": Holds(held)}).entries)
    assert holds()
    change()
    assert not holds()


@pytest.mark.parametrize(
    "name, new",
    [("of_all", (2,)), ("method", lambda self: 1), ("asked", property(lambda self: 2))],
)
def test_changes_of_classes_are_seen(name: str, new: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    holds = PythonSnapshot(ReachableState({"": Holds(Plain())}).entries)
    assert holds()
    monkeypatch.setattr(Plain, name, new)
    assert not holds()


def test_the_code_of_a_method_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    holds = PythonSnapshot(ReachableState({"": Holds(Plain())}).entries)
    monkeypatch.setattr(Plain.method, "__code__", (lambda self, of=1: 3).__code__)
    assert not holds()


def test_objects_beside_the_modules_count() -> None:
    config = Plain()
    holds = PythonSnapshot(ReachableState({}, [config]).entries)
    config.size = 2
    assert not holds()


def test_what_steps_hold_is_their_own_affair() -> None:
    step = Holds([1])
    around = Holds([step])
    held = ReachableState({"": around}, (), [step])
    holds = PythonSnapshot(held.entries)
    step.held.append(2)
    assert holds() and held.modules == []


# ---- modules outside the tree


def test_modules_in_containers_are_found_with_those_below_them() -> None:
    inner = Holds(None)
    outer = torch.nn.Sequential(inner)
    assert ReachableState({"": Holds({"a": [outer]})}).modules == [outer, inner]
    assert ReachableState({"": Holds(outer)}).modules == [], "a submodule is watched as such"


def test_a_module_outside_the_tree_may_have_no_hooks() -> None:
    inner = Holds(None)
    inner.register_forward_hook(lambda *_: None)
    with pytest.raises(Refused, match="forward hooks") as refused:
        ReachableState({"": Holds([inner])})
    assert refused.value.refusal.code == "hook"


# ---- what cannot be watched


def _nested(depth: int) -> list[Any]:
    return [_nested(depth - 1)] if depth else [1]


@pytest.mark.parametrize(
    "held, code",
    [
        (random.Random(0), "random"),
        (numpy.random.default_rng(0), "random"),
        (iter([1]), "python_state"),
        ((i for i in range(2)), "python_state"),
        (_nested(8), "python_state"),
        ([[i] for i in range(6000)], "python_state"),
        (bytearray(5000), "python_state"),
        (numpy.zeros(2, dtype=object), "python_state"),
    ],
    ids=["random", "numpy's random", "an iterator", "a generator", "deep", "much", "many bytes", "objects"],
)
def test_what_cannot_be_watched_is_refused(held: Any, code: str) -> None:
    with pytest.raises(Refused) as refused:
        ReachableState({"": Holds(held)})
    assert refused.value.refusal.code == code


def test_arrays_that_cannot_change_are_not_compared() -> None:
    fixed = numpy.zeros(5000)
    fixed.flags.writeable = False
    assert not any(isinstance(entry[1], Numbers) for entry in ReachableState({"": Holds(fixed)}).entries)


# ---- sets, deques and arrays


@pytest.mark.parametrize("held", [{1, 2}, collections.deque([1, 2])], ids=["set", "deque"])
def test_members_are_put_back(held: Any) -> None:
    members = Members(held)
    held.remove(1)
    assert not members.same
    members.put_back()
    assert members.same and 1 in held


def test_members_are_equal_where_they_are_the_same_objects_of_one_container() -> None:
    one, other = [1], [1]
    held = collections.deque([one])
    before = Members(held)
    assert before == Members(held) and hash(before) == hash(Members(held))
    assert before != Members(collections.deque([one])), "of another container"
    held[0] = other
    assert before != Members(held) and not before.same, "equal is not the same"


@pytest.mark.parametrize(
    "held",
    [bytearray(b"abc"), array.array("d", [1, 2]), numpy.arange(6.0).reshape(2, 3)],
    ids=["bytes", "array", "numpy"],
)
def test_numbers_are_put_back(held: Any) -> None:
    numbers = Numbers(held)
    before = bytes(numbers.before)
    held[0] = 0 if isinstance(held, bytearray) else 7.0
    assert not numbers.same and numbers != Numbers(held)
    numbers.put_back()
    assert numbers.same and bytes(memoryview(held).cast("B")) == before and numbers == Numbers(held)


# ---- whose code it is


def test_libraries_are_told_from_the_users_code() -> None:
    assert is_library("json") and is_library("torch.nn") and is_library("numpy") and is_library("fusion.api")
    assert not is_library(__name__) and not is_library("no_such_module")
    assert is_of_library(dict) and is_of_library(torch.nn.Linear) and not is_of_library(Plain)
    made: dict[str, Any] = {"__name__": "builtins"}
    exec("class Made: ...", made)
    assert not is_of_library(made["Made"])
