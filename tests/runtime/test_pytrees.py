"""How results nest: dataclasses, shapes and named tuples are taken apart and put together again."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils import _pytree as pytree

from fusion.runtime.pytrees import fields_of, flatten, mapped, tree_of, tree_text, unflatten


@dataclass(frozen=True)
class Inner:
    x: Any
    name: str = "inner"


@dataclass(slots=True)
class Outer:
    inner: Any
    items: list[Any] = field(default_factory=list)


class Named(NamedTuple):
    first: Any
    second: Any


NESTS = {
    "a leaf": 1,
    "containers": [1, (2, {"a": 3})],
    "a dataclass": Inner(1),
    "dataclasses in each other": {"a": Outer(Inner((1, 2)), [Inner(3)])},
    "a shape": (torch.Size([2, 3]), 1),
    "a named tuple": Named(1, [2]),
}


@pytest.mark.parametrize("name", NESTS)
def test_a_result_is_put_together_again(name: str) -> None:
    leaves, tree = flatten(NESTS[name])
    made = unflatten(leaves, tree)
    assert made == NESTS[name] and type(made) is type(NESTS[name])
    assert not any(isinstance(leaf, (list, tuple, dict, Inner, Outer)) for leaf in leaves)


def test_a_dataclass_is_made_without_its_init() -> None:
    calls = []

    @dataclass
    class Counted:
        x: int

        def __post_init__(self) -> None:
            calls.append(self.x)

    leaves, tree = flatten([Counted(1)])
    (made,) = unflatten(leaves, tree)
    assert made == made and made.x == 1 and calls == [1]


def test_containers_that_count_as_leaves_stay_whole() -> None:
    inner, outer = [1, 2], Inner(5)
    leaves, tree = flatten((inner, outer, [3]), {id(inner), id(outer)})
    assert leaves[0] is inner and leaves[1] is outer and leaves[2] == 3
    assert unflatten(leaves, tree) == (inner, outer, [3])


def test_shapes_stay_shapes_under_a_function() -> None:
    made = mapped(lambda x: x + 1, [torch.Size([2, 3]), (4,)])
    assert made == [torch.Size([3, 4]), (5,)] and type(made[0]) is torch.Size


@pytest.mark.parametrize("name", [name for name in NESTS if "dataclass" not in name])
def test_a_trees_text_gives_the_tree_again(name: str) -> None:
    _, tree = pytree.tree_flatten(NESTS[name])
    assert tree_of(tree_text(tree)) == tree


def test_classes_of_one_name_have_texts_of_their_own() -> None:
    first, second = (collections.namedtuple("Twin", "x") for _ in range(2))
    texts = [tree_text(pytree.tree_flatten(kind(1))[1]) for kind in (first, second)]
    assert texts[0] != texts[1]
    assert [tree_of(text).type for text in texts] == [first, second] or [
        type(unflatten([1], tree_of(text))) for text in texts
    ] == [first, second]


def test_only_plain_dataclass_instances_have_fields() -> None:
    assert fields_of(Inner(1)) == {"x": 1, "name": "inner"}
    more = Outer(1)
    assert fields_of(more) == {"inner": 1, "items": []}
    extra = Inner(1)
    object.__setattr__(extra, "beside", 2)
    assert fields_of(extra) is None, "it holds more than its fields"
    assert fields_of(Inner) is None and fields_of({"x": 1}) is None
