"""Generated text: what no writer of ours makes does not run."""

from __future__ import annotations

import inspect

import pytest

from fusion.patterns.errors import GraphError
from fusion.patterns.source import define, parse, renamed

HOSTILE = [
    "def plan(a0):\n    return a0.__globals__",
    "def plan(a0):\n    return 'text'",
    "def plan(a0):\n    return f(a0, keyword=1)",
    "def plan(a0):\n    import os",
    "def plan(a0):\n    return __import__",
    "def plan(a0):\n    return [x for x in a0]",
    "def plan(a0):\n    return lambda: a0",
    "def plan(a0):\n    return f'{a0}'",
    "def plan(a0):\n    return 1\nplan(0)",
    "def plan(a0=b''):\n    return a0",
    "@a0\ndef other(a0):\n    return a0",
    "def plan(a0):\n    return a0\0",
    "def plan(a0:",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_token_that_no_writer_makes_is_refused(text: str) -> None:
    with pytest.raises(GraphError):
        define(text, "plan", {}, "<test>")


def test_only_what_generated_text_needs_of_the_builtins_is_there() -> None:
    with pytest.raises(NameError):
        define("def plan():\n    return open", "plan", {}, "<test>")()


def test_math_has_only_its_rounding() -> None:
    assert define("def plan(a0):\n    return math.floor(a0)", "plan", {}, "<test>")(2.5) == 2
    with pytest.raises(GraphError):
        parse("math.inf")


def test_parameters_may_have_any_name() -> None:
    made = define("def plan(a0, *a1, a2, **a3):\n    return a0, a1, a2, a3", "plan", {}, "<test>")
    function = renamed(made, ("for", "a\0b = __import__('os')", "rest", "named"))
    assert function(1, 2, **{"a\0b = __import__('os')": 3, "other": 4}) == (1, (2,), 3, {"other": 4})
    assert function(**{"for": 1, "a\0b = __import__('os')": 3}) == (1, (), 3, {})


def test_the_names_of_parameters_are_what_callers_see() -> None:
    function = renamed(define("def plan(a0, a1=1):\n    return a0", "plan", {}, "<test>"), ("hidden_states", "mask"))
    assert str(inspect.signature(function)) == "(hidden_states, mask=1)"
