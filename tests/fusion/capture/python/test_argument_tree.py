"""Leaves and containers of a call's arguments: what is looked into, by which path, and what stays whole."""

from __future__ import annotations

import collections
import enum
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch

from fusion.capture.python.argument_tree import flatten, is_atom, modules_of, tensors_of
from fusion.patterns.leaves import Attribute


class Named(NamedTuple):
    first: Any
    second: Any


@dataclass
class Fields:
    x: Any
    y: Any


class Kind(enum.Enum):
    ONE = 1


class Loose(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__


@pytest.mark.parametrize(
    ("value", "atom"),
    [
        (None, True), (1, True), (1.5, True), ("a", True), (torch.float32, True), (torch.device("cpu"), True),
        (enum.IntEnum("Level", "LOW").LOW, True),  # type: ignore[attr-defined]
        (Loose(1), False), (Kind.ONE, False), ([1], False), (object(), False),
    ],
)  # fmt: skip
def test_atoms_are_compared_as_their_builtin_class_does(value: object, atom: bool) -> None:
    assert is_atom(value) is atom


def paths(**arguments: Any) -> dict[tuple[Any, ...], Any]:
    return {leaf.path: leaf.value for leaf in flatten(arguments)[0]}


def test_containers_are_looked_into_and_leaves_have_paths() -> None:
    x = torch.zeros(2)
    found = paths(a=[x, (1, {"k": 2, 3: 4})], b=Named(5, None), c=Fields(6, [7]))
    assert found == {
        ("a", 0): x,
        ("a", 1, 0): 1,
        ("a", 1, 1, "k"): 2,
        ("a", 1, 1, 3): 4,
        ("b", 0): 5,
        ("b", 1): None,
        ("c", Attribute("x")): 6,
        ("c", Attribute("y"), 0): 7,
    }


def test_containers_tell_their_exact_type_and_keys() -> None:
    given = {"a": {"k": [1, 2]}, "b": Fields(1, 2)}
    found = [(c.path, c.kind, c.keys) for c in flatten(given)[1]]
    assert found == [(("a",), dict, ("k",)), (("a", "k"), list, 2), (("b",), Fields, None)]
    assert flatten(given)[1][0].value is given["a"]


def test_mappings_of_libraries_have_their_items_and_plain_attributes() -> None:
    batch = collections.UserDict(ids=1)
    batch.length = 9  # type: ignore[attr-defined]
    batch.helper = object()  # type: ignore[attr-defined]
    assert paths(a=batch) == {("a", Attribute("data"), "ids"): 1, ("a", Attribute("length")): 9}
    kinds = [(c.path, c.keys) for c in flatten({"a": batch})[1]]
    assert kinds == [(("a",), ("ids",)), (("a", Attribute("__dict__")), ("data", "length", "helper"))]


class Odd(collections.UserDict):  # type: ignore[type-arg]
    def __len__(self) -> int:
        return 3


@pytest.mark.parametrize(
    "value", [{(1, 2): 3}, {1.5: 2}, {1, 2}, torch.nn.Linear(2, 2), Odd(a=1), object()], ids=lambda v: type(v).__name__
)
def test_what_is_not_looked_into_is_a_leaf(value: object) -> None:
    leaves, containers = flatten({"a": value})
    assert [leaf.value for leaf in leaves] == [value] and not containers


def test_a_container_that_holds_itself_is_a_leaf_inside() -> None:
    held: list[Any] = [1]
    held.append(held)
    leaves, containers = flatten({"a": held})
    assert [leaf.path for leaf in leaves] == [("a", 0), ("a", 1)] and leaves[1].value is held
    assert [c.path for c in containers] == [("a",)]


def test_one_container_twice_is_looked_into_twice() -> None:
    held = [1]
    assert list(paths(a=held, b=(held, held))) == [("a", 0), ("b", 0, 0), ("b", 1, 0)]


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = torch.nn.Linear(2, 2)
        self.again = self.first
        self.table = torch.zeros(3)  # no parameter, no buffer
        self.register_buffer("mask", torch.ones(1))


def test_tensors_of_modules_come_by_all_their_names() -> None:
    model = Model()
    names = [name for name, _ in tensors_of(model)]
    assert sorted(names) == ["again.bias", "again.weight", "first.bias", "first.weight", "mask", "table"]
    assert [name for name, _ in tensors_of(model, [model.first])] == ["mask", "table"]


def test_modules_are_skipped_with_what_is_below_them() -> None:
    model = torch.nn.Sequential(torch.nn.Sequential(torch.nn.ReLU()), torch.nn.Tanh())
    assert [name for name, _ in modules_of(model)] == ["", "0", "0.0", "1"]
    assert [name for name, _ in modules_of(model, [model[0], model[0][0]])] == ["", "1"]
