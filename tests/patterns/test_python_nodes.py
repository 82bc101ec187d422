"""The nodes that are no operators: each kind as a value, in the text of a recording, its network and its verifier."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest
from python_nodes_graph import BLOCK, GRAPH, LAYER, LAYERS, LENGTH, NODES, STATE, TRUTH

from fusion.patterns.errors import GraphError
from fusion.patterns.leaves import Argument, Attribute, Expect, Ref
from fusion.patterns.nodes import argument_tensors, made_by
from fusion.patterns.python_nodes import Item, Method, OpaqueCall, PythonNode
from fusion.patterns.wellformed import check_recording

KINDS = pytest.mark.parametrize("node", NODES, ids=lambda node: node.text)

# ---- as values


@KINDS
def test_a_node_never_changes_and_its_line_is_no_part_of_it(node: PythonNode) -> None:
    with pytest.raises((FrozenInstanceError, TypeError)):
        node.origin = "file.py:1"  # type: ignore[misc]
    moved: Any = replace(node, origin="file.py:1")
    assert moved == node and hash(moved) == hash(node) and moved.to_json() == node.to_json()


def test_what_each_kind_reads_and_makes() -> None:
    assert [node.refs for node in NODES] == [(), (), ("o0",), ("v1",), ("h0", "x0"), ("h1", "v1", "o1")]
    assert list(map(made_by, NODES)) == [("n0",), ("o0",), ("v1",), (), ("o1",), ("v2",)]
    assert [node.effect for node in NODES] == [False, False, False, False, True, True]
    assert [argument_tensors(node, GRAPH.spec) for node in NODES] == [[], [], [], [], ["x0"], ["v1"]]


def test_renaming_reaches_every_name_and_no_word() -> None:
    moved = [node.renamed(lambda name: f"{name}_") for node in NODES]
    assert [node.refs for node in moved] == [tuple(f"{name}_" for name in node.refs) for node in NODES]
    assert list(map(made_by, moved)) == [tuple(f"{name}_" for name in made_by(node)) for node in NODES]
    assert [node.text for node in moved] == [
        "cache.length", "cache.layers", "o0_.__getitem__", "v1_.__bool__", "h0_", "h1_",
    ]  # fmt: skip
    assert moved[4].kwargs == (("scale", 0.5),)
    dropping = replace(BLOCK, dead_results=("v1",)).renamed(str.upper)
    assert dropping.dead_results == ("V1",)


def test_arguments_are_replaced_where_there_are_any() -> None:
    assert [node.with_args((7,)).args for node in NODES] == [(7,), (), (7,), (), (7,), (7,)]
    doubled = [node.mapped(lambda leaf: leaf * 2 if type(leaf) is int else leaf) for node in NODES]
    assert [node.args for node in doubled] == [(), (), (0,), (), (Ref("x0"), 4), (Ref("v1"),)]


def variants() -> list[PythonNode]:
    """The nodes, and for each field one that differs in nothing else."""
    read = replace(LENGTH, outputs=("v1",))
    return [
        *NODES,
        replace(LENGTH, callee=Ref("h1")), replace(LENGTH, callee=Method(("cache",), "size")),
        replace(LENGTH, callee=Method(("cache", "length"), "")), replace(LENGTH, args=(1,)),
        replace(LENGTH, kwargs=(("k", 1),)), read, replace(read, copied=True), replace(LENGTH, effect=True),
        replace(LENGTH, structure="list"), replace(LENGTH, nest="*"), replace(BLOCK, dead_results=("v1",)),
        replace(BLOCK, lent=(0,)), replace(LAYERS, receiver=("x",)), replace(LAYERS, member=Item("layers")),
        replace(LAYERS, kind=dict), replace(LAYERS, outputs=(Argument(("x",)),)), replace(LAYER, copied=True),
        replace(LAYER, member=Item("__getitem__", (1,))), replace(LAYER, structure="tuple"),
        replace(TRUTH, output=Expect(False)), replace(TRUTH, method="item"), replace(TRUTH, tensor=Ref("x0")),
        replace(STATE, lent=(0,)), replace(STATE, output="o2"), replace(STATE, constructor=Ref("h1")),
    ]  # fmt: skip


def test_the_digest_tells_apart_what_differs_in_one_field() -> None:
    nodes = variants()
    assert len({json.dumps(node.to_json()) for node in nodes}) == len(nodes)
    assert len({replace(GRAPH, nodes=(node,)).digest for node in nodes}) == len(nodes)


# ---- as they print, and in the network


def test_the_text_of_a_recording_shows_each_kind() -> None:
    assert str(GRAPH).splitlines()[1:-1] == [
        "  n0 = call cache.length()",
        "  o0 = read cache.layers",
        "  v1: float32[1] = read o0.__getitem__(0)",
        "  Expect(value=True) = ask v1.__bool__()",
        "  o1 = new h0(x0, 2)",
        "  v2: float32[1] = call h1(v1)",
    ]


def test_the_network_shows_each_kind() -> None:
    flow = GRAPH.to_networkx()
    told = [(node, has["kind"], has["effect"]) for node, has in flow.nodes(data=True) if has["op"]]
    assert told == [
        ("0 cache.length", "opaque call", False),
        ("1 cache.layers", "object read", False),
        ("2 o0.__getitem__", "object read", False),
        ("3 v1.__bool__", "tensor read", False),
        ("4 h0", "new object", True),
        ("5 h1", "opaque call", True),
    ]
    uses = {(maker, reader) for maker, reader in flow.edges()}
    assert uses == {
        ("1 cache.layers", "2 o0.__getitem__"),
        ("2 o0.__getitem__", "3 v1.__bool__"),
        ("object h0", "4 h0"),
        ("input x0", "4 h0"),
        ("object h1", "5 h1"),
        ("2 o0.__getitem__", "5 h1"),
        ("4 h0", "5 h1"),
        ("5 h1", "output 0"),
    }


# ---- well formed


def test_each_kind_passes() -> None:
    check_recording(GRAPH)
    check_recording(replace(GRAPH, nodes=tuple(replace(n, copied=True) if n is LAYER else n for n in NODES)))
    lent: Any = [replace(n, lent=(0,)) if n in (STATE, BLOCK) else n for n in NODES]
    check_recording(replace(GRAPH, nodes=tuple(lent)))


MALFORMED: dict[str, tuple[PythonNode, PythonNode, str]] = {
    "a call of a class": (BLOCK, replace(BLOCK, callee=Ref("h0")), "calls 'h0', which is no module and no function"),
    "a call of a tensor": (BLOCK, replace(BLOCK, callee=Ref("x0")), "calls 'x0', which is no module and no function"),
    "a call with two results as one": (BLOCK, replace(BLOCK, outputs=("v2", Expect(1))), "gives 2 leaves as one"),
    "a call with keywords twice": (BLOCK, replace(BLOCK, nest="*"), "has keywords beside a nest of arguments"),
    "an effect that is copied": (BLOCK, replace(BLOCK, copied=True), "has an effect, and is copied as a read is"),
    "a read that is lent": (LENGTH, replace(LENGTH, lent=(0,)), "is a read, and is lent what it may write to"),
    "a call that is lent nothing": (BLOCK, replace(BLOCK, lent=(0, 3)), "is lent the tensors [3] of 1"),
    "a call that drops nothing": (BLOCK, replace(BLOCK, dead_results=("v9",)), "drops ['v9'], which no earlier call"),
    "a call on nothing": (BLOCK, replace(BLOCK, callee=Method(Ref("o9"), "f")), "o9.f reads 'o9', which no input or"),
    "a read in a tensor": (LAYER, replace(LAYER, receiver=Ref("x0")), "reads inside 'x0', which is a tensor"),
    "a read of a list": (LAYER, replace(LAYER, structure="list"), "finds a list: a read gives one value or a tuple"),
    "a read with no result": (LAYER, replace(LAYER, outputs=()), "gives 0 leaves as one"),
    "a plain value of a class": (LAYERS, replace(LAYERS, outputs=(Expect(1),)), "finds a plain value or a tuple of"),
    "a read before the object": (LAYERS, replace(LAYER, outputs=("o0",)), "reads 'o0', which no input or earlier"),
    "a question to an object": (TRUTH, replace(TRUTH, tensor=Ref("o0")), "asks 'o0' for data, which is no tensor"),
    "an answer of no size": (TRUTH, replace(TRUTH, output="n9"), "answers 'n9', which is no value and no size"),
    "an object of a module": (
        STATE,
        replace(STATE, constructor=Ref("h1")),
        "makes an object of 'h1', which is no class",
    ),
    "an object made again": (STATE, replace(STATE, output="o0"), "makes 'o0' as a new object, which is none"),
    "an object that is a tensor": (STATE, replace(STATE, output="v2"), "makes 'v2' as a new object, which is none"),
    "an object that is lent nothing": (STATE, replace(STATE, lent=(1,)), "is lent the tensors [1] of 1"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_node_of_each_kind_is_rejected(name: str) -> None:
    good, bad, message = MALFORMED[name]
    assert type(bad) is type(good)
    with pytest.raises(GraphError) as raised:
        check_recording(replace(GRAPH, nodes=tuple(bad if node is good else node for node in NODES)))
    assert message in str(raised.value)


def test_an_attribute_is_no_item() -> None:
    attribute, item = replace(LAYERS, member=Attribute("get")), replace(LAYERS, member=Item("get"))
    assert attribute != item and attribute.text == item.text
    assert (str(attribute), str(item)) == ("read cache.get", "read cache.get()")


def test_a_method_is_no_module() -> None:
    method = OpaqueCall(Method(Ref("h1"), "forward"), (), (), (), True, "tuple")
    assert (method.text, replace(method, callee=Ref("h1")).text) == ("h1.forward", "h1")
