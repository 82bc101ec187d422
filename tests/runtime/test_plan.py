"""Plans as text and as functions: checks first, straight-line body, misses and failures."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import fusion
from fusion.capture.python.argument_snapshot import ArgumentSnapshot
from fusion.capture.record import record
from fusion.runtime.guard_writer import write_match
from fusion.runtime.plan import MISS, PlanSpec
from fusion.runtime.plan_writer import write_plan


def recorded(call: Any, **arguments: Any) -> tuple[Any, PlanSpec]:
    """A recording of `call(**arguments)` and what plans of it are written from."""
    with torch.no_grad():
        recording = record(call, ArgumentSnapshot(arguments), lambda: call(**arguments), {})
    assert recording.refusal is None, recording.refusal
    devices = tuple(recording.devices[i.name] for i in recording.graph.inputs)
    return recording, PlanSpec(recording.graph, recording.conditions, tuple(arguments), devices, recording.tree)


def unfused(call: Any, fail: Any = None, **arguments: Any) -> Any:
    """The unfused plan of a call."""
    recording, shape = recorded(call, **arguments)
    steps = tuple(("node", i) for i in range(len(shape.graph.nodes)))
    names = {**recording.bound.tensors, "FAIL": fail or _reraise}
    return write_plan(shape, steps).bind(names)


def _reraise(error: BaseException, log: Any, arguments: Any) -> Any:
    raise error


def combine(x: torch.Tensor, y: torch.Tensor | None = None, scale: float = 2.0, flag: bool = True) -> Any:
    z = torch.exp(x) * scale
    if y is not None:
        z = z + y
    return (z, [z.t(), flag]) if flag else z


def test_a_plan_is_bit_equal_at_every_size_it_takes() -> None:
    plan = unfused(combine, x=torch.rand(3, 4), y=torch.rand(4), scale=2.0, flag=True)
    for rows, columns in ((3, 4), (5, 4), (2, 7), (9, 2)):
        x, y = torch.rand(rows, columns), torch.rand(columns)
        found, expected = plan.run(x, y, 2.0, True), combine(x, y)
        assert torch.equal(found[0], expected[0])
        assert type(found) is tuple and type(found[1]) is list and found[1][1] is True
        assert found[1][0].data_ptr() == found[0].data_ptr() and found[1][0].stride() == expected[1][0].stride()


@pytest.mark.parametrize(
    "arguments",
    [
        (torch.rand(1, 4), torch.rand(4), 2.0, True),
        (torch.rand(0, 4), torch.rand(4), 2.0, True),
        (torch.rand(3, 1), torch.rand(1), 2.0, True),
        (torch.rand(3, 4), torch.rand(5), 2.0, True),
        (torch.rand(3, 4), torch.rand(3, 4), 2.0, True),
        (torch.rand(3, 4), None, 2.0, True),
        (torch.rand(3, 4), torch.rand(4), 2, True),
        (torch.rand(3, 4), torch.rand(4), 2.5, True),
        (torch.rand(3, 4), torch.rand(4), True, True),
        (torch.rand(3, 4), torch.rand(4), 2.0, False),
        (torch.rand(3, 4), torch.rand(4), 2.0, 1),
        (torch.rand(3, 4).double(), torch.rand(4), 2.0, True),
        (torch.rand(4, 3).t(), torch.rand(4), 2.0, True),
        (torch.rand(3, 4).to_sparse(), torch.rand(4), 2.0, True),
        (torch.rand(3, 4, device="meta"), torch.rand(4), 2.0, True),
        (torch.nn.Parameter(torch.rand(3, 4)).as_subclass(type("Sub", (torch.Tensor,), {})), torch.rand(4), 2.0, True),
        ([[1.0]], torch.rand(4), 2.0, True),
        ("x", torch.rand(4), 2.0, True),
    ],
)
def test_what_a_plan_is_not_for_is_a_miss(arguments: Any) -> None:
    recording, shape = recorded(combine, x=torch.rand(3, 4), y=torch.rand(4), scale=2.0, flag=True)
    plan = unfused(combine, x=torch.rand(3, 4), y=torch.rand(4), scale=2.0, flag=True)
    assert plan.run(*arguments) is MISS
    assert write_match(shape).bind({}).run(*arguments) is MISS
    del recording


def test_matching_gives_the_sizes() -> None:
    _, shape = recorded(combine, x=torch.rand(3, 4), y=torch.rand(4), scale=2.0, flag=True)
    values = write_match(shape).bind({}).run(torch.rand(6, 9), torch.rand(9), 2.0, True)
    assert sorted(values.values()) == [6, 9]


def test_a_source_prints_as_its_text() -> None:
    _, shape = recorded(lambda x: x * 2, x=torch.rand(3, 4))
    source = write_match(shape)
    assert str(source) == source.text and source.text.startswith("def plan(a0):\n")


def test_containers_are_checked() -> None:
    def call(pair: Any, table: Any) -> Any:
        return torch.exp(pair[0]) * 2 + pair[1] * table["a"]

    def given(kind: type = tuple, keys: tuple[str, ...] = ("a",), count: int = 2) -> tuple[Any, Any]:
        return kind(torch.rand(3) for _ in range(count)), {k: torch.rand(3) for k in keys}

    pair, table = given()
    plan = unfused(call, pair=pair, table=table)
    pair, table = given()
    assert torch.equal(plan.run(pair, table), call(pair, table))
    for other in (given(list), given(count=3), given(keys=("a", "b")), given(keys=("b",)), (pair, None), (None, table)):
        assert plan.run(*other) is MISS


def test_one_tensor_under_two_names_stays_one() -> None:
    x = torch.rand(3)
    plan = unfused(lambda a, b: torch.exp(a) * b, a=x, b=x)
    assert torch.equal(plan.run(x, x), torch.exp(x) * x)
    assert plan.run(x, x.clone()) is MISS


def test_an_error_goes_to_fail_with_the_arguments() -> None:
    met: list[Any] = []

    def fail(error: BaseException, log: Any, arguments: Any, undo: Any) -> str:
        met.append((type(error), log, arguments))
        return "fallback"

    recording, shape = recorded(lambda x: torch.exp(x) + 1, x=torch.rand(3))
    steps = tuple(("node", i) for i in range(len(shape.graph.nodes)))
    source = write_plan(shape, steps)
    text = source.text.replace("    try:\n", "    try:\n        raise Exception\n", 1)
    plan = type(source)(text, source.names).bind({**recording.bound.constants, "FAIL": fail})
    x = torch.rand(3)
    assert plan.run(x) == "fallback"
    assert met[0][:2] == (Exception, []) and met[0][2][0] is x


def test_pins_and_bounds() -> None:
    recording, shape = recorded(lambda x: torch.exp(x) + 1, x=torch.rand(3))
    steps = tuple(("node", i) for i in range(len(shape.graph.nodes)))
    (symbol,) = (s.symbol for s in shape.graph.symbols)
    names = {**recording.bound.constants, "FAIL": _reraise}
    pinned = write_plan(shape, steps, pinned=True).bind({**names, "PROVED": {(4,)}})
    assert pinned.run(torch.rand(3)) is MISS and pinned.run(torch.rand(4)) is not MISS
    bounded = write_plan(shape, steps, within={symbol: (4, 6)}).bind(names)
    answers = [bounded.run(torch.rand(n)) is not MISS for n in range(2, 9)]
    assert answers == [False, False, True, True, True, False, False]


def test_dead_values_are_let_go() -> None:
    """The chain's variables are used again, so that a plan's memory is not the sum of its values."""

    def chain(x: torch.Tensor) -> torch.Tensor:
        for _ in range(10):
            x = torch.sin(x) + 1
        return x

    plan = unfused(chain, x=torch.rand(3))
    assert len(set(re.findall(r"^\s+(v\d+) =", plan.source, re.MULTILINE))) <= 2
    x = torch.rand(4)
    assert torch.equal(plan.run(x), chain(x))


def test_nothing_from_the_users_strings_reaches_the_source() -> None:
    nasty = "'); import os; ('"
    call = lambda table, mode: torch.exp(table[nasty]) + (1 if mode == nasty else 2)  # noqa: E731
    plan = unfused(call, table={nasty: torch.rand(3)}, mode=nasty)
    assert "import" not in plan.source
    x = torch.rand(3)
    assert torch.equal(plan.run({nasty: x}, nasty), torch.exp(x) + 1)
    assert plan.run({nasty: x}, "other") is MISS


def test_infinities_and_nan_as_arguments() -> None:
    for scale in (float("inf"), -0.0, 1e-320):
        plan = unfused(combine, x=torch.rand(3, 4), y=None, scale=scale, flag=False)
        x = torch.rand(3, 4)
        assert torch.equal(plan.run(x, None, scale, False), combine(x, None, scale, False))
    with torch.no_grad():
        model = fusion.enable(_Scaled().eval(), {"profile": False, "enable_cache": False})
        for scale in (0.0, -0.0, float("nan"), 0.0, -0.0, float("nan"), -0.0):
            found, expected = model(torch.ones(3), scale), torch.ones(3) * 2 * scale
            assert torch.equal(found.signbit(), expected.signbit()) and torch.equal(found.isnan(), expected.isnan())


class _Scaled(torch.nn.Module):
    def forward(self, x: torch.Tensor, scale: float) -> torch.Tensor:
        return x * 2 * scale
