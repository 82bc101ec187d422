"""Graphs as values: equality by structure, digests, canonical names, JSON, and what is rejected."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import graphs
import pytest
import torch
from graphs import DYNAMIC, EXAMPLES, LENGTH, add_rms_norm, normal, swiglu, trace

from fusion.patterns import symbols
from fusion.patterns.errors import GraphError
from fusion.patterns.graph import SubGraph, canonicalize
from fusion.patterns.leaves import Expect, Ref, decode, encode, map_leaves
from fusion.patterns.nodes import OpNode
from fusion.patterns.specs import TensorSpec

VECTOR = TensorSpec.contiguous(torch.float32, (symbols.symbol("n"),))


def example(name: str) -> SubGraph:
    fn, inputs = EXAMPLES[name]
    return trace(fn, *inputs(torch.bfloat16, LENGTH), dynamic=DYNAMIC)


def exp(source: str, made: str) -> OpNode:
    return OpNode("aten.exp.default", (Ref(source),), (), (made,), origin=f"model.py:{len(made)}")


def renamed(graph: SubGraph, prefix: str, sizes: dict[str, str]) -> SubGraph:
    """`graph` with every value and size symbol called something else."""
    new_sizes = {symbols.symbol(old): symbols.symbol(new) for old, new in sizes.items()}

    def dim(d: object) -> object:
        return symbols.substitute(d, new_sizes) if isinstance(d, symbols.sympy.Expr) else d

    nodes = tuple(
        dataclasses.replace(n.renamed(prefix.__add__), args=map_leaves(dim, n.renamed(prefix.__add__).args))
        for n in graph.nodes
    )
    specs = tuple(
        (prefix + name, dataclasses.replace(s, shape=tuple(map(dim, s.shape)), strides=tuple(map(dim, s.strides))))
        for name, s in graph.specs
    )
    return SubGraph(
        tuple(prefix + i for i in graph.inputs), nodes, tuple(prefix + o for o in graph.outputs), specs, "named"
    )


@pytest.mark.parametrize("name", EXAMPLES)
def test_names_are_no_part_of_identity(name: str) -> None:
    graph = example(name)
    other = renamed(graph, "layer7_", {"s0": "u41"})
    assert other == graph and hash(other) == hash(graph) and other.digest == graph.digest
    assert other.canonical.to_json() == graph.canonical.to_json()


@pytest.mark.parametrize("name", EXAMPLES)
def test_json_round_trip(name: str) -> None:
    graph = example(name)
    back = SubGraph.from_json(json.loads(json.dumps(graph.to_json())))
    assert back.to_json() == graph.to_json() and back == graph and str(back) == str(graph)


def test_examples_differ() -> None:
    digests = {example(name).digest for name in EXAMPLES}
    assert len(digests) == len(EXAMPLES)


def test_structure_is_identity() -> None:
    base = example("swiglu")
    gate, up = EXAMPLES["swiglu"].inputs(torch.bfloat16, LENGTH)
    assert trace(swiglu, gate, up, dynamic=DYNAMIC) == base
    assert trace(lambda g, u: swiglu(u, g), gate, up, dynamic=DYNAMIC) != base
    assert trace(swiglu, gate, up) != base  # sizes fixed
    assert trace(swiglu, gate.float(), up.float(), dynamic=DYNAMIC) != base
    assert trace(swiglu, gate.transpose(0, 1), up.transpose(0, 1), dynamic=DYNAMIC) != base
    assert base != "swiglu"


def test_pattern_and_origin_are_no_part_of_identity() -> None:
    graph = example("swiglu")
    assert graph.with_pattern("swiglu") == graph and graph.with_pattern("swiglu").pattern == "swiglu"
    moved = tuple(dataclasses.replace(n, origin="elsewhere.py:9") for n in graph.nodes)
    assert dataclasses.replace(graph, nodes=moved) == graph and moved == graph.nodes


@pytest.mark.slow
def test_digests_are_the_same_in_another_process() -> None:
    graph, node = example("add_rms_norm"), example("rope").nodes[3]
    program = (
        "import torch; from graphs import *\n"
        "fn, inputs = EXAMPLES['add_rms_norm']\n"
        "print(trace(fn, *inputs(torch.bfloat16, LENGTH), dynamic=DYNAMIC).digest)\n"
        "fn, inputs = EXAMPLES['rope']\n"
        "print(trace(fn, *inputs(torch.bfloat16, LENGTH), dynamic=DYNAMIC).nodes[3].digest)\n"
    )
    folder = str(Path(graphs.__file__).parent)
    environment = {**os.environ, "PYTHONPATH": folder, "PYTHONHASHSEED": "12345"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [graph.digest, node.digest]


def test_canonical_names_and_sizes() -> None:
    graph = renamed(example("add_rms_norm"), "x", {"s0": "tokens"})
    canonical, names, sizes = canonicalize(graph)
    assert canonical.inputs == ("a0", "a1", "a2") and canonical.symbols == ("s0",)
    assert [names[o] for o in graph.outputs] == list(canonical.outputs)
    assert sizes == {"s0": symbols.symbol("tokens")}
    assert canonical.canonical.to_json() == canonical.to_json()


def test_values_are_immutable_and_views_of_them_right() -> None:
    graph = trace(add_rms_norm, normal(4, 6), normal(4, 6), normal(6))
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.inputs = ()  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        graph.nodes[0].op = "aten.sub.Tensor"  # type: ignore[misc]
    assert graph.ops == ("add", "pow", "mean", "add", "rsqrt", "mul", "mul")
    assert graph.producer[graph.outputs[1]] is graph.nodes[0]
    assert graph.nodes[0].refs == ("x1", "x0")
    assert "aten.rsqrt.default" in str(graph) and "float32[4, 6]" in str(graph)


@pytest.mark.parametrize(
    ("inputs", "nodes", "outputs", "specs", "message"),
    [
        (("x",), (exp("y", "z"),), ("z",), "xyz", "no input or earlier call makes"),
        (("x",), (exp("x", "x"),), ("x",), "x", "no in-place calls"),
        (("x",), (exp("x", "y"), exp("x", "y")), ("y",), "xy", "exists already"),
        (("x",), (exp("x", "y"),), ("z",), "xyz", "made by no call"),
        (("x",), (exp("x", "y"),), ("y",), "x", "no TensorSpec"),
        (("x", "x"), (exp("x", "y"),), ("y",), "xy", "must differ"),
    ],
)
def test_malformed_graphs_are_rejected(
    inputs: tuple[str, ...], nodes: tuple[OpNode, ...], outputs: tuple[str, ...], specs: str, message: str
) -> None:
    with pytest.raises(GraphError, match=message):
        SubGraph(inputs, nodes, outputs, tuple((name, VECTOR) for name in specs))


@pytest.mark.parametrize(
    "leaf",
    [
        None, True, 3, -1, 0.1, float("inf"), -0.0, "tanh", Ref("x"), Expect((1, "a")),
        2 * symbols.symbol("n") + 1,
        symbols.floor_div(symbols.symbol("n"), 2), symbols.modulo(symbols.symbol("n"), 3),
        symbols.Max(symbols.symbol("n"), symbols.symbol("m")) - 1, symbols.symbol("n") ** 2 / 2,
        torch.bfloat16, torch.strided, torch.preserve_format,
        torch.device("cuda", 1), complex(1, -0.5), (1, (Ref("x"), None)),
    ],
    ids=str,
)  # fmt: skip
def test_leaves_round_trip_exactly(leaf: object) -> None:
    back = decode(json.loads(json.dumps(encode(leaf))))
    assert back == leaf and type(back) is type(leaf) and str(back) == str(leaf)


def test_leaves_without_a_place_are_rejected() -> None:
    with pytest.raises(GraphError, match="has no place"):
        encode(object())
    with pytest.raises(GraphError, match="no dtype"):
        decode({"torch": "torch.load"})
    with pytest.raises(GraphError, match="Unknown kind"):
        decode({"pickle": "x"})


@pytest.mark.parametrize("text", ["__import__('os').getcwd()", "n.real", "(n", "1.5", "n if m else 2", "'n'"])
def test_a_size_is_read_not_evaluated(text: str) -> None:
    with pytest.raises(GraphError, match="size expression"):
        decode({"dim": text})


def test_contiguity() -> None:
    n = symbols.symbol("n")
    assert TensorSpec.contiguous(torch.float32, (n, 3)).strides == (3, 1)
    assert TensorSpec(torch.float32, (1, n), (999, 1)).is_contiguous
    assert not TensorSpec(torch.float32, (n, 3), (1, n)).is_contiguous
