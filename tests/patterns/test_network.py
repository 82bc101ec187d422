"""Graphs as networkx graphs: what their nodes and edges say, that their orders run, queries, and files."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from typing import Any, get_type_hints

import networkx
import pytest
import torch
from good_recording import GOOD
from graphs import DYNAMIC, EXAMPLES, LENGTH, trace

import fusion
from fusion.patterns.errors import GraphError
from fusion.patterns.graph import SubGraph
from fusion.patterns.leaves import Ref
from fusion.patterns.network import EdgeAttributes, NodeAttributes
from fusion.patterns.nodes import OpNode
from fusion.patterns.recorded import RecordedGraph
from fusion.patterns.reference import run

Network = networkx.MultiDiGraph


def gated(gate: torch.Tensor, up: torch.Tensor, unused: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, int]:
    product = torch.nn.functional.silu(gate) * up
    low, high = (product * product).chunk(2, -1)
    return torch.cat((high, low), -1), low.sum(-1), 3


@pytest.fixture(scope="module")
def graph() -> RecordedGraph:
    inputs = {"gate": torch.randn(4, 16), "up": torch.randn(4, 16), "unused": torch.randn(4)}
    with fusion.record(**inputs) as recording:
        gated(**inputs)
    return recording.graph


def named(name: str) -> SubGraph:
    fn, inputs = EXAMPLES[name]
    return trace(fn, *inputs(torch.float32, LENGTH), dynamic=DYNAMIC)


def find(flow: Network, **wanted: Any) -> list[str]:
    """The nodes with these attributes."""
    return [node for node, has in flow.nodes(data=True) if wanted.items() <= has.items()]


def test_each_call_input_and_output_is_a_node_and_each_use_an_edge(graph: RecordedGraph) -> None:
    flow = graph.to_networkx()
    kinds = Counter(kind for _, kind in flow.nodes(data="kind"))
    assert kinds["input"] == len(graph.inputs) and kinds["output"] == len(graph.outputs)
    assert kinds.total() == len(graph.inputs) + len(graph.nodes) + len(graph.outputs)
    returned = [leaf for leaf in graph.outputs if isinstance(leaf, Ref)]
    assert flow.number_of_edges() == sum(len(node.refs) for node in graph.nodes) + len(returned)
    recorded = [values for _, values in flow.nodes(data="values")]
    assert recorded[: len(graph.inputs)] == [entered.name for entered in graph.inputs]
    assert recorded[len(graph.inputs) :][: len(graph.nodes)] == [", ".join(node.outputs) for node in graph.nodes]


NO_TENSOR = {"dtype": "", "shape": "", "device": ""}
NODE = {"op": "", "path": "", "dtype": "float32", "device": "cpu", "origin": "", "effect": False}


@pytest.mark.parametrize(
    ("node", "says"),
    {
        "input x0": {"kind": "input", "index": 0, "values": "x0", "path": "x", "shape": "[s0]"},
        "parameter p0": {"kind": "parameter", "index": 0, "values": "p0", "path": "weight", "shape": "[s0]"},
        "constant c0": {"kind": "constant", "index": 0, "values": "c0", "shape": "[1]"},
        "object o0": {"kind": "object", "index": 0, "values": "o0", "path": "cache.Cache", **NO_TENSOR},
        "0 exp": {"kind": "pointwise", "op": "aten.exp.default", "index": 0, "values": "v1", "shape": "[s0]"},
        "1 add_": {
            "kind": "library", "op": "aten.add_.Tensor", "index": 1, "values": "v1", "shape": "[s0]", "effect": True,
        },
        "2 cache.length": {"kind": "opaque call", "op": "cache.length", "index": 2, "values": "n2", **NO_TENSOR},
        "3 expand": {"kind": "view", "op": "aten.expand.default", "index": 3, "values": "v3", "shape": "[s1]"},
        "output 0": {"kind": "output", "index": 0, "values": "v1", "shape": "[s0]"},
        "output 1": {"kind": "output", "index": 1, "values": "v3", "shape": "[s1]"},
        "output 2": {"kind": "output", "index": 2, "values": "s0", **NO_TENSOR},
    }.items(),
)  # fmt: skip
def test_a_node_says_what_it_is(node: str, says: dict[str, Any]) -> None:
    flow = GOOD.to_networkx()
    assert flow.nodes[node] == NODE | says
    assert len(flow) == 11


def test_an_edge_says_which_value_is_read_as_what() -> None:
    flow = GOOD.to_networkx()
    uses = {(maker, reader, use["kind"], use["operand"]) for maker, reader, use in flow.edges(data=True)}
    assert uses == {
        ("input x0", "0 exp", "operand", 0),
        ("0 exp", "1 add_", "operand", 0),
        ("parameter p0", "1 add_", "operand", 1),
        ("constant c0", "3 expand", "operand", 0),
        ("2 cache.length", "3 expand", "size", -1),  # how far it expands is the length that the cache told
        ("1 add_", "output 0", "operand", 0),  # what was written, not what stood there before
        ("3 expand", "output 1", "operand", 0),
    }
    (read,) = flow.get_edge_data("parameter p0", "1 add_").values()
    where = {"dtype": "float32", "shape": "[s0]", "device": "cpu"}
    assert read == {"kind": "operand", "value": "p0", "output": 0, "operand": 1, **where}


def test_a_value_used_twice_has_two_edges_and_results_are_told_apart(graph: RecordedGraph) -> None:
    flow = graph.to_networkx()
    product, square = find(flow, op="aten.mul.Tensor")
    assert [use["operand"] for use in flow.get_edge_data(product, square).values()] == [0, 1]
    (cat,) = find(flow, op="aten.cat.default")
    halves = {use["operand"]: use for _, _, use in flow.in_edges(cat, data=True)}
    made = {name: k for node in graph.nodes for k, name in enumerate(node.outputs)}
    assert [halves[k]["output"] for k in (0, 1)] == [made[halves[k]["value"]] for k in (0, 1)]
    assert halves[0]["value"] != halves[1]["value"]


def test_the_user_s_line_is_on_calls_and_outputs(graph: RecordedGraph) -> None:
    flow = graph.to_networkx()
    for index, node in enumerate(graph.nodes):
        (call,) = (n for n, d in flow.nodes(data=True) if d["op"] and d["index"] == index)
        assert flow.nodes[call]["origin"] == node.origin and "test_network.py:" in node.origin


def test_queries_of_networkx_answer_what_depends_on_what(graph: RecordedGraph) -> None:
    flow = graph.to_networkx()
    (total,) = find(flow, op="aten.sum.dim_IntList")
    needed = networkx.ancestors(flow, total)
    assert {flow.nodes[n]["path"] for n in needed if flow.nodes[n]["kind"] == "input"} == {"gate", "up"}
    (silu,) = find(flow, op="aten.silu.default")
    assert networkx.descendants(flow, silu) >= {total, "output 0"}
    (unused,) = find(flow, path="unused")
    assert not networkx.descendants(flow, unused)


def all_attributes(flow: Network) -> list[tuple[dict[str, type], dict[str, Any]]]:
    nodes = [(get_type_hints(NodeAttributes), has) for _, has in flow.nodes(data=True)]
    return nodes + [(get_type_hints(EdgeAttributes), has) for _, _, has in flow.edges(data=True)]


@pytest.mark.parametrize("name", EXAMPLES)
def test_attributes_have_the_types_they_are_declared_with(name: str) -> None:
    for declared, has in all_attributes(named(name).to_networkx()) + all_attributes(GOOD.to_networkx()):
        assert {key: type(value) for key, value in has.items()} == declared


def reordered(graph: SubGraph) -> SubGraph:
    """The graph's calls in that topological order of its network which is farthest from the recorded one."""
    flow = graph.to_networkx()
    order = networkx.lexicographical_topological_sort(flow, key=lambda node: -flow.nodes[node]["index"])
    places = [flow.nodes[node]["index"] for node in order if flow.nodes[node]["op"]]
    return SubGraph(graph.inputs, tuple(graph.nodes[k] for k in places), graph.outputs, graph.specs)


@pytest.mark.parametrize("name", EXAMPLES)
def test_any_topological_order_computes_the_same(name: str) -> None:
    graph, (_, inputs) = named(name), EXAMPLES[name]
    assert networkx.is_directed_acyclic_graph(graph.to_networkx())
    values = dict(zip(graph.inputs, inputs(torch.float32, LENGTH), strict=True))
    expected = run(graph, values)
    for output, value in run(reordered(graph), values).items():
        assert torch.equal(value, expected[output])


def test_another_order_is_one_of_those_that_are_tried() -> None:
    assert any(reordered(named(name)).nodes != named(name).nodes for name in EXAMPLES)


def test_a_subgraph_is_the_same_network_without_paths(graph: RecordedGraph) -> None:
    inputs = tuple(entered.name for entered in graph.inputs)
    returned = tuple(leaf.name for leaf in graph.outputs if isinstance(leaf, Ref))
    alone = SubGraph(inputs, graph.nodes, returned, graph.specs).to_networkx()
    whole = graph.to_networkx()
    for _, attributes in whole.nodes(data=True):
        attributes["path"] = ""
    whole.remove_nodes_from(find(whole, kind="output", values="3"))
    assert networkx.utils.graphs_equal(alone, whole)


def test_graphml_and_json_keep_everything(graph: RecordedGraph) -> None:
    for flow in (graph.to_networkx(), GOOD.to_networkx(), named("swiglu").to_networkx()):
        text = json.dumps(networkx.node_link_data(flow, edges="edges"))
        assert networkx.utils.graphs_equal(networkx.node_link_graph(json.loads(text), edges="edges"), flow)
        file = io.BytesIO()
        networkx.write_graphml(flow, file)
        file.seek(0)
        read = networkx.read_graphml(file, force_multigraph=True)
        assert dict(read.nodes(data=True)) == dict(flow.nodes(data=True))
        assert list(read.edges(keys=True, data=True)) == list(flow.edges(keys=True, data=True))


def test_a_malformed_recording_is_told() -> None:
    broken = replace(GOOD, nodes=(*GOOD.nodes, OpNode("aten.exp.default", (Ref("nowhere"),), (), ("v9",))))
    with pytest.raises(GraphError, match="reads 'nowhere'"):
        broken.to_networkx()


@pytest.mark.slow
def test_networkx_is_imported_only_when_it_is_asked_for() -> None:
    """It takes 0.2 s, a tenth of the time to a first fused call."""
    program = """
import sys, torch, fusion
with fusion.record(x=torch.randn(4, 16)) as recording:
    torch.relu(torch.randn(4, 16)) * 2
print("networkx" in sys.modules)
print(recording.subgraphs, recording.graph.to_networkx(), "networkx" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.startswith("False\n") and done.stdout.endswith("True\n")
