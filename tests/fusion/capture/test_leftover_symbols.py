"""Symbols in what a call without a plan returns: its caller gets numbers."""

from __future__ import annotations

import collections
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy
import pytest
import torch

from fusion.capture.leftover_symbols import without_symbols
from fusion.capture.symbolic_shapes import FakeValues, is_symbolic

VALUE = 7


@pytest.fixture
def symbol() -> Any:
    """A size as a recorded run has it."""
    made = FakeValues(()).new_symbol(VALUE, ("n0", "result", 0))
    assert is_symbolic(made)
    return made


class Pair(NamedTuple):
    name: str
    size: Any


@dataclass
class Sized:
    size: Any


@dataclass(frozen=True)
class Frozen:
    size: Any


class Slotted:
    __slots__ = ("size", "unset")

    def __init__(self, size: Any) -> None:
        self.size = size


@dataclass
class Owner:
    module: torch.nn.Module
    parts: list[Any] = field(default_factory=list)


def number(value: Any) -> None:
    assert type(value) is int and value == VALUE


def test_a_size_alone(symbol: Any) -> None:
    number(without_symbols(symbol))


def test_tuples_are_made_anew_where_they_hold_one(symbol: Any) -> None:
    found = without_symbols(("a", (symbol, 1.5)))
    number(found[1][0])
    named = without_symbols(Pair("a", symbol))
    assert type(named) is Pair
    number(named.size)
    size = without_symbols(torch.Size([2, 3]))
    assert type(size) is torch.Size
    same = ("a", ("b", 2))
    assert without_symbols(same) is same


def test_slices_are_made_anew(symbol: Any) -> None:
    found = without_symbols(slice(symbol, None, 2))
    number(found.start)
    assert (found.stop, found.step) == (None, 2)


@pytest.mark.parametrize("kind", [list, collections.deque])
def test_lists_are_changed(kind: Any, symbol: Any) -> None:
    inner = kind([symbol, "a"])
    held = [inner]
    assert without_symbols(held) is held and held[0] is inner
    number(inner[0])


@pytest.mark.parametrize("kind", [dict, collections.OrderedDict, collections.UserDict])
def test_dicts_are_changed(kind: Any, symbol: Any) -> None:
    held = kind(size=symbol, name="a")
    assert without_symbols(held) is held and list(held) == ["size", "name"]
    number(held["size"])


@pytest.mark.parametrize("kind", [Sized, Frozen, Slotted])
def test_attributes_are_changed(kind: Any, symbol: Any) -> None:
    held = kind(symbol)
    assert without_symbols(held) is held
    number(held.size)


def test_errors_are_changed(symbol: Any) -> None:
    error = ValueError("a", symbol)
    assert without_symbols([error])[0] is error
    number(error.args[1])


def test_variables_of_functions_are_changed(symbol: Any) -> None:
    size = symbol

    def function() -> Any:
        return size

    assert without_symbols([function])[0] is function
    number(function())


def test_arrays_of_objects_are_made_anew(symbol: Any) -> None:
    number(without_symbols(numpy.array([symbol, None], dtype=object))[0])
    plain = numpy.zeros(2)
    assert without_symbols(plain) is plain


def test_modules_are_left_to_those_who_settle_the_state(symbol: Any) -> None:
    module = torch.nn.Linear(2, 2)
    module.size = symbol  # type: ignore[assignment]
    held = Owner(module, [symbol])
    without_symbols(held)
    assert is_symbolic(module.size)
    number(held.parts[0])


def test_what_holds_itself_is_looked_into_once(symbol: Any) -> None:
    held: list[Any] = [symbol]
    held.append(held)
    assert without_symbols(held) is held and held[1] is held
    number(held[0])


def test_an_object_that_takes_no_attribute_is_handed_back(symbol: Any) -> None:
    class Closed:
        def __init__(self) -> None:
            self.__dict__["size"] = symbol

        size = property(lambda self: self.__dict__["size"])

    held = Closed()
    assert without_symbols([held])[0] is held
