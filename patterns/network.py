"""Graphs as networkx graphs, to query, draw and write to files.

`RecordedGraph.to_networkx` and `SubGraph.to_networkx` are the entries. They import this module when they are called:
networkx takes 0.2 s to import, which a forward that nobody draws need not pay.

Nodes are calls and what enters and leaves a graph; an edge is one use of a value. One call may use a value twice
(`x * x`), so the graph is a MultiDiGraph. Every attribute is a str, an int or a bool, which GraphML and JSON keep.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any, Protocol, TypedDict

import networkx
from sympy import Expr

from . import symbols
from .errors import GraphError
from .leaves import Leaf, Ref, leaves, path_text, ref_names, show
from .nodes import Node, OpNode, writes
from .ops import Kind, kind_of
from .specs import TensorSpec

_REMEDY = "Make the graph by recording, or name the values that its calls read."


class Flow(Protocol):
    """What a network is made from, as both kinds of graph have it."""

    @property
    def nodes(self) -> Sequence[Node]:
        """The calls, in execution order."""

    @property
    def spec(self) -> dict[str, TensorSpec]:
        """Specs by value name."""


class RecordedFlow(Flow, Protocol):
    """What a network is made from, as a recording has it."""

    @property
    def inputs(self) -> Sequence[Any]:
        """Tensors that enter by argument."""

    @property
    def parameters(self) -> Sequence[tuple[str, str]]:
        """Value names and paths of what the modules hold."""

    @property
    def constants(self) -> Sequence[str]:
        """Value names of tensors made from Python data."""

    @property
    def objects(self) -> Sequence[Any]:
        """Objects that calls are made on."""

    @property
    def symbols(self) -> Sequence[Any]:
        """Where each size symbol's value comes from."""

    @property
    def outputs(self) -> tuple[Leaf, ...]:
        """The result's leaves."""

    @property
    def lasting(self) -> Collection[int]:
        """Indices of the calls whose effects outlive a run."""


class SubGraphFlow(Flow, Protocol):
    """What a network is made from, as a subgraph has it."""

    @property
    def inputs(self) -> Sequence[str]:
        """Names of the values it reads from outside."""

    @property
    def outputs(self) -> Sequence[str]:
        """Names of the values it hands back."""


class NodeAttributes(TypedDict):
    """What every node carries; `RecordedGraph.to_networkx` says what each attribute means."""

    kind: str
    op: str
    index: int
    values: str
    path: str
    dtype: str
    shape: str
    device: str
    origin: str
    effect: bool


class EdgeAttributes(TypedDict):
    """What every edge carries; `RecordedGraph.to_networkx` says what each attribute means."""

    kind: str
    value: str
    output: int
    operand: int
    dtype: str
    shape: str
    device: str


def of_recording(graph: RecordedFlow) -> networkx.MultiDiGraph:
    """The network of a recording; see `RecordedGraph.to_networkx`.

    Raises:
        GraphError: a value is read before it is made.
    """
    network = _Network(graph.spec, {source.symbol: source.value for source in graph.symbols})
    network.enter("input", ((i.name, path_text(i.path)) for i in graph.inputs))
    network.enter("parameter", graph.parameters)
    network.enter("constant", ((name, "") for name in graph.constants))
    network.enter("object", ((held.name, held.path) for held in graph.objects))
    for index, node in enumerate(graph.nodes):
        network.call(index, node, lasting=index in graph.lasting)
    for index, leaf in enumerate(leaves(graph.outputs)):
        network.hand_out(index, leaf)
    return network.graph


def of_subgraph(graph: SubGraphFlow) -> networkx.MultiDiGraph:
    """The network of a subgraph; see `SubGraph.to_networkx`."""
    network = _Network(graph.spec, {})
    network.enter("input", ((name, "") for name in graph.inputs))
    for index, node in enumerate(graph.nodes):
        network.call(index, node, lasting=False)
    for index, name in enumerate(graph.outputs):
        network.hand_out(index, Ref(name))
    return network.graph


class _Network:
    """A network under construction, nodes in the order of execution.

    Args:
        spec: specs by value name.
        sources: the value that each size symbol is read off.
    """

    def __init__(self, spec: dict[str, TensorSpec], sources: dict[str, str]) -> None:
        self.graph = networkx.MultiDiGraph()
        self.spec = spec
        self.sources = sources
        self.makers: dict[str, tuple[str, int]] = {}  # by value: the node that made it last, and which result it is
        self.measured: dict[str, tuple[str, int]] = {}  # the same of what calls made first: its sizes are known there

    def enter(self, kind: str, values: Iterable[tuple[str, str]]) -> None:
        """Adds what enters the graph: value names and paths."""
        for index, (name, path) in enumerate(values):
            node = f"{kind} {name}"
            self._add(node, kind, index, [name], path=path)
            self.makers[name] = (node, 0)

    def call(self, index: int, call: Node, *, lasting: bool) -> None:
        """Adds a call and the edges of what it uses; `lasting` where its effect outlives a run."""
        if isinstance(call, OpNode):
            short, op, kind = call.op.split(".")[1], call.op, kind_of(call.op).value
            effect = lasting or kind == Kind.EFFECT.value or writes(call.op)
        else:
            short, op, kind, effect = call.text, call.text, call.label, lasting or call.effect
        node = f"{index} {short}"
        made = [name for name in call.outputs if isinstance(name, str)]
        self._add(node, kind, index, made, op=op, origin=call.origin, effect=effect)
        self._use(node, call.refs, (call.args, call.kwargs))
        for output, name in enumerate(call.outputs):
            if isinstance(name, str):
                if name not in self.makers:
                    self.measured[name] = (node, output)
                self.makers[name] = (node, output)

    def hand_out(self, index: int, leaf: Leaf) -> None:
        """Adds one leaf of the result."""
        node, names = f"output {index}", ref_names(leaf)
        origin = "".join(self.graph.nodes[self._maker(name, node)[0]]["origin"] for name in names)
        self._add(node, "output", index, [show(leaf)], origin=origin)
        self._use(node, names, leaf)

    def _use(self, node: str, names: tuple[str, ...], tree: Leaf) -> None:
        """The edges of one reader: the values it reads, and the calls that its size symbols wait for."""
        for operand, name in enumerate(names):
            self._edge("operand", name, self._maker(name, node), node, operand)
        symbols_used = {symbol.name for leaf in leaves(tree) if isinstance(leaf, Expr) for symbol in leaf.free_symbols}
        for name in sorted({self.sources[symbol] for symbol in symbols_used if symbol in self.sources}):
            if name in self.measured:
                self._edge("size", name, self.measured[name], node, -1)

    def _maker(self, name: str, reader: str) -> tuple[str, int]:
        if name not in self.makers:
            raise GraphError(f"{reader!r} reads {name!r}, which nothing before it makes.", remedy=_REMEDY)
        return self.makers[name]

    def _add(
        self,
        node: str,
        kind: str,
        index: int,
        values: Sequence[str],
        *,
        op: str = "",
        path: str = "",
        origin: str = "",
        effect: bool = False,
    ) -> None:
        dtype, shape, device = self._tensor(next((name for name in values if name in self.spec), ""))
        attributes = NodeAttributes(
            kind=kind, op=op, index=index, values=", ".join(values), path=path, dtype=dtype, shape=shape,
            device=device, origin=origin, effect=effect,
        )  # fmt: skip
        self.graph.add_node(node, **attributes)

    def _edge(self, kind: str, name: str, maker: tuple[str, int], node: str, operand: int) -> None:
        dtype, shape, device = self._tensor(name)
        attributes = EdgeAttributes(
            kind=kind, value=name, output=maker[1], operand=operand, dtype=dtype, shape=shape, device=device
        )
        self.graph.add_edge(maker[0], node, **attributes)

    def _tensor(self, name: str) -> tuple[str, str, str]:
        """Element type, shape and device of a value; empty where it is no tensor."""
        spec = self.spec.get(name)
        if spec is None:
            return "", "", ""
        shape = ", ".join(map(symbols.render, spec.shape))
        return str(spec.dtype).removeprefix("torch."), f"[{shape}]", spec.device
