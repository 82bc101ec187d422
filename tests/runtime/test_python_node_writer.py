"""What plans do for each kind of node that is no operator: their text, and what it does with what it finds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from python_nodes_graph import BLOCK, GRAPH, LAYER, LAYERS, LENGTH, STATE, TRUTH
from torch.utils import _pytree as pytree

from fusion.patterns.python_nodes import PythonNode
from fusion.runtime.plan import MISS, Conditions, Deoptimized, LoggedError, PlanSpec, Source, call_constants, standing
from fusion.runtime.plan_writer import write_plan

CONDITIONS = Conditions((), (), (), ())
KINDS: dict[str, PythonNode] = {
    "length": LENGTH, "layers": LAYERS, "layer": LAYER, "truth": TRUTH, "state": STATE, "block": BLOCK,
}  # fmt: skip


def source(log: bool = False, **changed: PythonNode) -> Source:
    """A plan of the graph of all kinds, with some of its nodes replaced."""
    graph = replace(GRAPH, nodes=tuple({**KINDS, **changed}.values()))
    spec = PlanSpec(graph, CONDITIONS, ("x", "cache"), (torch.device("cpu"),), pytree.tree_flatten(0)[1])
    return write_plan(spec, [("node", index) for index in range(len(graph.nodes))], log=log)


def lines(log: bool = False, **changed: PythonNode) -> list[str]:
    """The lines of such a plan's body."""
    text = source(log, **changed).text
    return [line.strip() for line in text.splitlines() if line.startswith("        ")]


# ---- the text


def test_each_kind_has_its_text() -> None:
    text = source()
    name = {value: name for name, value in text.names.items() if isinstance(value, (str, float))}
    assert [line.strip() for line in text.text.splitlines() if "r = " in line] == [
        f"try: r = getattr(a1, {name['length']})()",
        f"r = getattr(a1, {name['layers']})",
        f"try: r = getattr(o0, {name['__getitem__']})(i2_0)",
        f"r = getattr(v0, {name['__bool__']})()",
        f"try: r = h0(a0, i4_1, **{{{name['scale']}: {name[0.5]}}})",
        f"try: r = h1(v0, **{{{name['state']}: o1}})",
    ]


def test_all_results_are_logged_but_data() -> None:
    assert lines().count("log.append(r)") == 5
    assert sum(line.startswith("SEEN.append(") for line in lines(log=True)) == 5


def test_a_read_that_is_overwritten_later_is_copied_into_the_log() -> None:
    plain, copying = lines(), lines(layer=replace(LAYER, copied=True))
    assert "found = r" not in plain and copying.count("found = r") == 1
    assert copying[copying.index("found = r") + 1].startswith("r = as_it_is")


@pytest.mark.parametrize("kind", ["state", "block"])
def test_what_a_call_is_lent_is_compared_afterwards(kind: str) -> None:
    lending: Any = replace(KINDS[kind], lent=(0,))
    (note,) = {line for line in lines(**{kind: lending}) if line.startswith("if held is None or held != ")}
    assert lines(**{kind: lending}).count(note) == 2  # after the call, and where it raises
    assert note not in lines()


def test_numbers_that_calls_and_items_are_given_are_bound_later() -> None:
    assert call_constants(GRAPH) == {"i2_0": 0, "i4_1": 2}


# ---- what it does


class State:
    """What the scope makes."""

    def __init__(self, row: torch.Tensor, count: int, scale: float) -> None:
        self.row, self.count, self.scale = row, count, scale


class Cache:
    """What the scope reads."""

    def __init__(self, layers: Any, tokens: Any = 5) -> None:
        self.layers, self.tokens = layers, tokens

    def length(self) -> Any:
        return self.tokens


def block(row: torch.Tensor, state: State) -> torch.Tensor:
    return row + state.row * state.count * state.scale


def run(cache: Cache, called: Callable[..., Any] = block, row: torch.Tensor | None = None) -> tuple[Any, list[Any]]:
    """What a plan gives for a row of ones, or the error it fails with; and what it had logged when it failed."""
    logged: list[Any] = []

    def fail(error: Exception, log: list[Any], *_: Any) -> Exception:
        logged.extend(log)
        return error

    values = {"h0": State, "h1": called, "FAIL": fail, **standing(CONDITIONS, {}), **call_constants(GRAPH)}
    return source().bind(values).run(torch.ones(1) if row is None else row, cache), logged


def test_a_plan_of_all_kinds_runs() -> None:
    result, logged = run(Cache([torch.full((1,), 3.0)]))
    assert result.tolist() == [4.0] and logged == []


OTHERS = {
    "an answer of another type": Cache([torch.ones(1)], "long"),
    "a number that is 1": Cache([torch.ones(1)], 1),
    "an attribute of another class": Cache({0: torch.ones(1)}),
    "an item of another layout": Cache([torch.ones(2)]),
    "other data": Cache([torch.zeros(1)]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_differs_before_an_effect_is_a_miss(name: str) -> None:
    assert run(OTHERS[name]) == (MISS, [])


def test_an_item_that_was_met_before_is_a_miss() -> None:
    row = torch.ones(1)
    assert run(Cache([row]), row=row) == (MISS, [])


def test_what_differs_after_an_effect_takes_the_log_along() -> None:
    layer = torch.ones(1)
    error, logged = run(Cache([layer]), lambda row, state: torch.ones(2))
    assert isinstance(error, Deoptimized)
    assert logged[0] == 5 and logged[2] is layer and isinstance(logged[3], State) and len(logged) == 5


def test_a_call_that_raises_is_logged() -> None:
    def broken(row: torch.Tensor, state: State) -> torch.Tensor:
        raise KeyError("broken")

    error, logged = run(Cache([torch.ones(1)]), broken)
    assert isinstance(error, KeyError)
    assert isinstance(logged[-1], LoggedError) and logged[-1].error is error


def test_an_item_that_is_gone_is_logged() -> None:
    error, logged = run(Cache([]))
    assert isinstance(error, IndexError) and isinstance(logged[-1], LoggedError)
