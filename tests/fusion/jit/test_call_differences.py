"""Reasons that say what differs between calls: which argument varies, and how two runs of a call came apart."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fusion.capture.python.argument_tree import flatten
from fusion.jit.call_differences import differed, too_many_plans
from fusion.patterns import symbols
from fusion.patterns.recorded import GraphInput
from fusion.patterns.specs import TensorSpec
from fusion.runtime.plan import Conditions


def recorded(
    atoms: dict[str, Any], dims: tuple[Any, ...] = (symbols.symbol("s0"), 4), kinds: dict[str, type] | None = None
) -> Any:
    """What is asked of a recording of a call with plain values, objects of some classes, and a tensor `x`."""
    conditions = Conditions(
        (), tuple(((k,), v) for k, v in atoms.items()), tuple(((k,), v) for k, v in (kinds or {}).items()), ()
    )
    graph = SimpleNamespace(inputs=(GraphInput("x0", ("x",)),), spec={"x0": TensorSpec.contiguous(torch.float32, dims)})
    return SimpleNamespace(template=SimpleNamespace(shape=SimpleNamespace(conditions=conditions)), graph=graph)


def why(known: list[Any], **arguments: Any) -> Any:
    return too_many_plans(known, flatten({"x": torch.zeros(3, 4), **arguments}))


def test_a_number_that_varies_is_named_with_its_values_and_could_be_a_tensor() -> None:
    found = why([recorded({"step": n, "flag": True}) for n in range(2)], step=7, flag=True)
    assert found.code == "too_many_plans"
    assert found.sentence == "no plan takes the call, and max_plans=2 recordings are made; step varies: 0, 1; now 7"
    assert found.remedy.startswith("pass step as a tensor, or raise max_plans")


def test_of_many_values_some_are_named() -> None:
    found = why([recorded({"step": n}) for n in range(6)], step=7)
    assert "step varies: 0, 1, 2, 3, and 2 more; now 7" in found.sentence


def test_of_many_arguments_some_are_named() -> None:
    known = [recorded(dict.fromkeys("abcde", n)) for n in range(2)]
    found = why(known, **dict.fromkeys("abcde", 9))
    assert found.sentence.count("varies") == 3 and "pass a and b and c as a tensor" in found.remedy


def test_texts_are_cut_short_and_cannot_be_tensors() -> None:
    found = why([recorded({"mode": letter * 60}) for letter in "ab"], mode="c")
    assert f"mode varies: {repr('a' * 60)[:40]}..., {repr('b' * 60)[:40]}...; now 'c'" in found.sentence
    assert found.remedy.startswith("raise max_plans")


def test_sizes_and_classes_vary_too() -> None:
    found = why([recorded({}, (2, 4)), recorded({}, (3, 4))])
    assert "x varies: float32[2, 4], float32[3, 4]; now float32[3, 4]" in found.sentence
    found = why([recorded({}, kinds={"past": dict}), recorded({}, kinds={"past": list})], past=(1,))
    assert "past varies: a dict, a list; now a tuple" in found.sentence


def test_recordings_that_differ_in_other_guards() -> None:
    assert "they differ in what their guards tell" in why([recorded({"step": 1})] * 2, step=1).sentence


# ---- two runs of one call

X = torch.arange(4.0)


@pytest.mark.parametrize(
    "plain, with_symbols, told",
    [
        (X, X + 1, "the result had other values or strides"),
        ((X, 3), (X, 4), "result 1 was 3 and then 4"),
        ((X, X), [X, X], "the results were built otherwise"),
        (X, X.double(), "the result was float32[4] and then float64[4]"),
        (X, X[:2], "the result was float32[4] and then float32[2]"),
        (X, X.clone(), "left something else in memory that outlives it"),
    ],
)
def test_runs_that_came_apart(plain: Any, with_symbols: Any, told: str) -> None:
    found = differed(plain, with_symbols, "file.py:3")
    assert (found.code, found.origin) == ("plan_mismatch", "file.py:3")
    assert found.sentence == f"the call was made twice, once with symbols for sizes, and {told}"
