"""Snapshots: the C ones and the Python ones, against what they promise."""

from __future__ import annotations

import gc
import sys
import weakref
from collections import OrderedDict
from collections.abc import Callable

import pytest
from c_extension import c_extension

from fusion.runtime.native import ABSENT
from fusion.runtime.snapshots import PythonSnapshot, make_snapshot


def python_snapshot(entries: list[tuple[object, ...]]) -> Callable[[], bool]:
    return PythonSnapshot(entries)


def native_snapshot(entries: list[tuple[object, ...]]) -> Callable[[], bool]:
    module = c_extension()
    snapshot = make_snapshot(entries)
    assert isinstance(snapshot, module.Snapshot)
    return snapshot


snapshots = pytest.mark.parametrize("make", [native_snapshot, python_snapshot])


class Holder:
    value = None


@snapshots
def test_a_snapshot_sees_an_item_change(make) -> None:
    watched: dict[object, object] = {"a": None, 7: [1]}
    snapshot = make([("item", watched, "a", None), ("item", watched, 7, watched[7]), ("item", watched, "b", ABSENT)])
    assert snapshot() is True
    watched["b"] = None
    assert snapshot() is False
    del watched["b"]
    assert snapshot() is True
    watched[7] = [1]  # equal, but another object
    assert snapshot() is False
    del watched["a"]
    assert snapshot() is False


@snapshots
def test_a_snapshot_sees_changes_of_dicts_whose_entries_are_mixed(make) -> None:
    class Longer(dict):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return super().__len__() + extra

    extra = 0
    first, ordered, longer = {"a": None}, OrderedDict(a=None), Longer(a=None)
    dicts = (first, ordered, longer)
    entries = [("item", d, "a", None) for d in dicts] + [("size", d, 1) for d in dicts] + [("class", first, dict)]
    snapshot = make(entries)
    for watched in dicts:
        assert snapshot() is True
        assert snapshot() is True
        watched["b"] = 1
        assert snapshot() is False
        assert snapshot() is False
        del watched["b"]
        assert snapshot() is True
        watched["a"] = 1
        assert snapshot() is False
        watched["a"] = None
    assert snapshot() is True
    extra = 1
    assert snapshot() is False


@snapshots
def test_a_snapshot_sees_a_classs_bases_change(make) -> None:
    class Base:
        pass

    class Other:
        pass

    class Watched(Base):
        pass

    snapshot = make([("attribute", Watched, "__mro__", Watched.__mro__)])
    assert snapshot() is True
    Watched.__bases__ = (Other,)
    assert snapshot() is False


@snapshots
def test_a_snapshot_sees_every_way_to_write_an_item(make) -> None:
    holder, first, second = Holder(), object(), object()
    holder.value = first
    watched = holder.__dict__
    snapshot = make([("item", watched, "value", first)])

    def assign(value: object) -> None:
        holder.value = value

    writes = [
        assign,  # often enough for the interpreter to specialise it
        lambda value: setattr(holder, "value", value),
        lambda value: watched.update(value=value),
        lambda value: watched.__setitem__("value", value),
        lambda value: (watched.clear(), watched.setdefault("value", value)),
    ]
    for write in writes:
        for _ in range(50):
            assert snapshot() is True
            write(second)
            assert snapshot() is False
            write(first)
    holder.__dict__ = {}  # the old dict is what is watched
    assert snapshot() is True
    watched.popitem()
    assert snapshot() is False


@snapshots
def test_a_snapshot_sees_a_size_change(make) -> None:
    hooks: dict[int, object] = {}
    listed = [1, 2]
    snapshot = make([("size", hooks, 0), ("size", listed, 2)])
    assert snapshot() is True
    listed.append(3)
    assert snapshot() is False
    listed.pop()
    hooks[0] = print
    assert snapshot() is False


@snapshots
def test_a_snapshot_sees_an_attribute_change(make) -> None:
    holder, value = Holder(), object()
    holder.there = value
    snapshot = make([("attribute", holder, "there", value), ("attribute", holder, "missing", ABSENT)])
    assert snapshot() is True
    holder.missing = None
    assert snapshot() is False
    del holder.missing
    assert snapshot() is True
    del holder.there
    assert snapshot() is False


@snapshots
def test_a_snapshot_passes_errors_on(make) -> None:
    class Angry:
        @property
        def value(self) -> object:
            raise KeyError("no")

        def __hash__(self) -> int:
            raise LookupError("unhashable today")

    with pytest.raises(KeyError):
        make([("attribute", Angry(), "value", None)])()
    with pytest.raises(LookupError):
        make([("item", {}, Angry(), None)])()
    with pytest.raises(TypeError):
        make([("size", 3, 0)])()


@snapshots
@pytest.mark.parametrize(
    "entry", [("item", [], 0, None), ("size", [], 0, 0), ("flag",), ("attribute", 1, 2, 3), "item"]
)
def test_a_snapshot_refuses_other_entries(make, entry: object) -> None:
    c_extension()
    with pytest.raises((TypeError, ValueError)):
        make([entry])


def test_a_snapshot_holds_and_frees_what_it_watches() -> None:
    holder = Holder()
    holder.snapshot = native_snapshot([("attribute", holder, "value", None), ("item", {"k": holder}, "k", holder)])
    gone = weakref.ref(holder)
    del holder
    gc.collect()
    assert gone() is None  # a cycle through the snapshot is found


def test_snapshots_leave_reference_counts_as_they_were() -> None:
    key, value = object(), object()
    watched = {key: value}
    snapshot = native_snapshot([("item", watched, key, value)])
    before = [sys.getrefcount(x) for x in (key, value, watched, None)]
    for _ in range(1000):
        snapshot()
    after = [sys.getrefcount(x) for x in (key, value, watched, None)]
    assert after[:3] == before[:3]
    assert abs(after[3] - before[3]) < 100
