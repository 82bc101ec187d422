"""The verifier of plans: the order of their steps, and the names in their text."""

from __future__ import annotations

import ast
from dataclasses import replace
from typing import Any

import pytest
import torch

from fusion.capture.python.argument_snapshot import ArgumentSnapshot
from fusion.capture.record import record
from fusion.patterns.errors import GraphError
from fusion.patterns.leaves import Expect, Ref
from fusion.patterns.python_nodes import Method, OpaqueCall
from fusion.patterns.recorded import RecordedGraph
from fusion.runtime.plan import KernelCall, PlanSpec, Source
from fusion.runtime.plan_writer import Writer, write_plan
from fusion.runtime.verify import check_steps, check_text


def forward(x: torch.Tensor) -> torch.Tensor:
    y = torch.exp(x)
    x.add_(1)
    return x * y


def shape() -> PlanSpec:
    """What plans of `forward` are written from."""
    x = torch.rand(3, 4)
    made = record(forward, ArgumentSnapshot({"x": x}), lambda: forward(x), {})
    assert made.graph is not None and made.conditions is not None, made.refusal
    return PlanSpec(made.graph, made.conditions, ("x",), tuple(made.devices.values()), made.tree)


def plain(graph: RecordedGraph) -> list[tuple[str, int]]:
    return [("node", i) for i in range(len(graph.nodes))]


def test_the_recorded_order_passes() -> None:
    graph = shape().graph
    check_steps(graph, plain(graph), ())


def test_each_fault_in_an_order_is_found() -> None:
    graph = shape().graph
    steps = plain(graph)
    (first, *_), last = graph.nodes, graph.nodes[-1]
    kernel = KernelCall((graph.inputs[0].name,), first.outputs)
    written = next(i for i, n in enumerate(graph.nodes) if "add_" in n.op)
    call = OpaqueCall(Method(("x",), "f"), (), (), (Expect(None),), True, "leaf")
    opaque = replace(graph, nodes=(*graph.nodes, call))
    cases: list[tuple[RecordedGraph, Any, Any, str]] = [
        (graph, [*steps, steps[0]], (), "comes twice"),
        (graph, [*steps, ("node", 99)], (), "names nothing"),
        (graph, [*steps, ("region", 0)], (), "names nothing"),
        (graph, [*steps, ("loop", 0)], (), "names nothing"),
        (graph, steps, (kernel,), r"The kernels \[0\] are no step"),
        (graph, [s for s in steps if s != ("node", written)], (), "left out, or out of order"),
        (opaque, steps, (), "left out, or out of order"),
        (graph, steps[::-1], (), "before it is made"),
        (graph, [("region", 0), *steps[1:]], (KernelCall(last.outputs, first.outputs),), "before it is made"),
        (replace(graph, outputs=(Ref("v99"),)), steps, (), "returns 'v99', which no step makes"),
    ]
    for given, order, kernels, message in cases:
        with pytest.raises(GraphError, match=message):
            check_steps(given, order, kernels)


def test_writing_a_plan_checks_its_steps() -> None:
    with pytest.raises(GraphError, match="before it is made"):
        write_plan(shape(), plain(shape().graph)[::-1])


def test_a_value_that_was_let_go_of_is_not_read() -> None:
    made = shape()
    writer = Writer(made)
    name = made.graph.nodes[0].outputs[0]
    with pytest.raises(GraphError, match="let go of or never made"):
        writer.value(name)
    assert writer.allocate(name) == writer.value(name)
    writer.release([name], 1, {name: 0})
    with pytest.raises(GraphError, match="let go of or never made"):
        writer.value(name)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "one function"),
        ("def plan(a0): return v0", "reads 'v0'"),
        ("def plan(a0):\n    v0 = op(a0)\n    return v0", "reads 'op'"),
        ("def plan(a0):\n    v0 = v1\n    v1 = a0\n    return v0", "Line 2 of the plan reads 'v1'"),
        ("def plan(a0):\n    try:\n        return v0\n    except Exception as error:\n        return error", "'v0'"),
        ("def plan(a0):\n    try:\n        v0 = a0\n    except Exception:\n        return fail(v0)", "'fail'"),
    ],
)
def test_a_name_that_is_bound_to_nothing_is_found(text: str, message: str) -> None:
    with pytest.raises(GraphError, match=message):
        Source(text).bind({})


def test_what_is_bound_passes() -> None:
    text = """
def plan(a0, a1):
    if type(a0) is not int: return MISS
    try:
        v0, v1 = op(a0)
        v0 = v0 + a1[0]
        return (v0, v1, None)
    except Exception as error:
        return FAIL(error, (a0, a1))
"""
    check_text(ast.parse(text), {"MISS", "op", "FAIL"})
