"""Lists and dicts that are looked into: they behave as what they stand for, and tell the session of every use."""

from __future__ import annotations

import copy
import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusion.capture.python.container_proxy import (
    asks_for_classes,
    is_container,
    is_looked_into,
    is_object,
    is_plain,
    looked_into,
    put_back,
    real,
)


class Session:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[Any, ...]] = []

    def on_item(self, held: Any, method: str, arguments: tuple[Any, ...], value: Any) -> Any:
        self.told.append(("item", method, *arguments))
        return value

    def on_failed_read(self, held: Any, method: str, error: Exception) -> Any:
        self.told.append(("failed", method, type(error)))
        raise error

    def on_use(self, held: Any, method: str, changes: bool) -> None:
        self.told.append(("change" if changes else "use", method))


def seen(value: Any) -> tuple[Any, list[tuple[Any, ...]]]:
    session = Session()
    return looked_into(value, lambda: session), session.told


def test_reads_of_a_list_are_told_item_by_item() -> None:
    proxy, told = seen(["a", "b"])
    assert proxy[1] == "b" and len(proxy) == 2 and list(proxy) == ["a", "b"]
    assert ("item", "__getitem__", 1) in told and ("item", "__len__") in told
    assert all(kind == "item" for kind, *_ in told)


def test_reads_of_a_dict_are_told_by_key() -> None:
    proxy, told = seen({"k": 1})
    assert proxy["k"] == 1 and "k" in proxy and proxy.get("none") is None and proxy.get("none", 2) == 2
    assert told == [
        ("item", "__getitem__", "k"),
        ("item", "__contains__", "k"),
        ("item", "get", "none"),
        ("item", "get", "none", 2),
    ]


def test_a_read_that_fails_is_told_and_raises() -> None:
    proxy, told = seen({"k": 1})
    with pytest.raises(KeyError):
        proxy["none"]
    assert told == [("failed", "__getitem__", KeyError)]


def test_changes_reach_the_container_and_are_told_as_changes() -> None:
    held: list[Any] = [1]
    proxy, told = seen(held)
    proxy.append(2)
    proxy += [3]
    assert held == [1, 2, 3] and told[:2] == [("change", "append"), ("change", "__iadd__")]
    mapping: dict[str, int] = {}
    proxy, told = seen(mapping)
    proxy["k"] = 1
    proxy.update(j=2)
    assert mapping == {"k": 1, "j": 2} and told == [("change", "__setitem__"), ("change", "update")]


def test_other_uses_are_told_and_changes_nothing() -> None:
    proxy, told = seen({"k": 1})
    assert list(proxy.items()) == [("k", 1)] and proxy == {"k": 1}
    assert told == [("use", "items"), ("use", "__eq__")]
    first, (proxy, told) = [1], seen([3])
    assert first + proxy == [1, 3] and told[0] == ("use", "__radd__")


def test_copies_are_plain_containers() -> None:
    proxy, _ = seen([[1]])
    for made in (copy.copy(proxy), copy.deepcopy(proxy), proxy.copy()):
        assert type(made) is list and made == [[1]]


def test_it_says_that_it_is_what_it_stands_for() -> None:
    held: dict[str, int] = {"k": 1}
    proxy, _ = seen(held)
    assert isinstance(proxy, dict) and proxy.__class__ is dict
    assert is_looked_into(proxy) and real(proxy) is held
    assert not is_looked_into(held) and real(held) is held


def test_without_a_session_nobody_is_told() -> None:
    held = [1, 2]
    proxy = looked_into(held, lambda: None)
    proxy.append(3)
    assert proxy[2] == 3 and len(proxy) == 3 and held == [1, 2, 3]


def test_code_below_python_sees_what_the_container_holds_after_a_refresh() -> None:
    held = [1]
    proxy, _ = seen(held)
    held.append(2)
    assert list.__len__(proxy) == 1
    proxy.refresh()
    assert list.__len__(proxy) == 2


def test_what_is_plain_and_what_can_be_looked_into() -> None:
    class Tagged(int):
        pass

    tagged = Tagged(1)
    tagged.more = 2  # type: ignore[attr-defined]
    assert is_plain(1) and is_plain([1, "a"]) and not is_plain(tagged) and not is_plain([object()])
    assert is_container([object()]) and is_container({"k": 1}) and not is_container([1]) and not is_container((1,))


def test_objects_are_instances_of_python_classes() -> None:
    class Plain:
        pass

    assert is_object(Plain())
    others = [SimpleNamespace(), torch.nn.Linear(1, 1), torch.zeros(1), Plain]
    assert not any(map(is_object, others))


def test_an_objects_attributes_get_their_containers_back() -> None:
    class Holder:
        pass

    holder, held = Holder(), [1]
    holder.items, holder.other = looked_into(held, lambda: None), 5  # type: ignore[attr-defined]
    put_back(holder)
    assert vars(holder) == {"items": held, "other": 5} and vars(holder)["items"] is held


def _asks(x: Any) -> bool:
    return type(x) is list


def asks() -> Any:
    return inspect.currentframe(), type([]) is list


def asks_through_another() -> Any:
    return inspect.currentframe(), _asks([])


def does_not_ask() -> Any:
    return inspect.currentframe(), isinstance([], list)


def test_functions_that_ask_for_exact_classes_are_told_from_others() -> None:
    assert asks_for_classes(asks()[0]) and asks_for_classes(asks_through_another()[0])
    assert not asks_for_classes(does_not_ask()[0])
