"""The verifier of recordings: a good one passes, and each check has a graph that trips it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from good_recording import GOOD, ROW, SHAPED, exp

from fusion.capture.python.argument_snapshot import ArgumentSnapshot
from fusion.capture.record import record
from fusion.patterns import symbols
from fusion.patterns.errors import GraphError
from fusion.patterns.graph import SubGraph
from fusion.patterns.leaves import Ref
from fusion.patterns.nodes import OpNode, writes
from fusion.patterns.python_nodes import Method, OpaqueCall
from fusion.patterns.recorded import HeldObject, RecordedGraph, SymbolSource
from fusion.patterns.specs import TensorSpec
from fusion.patterns.wellformed import check_recording


def test_a_good_recording_passes() -> None:
    check_recording(GOOD)


def with_node(k: int, node: Any) -> RecordedGraph:
    return replace(GOOD, nodes=(*GOOD.nodes[:k], node, *GOOD.nodes[k + 1 :]))


def with_spec(name: str, spec: TensorSpec | None) -> RecordedGraph:
    kept = [(n, s) for n, s in GOOD.specs if n != name]
    return replace(GOOD, specs=(*kept, *([(name, spec)] if spec else [])))


BAD: dict[str, tuple[RecordedGraph, str]] = {
    "a name given twice": (replace(GOOD, constants=("x0",)), "'x0' is given and exists already"),
    "an object of a tensor's name": (
        replace(GOOD, objects=(HeldObject("p0", "class", "C"),)),
        "'p0' is held and exists already",
    ),
    "a read of nothing": (with_node(0, exp("y")), "aten.exp.default reads 'y', which no input or earlier call makes"),
    "a read before the value is made": (
        with_node(0, exp("v3")),
        "aten.exp.default reads 'v3', which no input or earlier call makes",
    ),
    "an opaque call's read of nothing": (
        with_node(2, OpaqueCall(Method(("cache",), "update"), (Ref("y"),), (), ("n2",), True, "leaf")),
        "cache.update reads 'y'",
    ),
    "a value made again": (with_node(3, exp("x0", "v1")), "makes ['v1'], which exists and was not given to it"),
    "an input without a spec": (with_spec("x0", None), "is no tensor"),
    "a parameter without a spec": (with_spec("p0", None), "The value 'p0' has no TensorSpec"),
    "a result without a spec": (with_spec("v3", None), "The value 'v3' has no TensorSpec"),
    "a spec of unequal rank": (
        with_spec("v3", TensorSpec(torch.float32, (2, 3), (1,))),
        "'v3' has 2 sizes and 1 strides",
    ),
    "a symbol with two sources": (replace(GOOD, symbols=(*GOOD.symbols, SHAPED)), "s0 has two sources"),
    "a symbol without a source": (replace(GOOD, symbols=(SHAPED,)), "uses the size symbol s1, which has no source"),
    "a source that no call gives": (
        replace(GOOD, symbols=(SHAPED, SymbolSource("s1", "n7", "result"))),
        "which no call or read gives",
    ),
    "a source of no kind": (
        replace(GOOD, symbols=(SymbolSource("s0", "x0", "offset"), GOOD.symbols[1])),
        "a source is a shape, a stride or a result",
    ),
    "a source that is no tensor": (
        replace(GOOD, symbols=(SymbolSource("s0", "n2", "shape"), GOOD.symbols[1])),
        "which is no tensor",
    ),
    "a source of no dimension": (
        replace(GOOD, symbols=(SymbolSource("s0", "x0", "shape", 1), GOOD.symbols[1])),
        "which has no such dimension",
    ),
    "a symbol used before its source": (
        replace(GOOD, nodes=(GOOD.nodes[0], GOOD.nodes[1], GOOD.nodes[3], GOOD.nodes[2])),
        "uses s1 before its source 'n2' is made",
    ),
    "a guard over an unknown symbol": (replace(GOOD, guards=("s0 == s9",)), "names ['s9']"),
    "a guard over something else": (replace(GOOD, guards=("s0 == open",)), "names ['open']"),
    "an output of nothing": (replace(GOOD, outputs=(Ref("v9"),)), "The output 'v9' is made by no call"),
    "an output of an unknown size": (
        replace(GOOD, outputs=(symbols.symbol("s9"),)),
        "an output uses the size symbol s9",
    ),
    "a write to nothing": (replace(GOOD, mutated=("v9",)), "'v9' is listed as written to"),
    "an unknown shape of nothing": (replace(GOOD, opaque=("v9",)), "'v9' is listed as of unknown shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_malformed_recording_is_rejected(name: str) -> None:
    graph, message = BAD[name]
    with pytest.raises(GraphError) as raised:
        check_recording(graph)
    assert message in str(raised.value)


def test_a_subgraph_writes_to_nothing_and_its_specs_have_strides() -> None:
    node = OpNode("aten.add_.Tensor", (Ref("a"), Ref("b")), (), ("c",))
    with pytest.raises(GraphError, match=r"aten\.add_\.Tensor writes to memory"):
        SubGraph(("a", "b"), (node,), ("c",), (("a", ROW), ("b", ROW), ("c", ROW)))
    with pytest.raises(GraphError, match="'v1' has another number of sizes than of strides"):
        SubGraph(("x0",), (exp(),), ("v1",), (("x0", ROW), ("v1", TensorSpec(torch.float32, (2,), ()))))


@pytest.mark.parametrize("op", ["aten.add_.Tensor", "aten.add.out", "aten.__iand__.Tensor", "aten.sort.values"])
def test_operators_that_write_are_known_by_their_schema(op: str) -> None:
    assert writes(op)


@pytest.mark.parametrize("op", ["aten.add.Tensor", "aten.__and__.Tensor", "mine.no_such_op.default", "aten"])
def test_operators_that_do_not(op: str) -> None:
    assert not writes(op)


def forward(x: torch.Tensor) -> torch.Tensor:
    """A hundred operators, of the kinds a model's layer has."""
    for _ in range(10):
        y = x.float()
        x = (y * torch.rsqrt(y.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
        left, right = x.chunk(2, -1)
        x = torch.cat((-right, left), -1) * torch.sigmoid(x)
    return x


def calls(function: Callable[[], Any]) -> tuple[int, Any]:
    """How many Python functions a call makes, and what it returns: a measure of cost that no clock disturbs."""
    count = 0

    def note(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        result = function()
    finally:
        sys.setprofile(before)
    return count, result


def test_checking_costs_little_of_what_recording_does() -> None:
    x = torch.rand(4, 16)
    recorded, recording = calls(lambda: record(forward, ArgumentSnapshot({"x": x}), lambda: forward(x), {}))
    assert recording.refusal is None and len(recording.graph.nodes) > 90
    checked, _ = calls(lambda: check_recording(recording.graph))
    assert checked < 0.05 * recorded, (checked, recorded)


def test_a_fault_of_the_recorder_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    from fusion.capture import finish as recording

    def broken(**fields: Any) -> RecordedGraph:
        return RecordedGraph(**{**fields, "specs": ()})

    monkeypatch.setattr(recording, "RecordedGraph", broken)
    made = record(torch.exp, ArgumentSnapshot({"x": torch.rand(3)}), lambda: torch.exp(torch.ones(3)), {})
    assert made.refusal is not None and made.refusal.code in ("recorder_error", "unknown_tensor")
