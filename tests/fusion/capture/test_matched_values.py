"""The names and sizes of a run that follows a recording: what counts as the recorded value, and what does not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from good_recording import GOOD

from fusion.capture.matched_values import Diverged, MatchedSizes, MatchedValues
from fusion.capture.mutation import MutationTracker, storage_key
from fusion.patterns import symbols

WEIGHT = torch.rand(3)


def follow(rows: int = 3) -> tuple[MatchedSizes, MatchedValues, torch.Tensor, MutationTracker]:
    """A run of `GOOD` on a vector of some length: its sizes and values, the vector, and what it changes."""
    x, effects = torch.rand(rows), MutationTracker()
    sizes = MatchedSizes(GOOD, {"s0": rows})
    values = MatchedValues(GOOD, sizes, effects, {id(x): "x0"}, {id(WEIGHT): "weight"})
    values.keep(x)
    return sizes, values, x, effects


def test_sizes_are_numbers_of_this_run() -> None:
    sizes, *_ = follow(5)
    assert sizes.number(symbols.symbol("s0") * 2) == 10 and sizes.number(7) == 7
    assert sizes.concrete(symbols.symbol("s0")) == 5 and sizes.concrete("text") == "text"


def test_numbers_that_calls_give_are_sizes() -> None:
    sizes, *_ = follow()
    sizes.set_number("n2", 6)
    assert sizes.values == {"s0": 3, "s1": 6} and sizes.number(symbols.symbol("s1") + 1) == 7
    sizes.set_number("n2", 8)
    assert sizes.number(symbols.symbol("s1") + 1) == 9
    for number in (0, 1, None, True):
        with pytest.raises(Diverged, match="size of 0 or 1"):
            sizes.set_number("n2", number)


def test_tensors_are_known_by_argument_and_by_path() -> None:
    _, values, x, _ = follow()
    assert values.name_of(x) == "x0" and values.name_of(WEIGHT) == "p0" and values.real["p0"] is WEIGHT
    other = torch.rand(3)
    assert values.is_known(x) and values.is_known(WEIGHT) and not values.is_known(other)
    with pytest.raises(Diverged, match="does not know"):
        values.name_of(other)


def test_a_result_takes_the_recorded_name_once() -> None:
    _, values, x, _ = follow()
    made = torch.rand(3)
    values.made("v1", made)
    values.made("v1", made)
    assert values.name_of(made) == "v1"
    with pytest.raises(Diverged, match="v1 is another tensor"):
        values.made("v1", torch.rand(3))
    with pytest.raises(Diverged, match="was there before"):
        values.made("v3", x)


@pytest.mark.parametrize(
    "make, told",
    [
        (lambda: torch.rand(3).double(), "another type or shape"),
        (lambda: torch.rand(4), "another type or shape"),
        (lambda: torch.rand(3, 1), "another type or shape"),
        (lambda: torch.rand(6)[::2], "another layout"),
    ],
    ids=["dtype", "size", "dimensions", "strides"],
)
def test_a_result_is_like_the_recorded_one(make: Callable[[], torch.Tensor], told: str) -> None:
    with pytest.raises(Diverged, match=told):
        follow()[1].made("v1", make())


def test_what_a_call_gives_may_be_its_argument_but_no_other_parameter() -> None:
    _, values, x, _ = follow()
    values.found("v1", x)
    assert values.name_of(x) == "v1"
    with pytest.raises(Diverged, match="another parameter"):
        values.found("v3", WEIGHT)
    values.found("p0", WEIGHT)


def test_constants_are_named_in_order_and_no_more_than_recorded() -> None:
    _, values, _, _ = follow()
    constant = torch.ones(1)
    values.lifted(constant)
    assert values.constants == {"c0": constant} and values.name_of(constant) == "c0"
    with pytest.raises(Diverged, match="a constant"):
        values.lifted(torch.ones(1))


def test_what_is_overwritten_is_kept() -> None:
    _, values, x, effects = follow()
    made, constant = torch.ones(3), torch.ones(1)
    effects.made |= {storage_key(made), storage_key(constant)}
    values.made("v1", made)
    values.lifted(constant)
    values.before_write([made, constant, x])
    for tensor in (made, constant, x):
        tensor.zero_()
    assert values.real["v1"].sum() == 3 and values.constants["c0"] == 1 and values.real["c0"] == 1
    assert "x0" not in values.real, "it is the caller's: what the run does to it is undone"


def test_copies_are_taken_of_values_that_native_calls_write_to() -> None:
    _, values, _, _ = follow()
    made = torch.ones(3)
    values.made("v1", made)
    values.copy(["v1", "n2", 5])
    made.zero_()
    assert values.real["v1"].sum() == 3
