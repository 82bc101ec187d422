"""Recordings to partition, and checks every partition must pass."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable
from typing import Any

import torch

from fusion.capture.python import registry
from fusion.capture.python.argument_snapshot import ArgumentSnapshot
from fusion.capture.record import record
from fusion.capture.recorded_call import RecordedCall
from fusion.partition.dependence import Step
from fusion.partition.partitioner import Partition, partition
from fusion.partition.regions import Region
from fusion.patterns import ops, symbols
from fusion.patterns.leaves import Ref, map_leaves
from fusion.patterns.nodes import OpNode
from fusion.patterns.recorded import RecordedGraph
from fusion.patterns.specs import TensorSpec
from fusion.refusal import CODES

ROWS, WIDTH = 6, 16


class Store:
    """An object with a Python effect: it keeps what it is given."""

    def __init__(self) -> None:
        self.total = torch.zeros(ROWS, WIDTH)

    def update(self, x: torch.Tensor) -> torch.Tensor:
        return self.total.add_(x)


class Views(Store):
    """A store that hands out views of what it keeps, each a new tensor."""

    def update(self, x: torch.Tensor) -> torch.Tensor:
        return super().update(x)[:]


registry.register_island(Store, "update")
registry.register_island(Views, "update")


def recorded(fn: Callable[..., Any], *arguments: Any) -> RecordedCall:
    """`fn` run once on `arguments` and recorded."""
    names = inspect.signature(fn).parameters
    given = ArgumentSnapshot(dict(zip(names, arguments, strict=True)))
    recording = record(fn, given, lambda: fn(*arguments), {})
    assert recording.graph is not None, recording.refusal
    return recording


def divided(fn: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[RecordedGraph, Partition]:
    """The partition of `fn`'s recording, after its order is shown to compute what eager computed."""
    recording = recorded(fn, *arguments)
    assert recording.graph is not None
    parts = partition(recording.graph, values=recording.values, **options)
    check_complete(recording.graph, parts)
    if all(isinstance(node, OpNode) for node in recording.graph.nodes):
        check_values(recording, parts, parts.order)
    return recording.graph, parts


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))).to(dtype)


def check_complete(graph: RecordedGraph, parts: Partition) -> None:
    """Every call is in a region or refused, never both; regions share views only; the order has each step once."""
    inside = [i for region in parts.regions for i in region.nodes]
    refused = [i for i, _ in parts.refusals]
    calls = {i for i, node in enumerate(graph.nodes) if isinstance(node, OpNode)}
    assert set(inside) | set(refused) == calls
    assert not set(inside) & set(refused)
    assert refused == sorted(set(refused))
    views = {i for i in calls if ops.kind_of(graph.nodes[i].op) is ops.Kind.VIEW}
    owned = [i for region in parts.regions for i in region.owned]
    assert len(owned) == len(set(owned))
    assert not views & set(owned)
    assert len(set(parts.order)) == len(parts.order)
    for region in parts.regions:
        assert region.nodes[-1] not in views
        assert (region.inputs, region.outputs) == (region.subgraph.inputs, region.subgraph.outputs)
        assert region.subgraph.nodes == tuple(graph.nodes[i] for i in region.nodes)
        assert all(("node", i) not in parts.order for i in region.owned)


def check_values(recording: RecordedCall, parts: Partition, order: tuple[Step, ...]) -> None:
    """Runs the steps with eager operators; a region sees its inputs only and hands back its outputs only."""
    graph = recording.graph
    assert graph is not None
    outside = {name: recording.run.real[name].clone() for name in (*(i.name for i in graph.inputs), *graph.constants)}

    def run(node: OpNode, known: dict[str, torch.Tensor]) -> None:
        def leaf(x: Any) -> Any:
            if isinstance(x, Ref):
                return known[x.name]
            return symbols.evaluate(x, recording.values) if hasattr(x, "free_symbols") else x

        result = ops.resolve(node.op)(*map_leaves(leaf, node.args), **{k: map_leaves(leaf, v) for k, v in node.kwargs})
        made = result if isinstance(result, (tuple, list)) else (result,)
        known.update(zip(node.outputs, made, strict=True))

    for kind, k in order:
        if kind == "node":
            run(graph.nodes[k], outside)
            continue
        region = parts.regions[k]
        own = {name: outside[name] for name in region.inputs}
        for node in region.subgraph.nodes:
            run(node, own)
        outside.update((name, own[name]) for name in region.outputs)
    results = torch.utils._pytree.tree_leaves(recording.result)
    for ref, expected in zip(graph.outputs, results, strict=True):
        assert torch.equal(outside[ref.name], expected)


def taken_apart(parts: Partition) -> list[Region]:
    """The regions, those in bundles one by one."""
    return [member for region in parts.regions for member in region.members or (region,)]


def names(graph: RecordedGraph, parts: Partition) -> list[str]:
    """The regions by what they compute: "mul add", of a bundle "mul add | tanh"."""
    return [" | ".join(map(_computing, region.members or (region,))) for region in parts.regions]


def _computing(region: Region) -> str:
    return " ".join(n.op.split(".")[1] for n in region.subgraph.nodes if ops.kind_of(n.op) is not ops.Kind.VIEW)


def codes(graph: RecordedGraph, parts: Partition) -> dict[str, str]:
    """Refusal codes by operator."""
    assert all(refusal.code in CODES and refusal.sentence for _, refusal in parts.refusals)
    return {graph.nodes[i].op.split(".")[1]: refusal.code for i, refusal in parts.refusals}


def chain(length: int, op: str = "aten.relu.default") -> RecordedGraph:
    """A recording of one operator after another."""
    spec = TensorSpec.contiguous(torch.float32, (4, 8))
    value = [f"v{i}" for i in range(length + 1)]
    nodes = tuple(OpNode(op, (Ref(value[i]),), (), (value[i + 1],)) for i in range(length))
    specs = tuple((name, spec) for name in value)
    return RecordedGraph((), (("v0", "x"),), (), (), nodes, (Ref(value[-1]),), "*", specs, (), ())


class GraphBuilder:
    """A recording without a run: calls are added one by one, their shapes given; views get their strides from torch."""

    def __init__(self) -> None:
        self.nodes: list[OpNode] = []
        self.specs: dict[str, TensorSpec] = {}

    def given(self, shape: tuple[Any, ...]) -> Ref:
        """A parameter."""
        return self._value("p", TensorSpec.contiguous(torch.float32, shape))

    def call(self, op: str, shape: tuple[Any, ...], *args: Any) -> Ref:
        """The result of an operator, named without "aten."."""
        spec = TensorSpec.contiguous(torch.float32, shape)
        if op in ("transpose.int", "slice.Tensor"):
            strides = list(self.specs[args[0].name].strides)
            if op == "transpose.int":
                strides[args[1]], strides[args[2]] = strides[args[2]], strides[args[1]]
            spec = TensorSpec(torch.float32, shape, tuple(strides))
        made = self._value("v", spec)
        self.nodes.append(OpNode(f"aten.{op}", args, (), (made.name,)))
        return made

    def graph(self, *outputs: Ref) -> RecordedGraph:
        """What was built."""
        given = tuple((name, name) for name in self.specs if name.startswith("p"))
        return RecordedGraph((), given, (), (), tuple(self.nodes), outputs, "*", tuple(self.specs.items()), (), ())

    def _value(self, prefix: str, spec: TensorSpec) -> Ref:
        name = f"{prefix}{len(self.specs)}"
        self.specs[name] = spec
        return Ref(name)


def tangled(calls: int, seed: int, back: int = 12) -> RecordedGraph:
    """Random calls that read recent values: sums, functions, rows, softmax, transposes, slices and library calls."""
    draw, build = random.Random(seed), GraphBuilder()
    batch, length = symbols.symbol("s0"), symbols.symbol("s1")
    spaces = {"whole": (batch, length, 64), "turned": (batch, 64, length), "half": (batch, length, 32), "row": (64,)}
    values = [(build.given(shape), space) for space, shape in spaces.items()]
    for _ in range(calls):
        recent = values[-back:]
        (x, space), chance = draw.choice(recent), draw.random()
        shape = spaces[space]
        alike = [v for v, s in recent if s == space or (s == "row" and space == "whole")]
        if chance < 0.1 and space == "whole":
            made = build.call("linear.default", shape, x, x), space
        elif chance < 0.2 and space == "whole":
            mean = build.call("mean.dim", (batch, length, 1), x, (-1,), True)
            made = build.call("mul.Tensor", shape, x, mean), space
        elif chance < 0.3 and space in ("whole", "turned"):
            other = "turned" if space == "whole" else "whole"
            made = build.call("transpose.int", spaces[other], x, 1, 2), other
        elif chance < 0.35 and space == "whole":
            made = build.call("slice.Tensor", spaces["half"], x, 2, 0, 32), "half"
        elif chance < 0.4 and space == "half":
            made = build.call("cat.default", spaces["whole"], (x, x), -1), "whole"
        elif chance < 0.45 and space == "whole":
            made = build.call("softmax.int", shape, x, -1), space
        elif chance < 0.7:
            made = build.call(draw.choice(("relu.default", "exp.default")), shape, x), space
        else:
            made = build.call(draw.choice(("add.Tensor", "mul.Tensor")), shape, x, draw.choice(alike)), space
        values.append(made)
    return build.graph(*(value for value, _ in values[-3:]))
