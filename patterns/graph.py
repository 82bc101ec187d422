"""Operator calls and subgraphs as immutable values.

Everything here is frozen, compares by structure and has a SHA-256 `digest` that two processes agree on.
Names of values are arbitrary in a graph and canonical in its digest: renaming values changes nothing.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import sympy

from . import symbols
from .errors import GraphError
from .forks import cached_property
from .leaves import Leaf, Ref, leaves, map_leaves, sha256, show
from .nodes import OpNode, writes
from .specs import TensorSpec, decode_spec, encode_spec
from .symbols import Dim

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True)
class SubGraph:
    """A group of operator calls that could be one kernel.

    Attributes:
        inputs: names of the values it reads from outside, in order.
        nodes: the calls, in execution order.
        outputs: names of the values it hands back, in order.
        specs: the TensorSpec of every value, by name. Size symbols are shared by all of them.
        pattern: the name of the pattern that matched, or None; no part of equality.
        bundle: where the group falls into parts that need nothing of each other and may run over different indices, how
            many of the outputs are each part's, in order; empty for a group that is one loop nest.
    """

    inputs: tuple[str, ...]
    nodes: tuple[OpNode, ...]
    outputs: tuple[str, ...]
    specs: tuple[tuple[str, TensorSpec], ...]
    pattern: str | None = field(default=None, compare=False)
    bundle: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        check(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SubGraph) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    @cached_property
    def spec(self) -> dict[str, TensorSpec]:
        """Specs by value name."""
        return dict(self.specs)

    @cached_property
    def producer(self) -> dict[str, OpNode]:
        """The call that makes each value."""
        return {name: node for node in self.nodes for name in node.outputs}

    @cached_property
    def parts(self) -> tuple[SubGraph, ...]:
        """The parts of a bundle over the same names: what each one's outputs are made of. Else the graph alone."""
        if not self.bundle:
            return (self,)
        ends = tuple(itertools.accumulate(self.bundle))
        return tuple(self._made(self.outputs[end - n : end]) for n, end in zip(self.bundle, ends, strict=True))

    def _made(self, outputs: tuple[str, ...]) -> SubGraph:
        """The graph of those calls that `outputs` are made of."""
        wanted = set(outputs)
        nodes: list[OpNode] = []
        for node in reversed(self.nodes):
            if not wanted.isdisjoint(node.outputs):
                nodes.append(node)
                wanted.update(node.refs)
        nodes.reverse()
        made = {name for node in nodes for name in node.outputs}
        inputs = tuple(dict.fromkeys(name for node in nodes for name in node.refs if name not in made))
        return SubGraph(inputs, tuple(nodes), outputs, tuple((n, self.spec[n]) for n in (*inputs, *sorted(made))))

    @cached_property
    def symbols(self) -> tuple[str, ...]:
        """Names of all size symbols, sorted."""
        dims = [d for _, s in self.specs for d in (*s.shape, *s.strides)]
        dims += [x for n in self.nodes for x in leaves((n.args, n.kwargs)) if isinstance(x, sympy.Expr)]
        return tuple(s.name for s in symbols.free_symbols(dims))

    @cached_property
    def ops(self) -> tuple[str, ...]:
        """Short op names in order, for people: ("silu", "mul")."""
        return tuple(node.op.split(".")[1] for node in self.nodes)

    @cached_property
    def canonical(self) -> SubGraph:
        """The same graph with canonical names: inputs a0.., values v0.., size symbols s0.. by first appearance."""
        return canonicalize(self)[0]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical form, the same in every process."""
        return sha256(self.canonical.to_json())

    def with_pattern(self, name: str | None) -> SubGraph:
        """The same graph, named."""
        return replace(self, pattern=name)

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; `from_json` reads it back."""
        return {
            "inputs": list(self.inputs),
            "nodes": [n.to_json() for n in self.nodes],
            "outputs": list(self.outputs),
            "specs": [[name, encode_spec(spec)] for name, spec in self.specs],
            **({"bundle": list(self.bundle)} if self.bundle else {}),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> SubGraph:
        return SubGraph(
            tuple(data["inputs"]),
            tuple(OpNode.from_json(n) for n in data["nodes"]),
            tuple(data["outputs"]),
            tuple((name, decode_spec(spec)) for name, spec in data["specs"]),
            bundle=tuple(data.get("bundle", ())),
        )

    def to_networkx(self) -> networkx.MultiDiGraph:
        """The graph as one of networkx, with the nodes and attributes that `RecordedGraph.to_networkx` tells of."""
        from .network import of_subgraph  # with networkx, which takes long to import

        return of_subgraph(self)

    def __str__(self) -> str:
        lines = [f"subgraph {self.pattern or '+'.join(self.ops)}({', '.join(self.inputs)})"]
        for name in self.inputs:
            lines.append(f"  {name}: {self.spec[name].text()}")
        for node in self.nodes:
            made = ", ".join(f"{o}: {self.spec[o].text()}" if o in self.spec else o for o in node.outputs)
            lines.append(f"  {made} = {node.op}({', '.join(map(show, node.args))})")
        lines.append(f"  return {', '.join(self.outputs)}")
        return "\n".join(lines)


def check(graph: SubGraph) -> None:
    """Rejects a malformed SubGraph.

    Raises:
        GraphError: a value is read before it is made, made twice, has no spec or one of unequal rank, or an output is
            not made; a call writes to memory; a bundle has fewer than two parts, or its parts are not its outputs.
    """
    known = set(graph.inputs)
    if len(known) != len(graph.inputs):
        raise GraphError(f"A SubGraph's input names must differ; got {graph.inputs}.")
    specs = dict(graph.specs)
    for node in graph.nodes:
        if writes(node.op):
            raise GraphError(f"{node.op} writes to memory; a SubGraph has no in-place calls.")
        for name in node.refs:
            if name not in known:
                raise GraphError(f"{node.op} reads {name!r}, which no input or earlier call makes.")
        for name in node.outputs:
            if name in known:
                raise GraphError(f"{node.op} makes {name!r}, which exists already; a SubGraph has no in-place calls.")
            known.add(name)
    for name in (*graph.inputs, *graph.outputs, *(o for n in graph.nodes for o in n.outputs)):
        if name not in known:
            raise GraphError(f"The output {name!r} is made by no call.")
        if name not in specs:
            raise GraphError(f"The value {name!r} has no TensorSpec.")
        if len(specs[name].shape) != len(specs[name].strides):
            raise GraphError(f"The value {name!r} has another number of sizes than of strides.")
    if graph.bundle and (len(graph.bundle) < 2 or min(graph.bundle) < 1 or sum(graph.bundle) != len(graph.outputs)):
        raise GraphError(f"A bundle of {graph.bundle} outputs is no division of the {len(graph.outputs)} there are.")


def canonicalize(graph: SubGraph) -> tuple[SubGraph, dict[str, str], dict[str, Dim]]:
    """The canonical form of `graph`.

    Returns:
        the canonical graph; the canonical name of each value; for each canonical symbol, the size it stands for in
        `graph` (always a symbol of `graph`).
    """
    names: dict[str, str] = {}
    for i, name in enumerate(graph.inputs):
        names[name] = f"a{i}"
    for node in graph.nodes:
        for out in node.outputs:
            names[out] = f"v{len(names) - len(graph.inputs)}"
    order: dict[sympy.Expr, Dim] = {}
    visited: set[sympy.Expr] = set()

    def visit(dim: Dim) -> None:
        if isinstance(dim, sympy.Expr) and dim not in visited:
            visited.add(dim)
            for sym in sorted(dim.free_symbols, key=lambda s: (_appearance(dim, s), s.name)):
                order.setdefault(sym, symbols.symbol(f"s{len(order)}"))

    spec = graph.spec
    for name in names:
        for dim in (*spec[name].shape, *spec[name].strides):
            visit(dim)
    for node in graph.nodes:
        for leaf in leaves((node.args, node.kwargs)):
            visit(leaf)

    @functools.cache
    def dim_of(dim: Dim) -> Dim:
        return symbols.substitute(dim, order)

    def leaf_of(leaf: Leaf) -> Leaf:
        if isinstance(leaf, Ref):
            return Ref(names[leaf.name])
        return dim_of(leaf) if isinstance(leaf, sympy.Expr) else leaf

    def call_of(n: OpNode) -> OpNode:
        made = tuple(names[out] for out in n.outputs)
        return OpNode(n.op, map_leaves(leaf_of, n.args), map_leaves(leaf_of, n.kwargs), made, n.origin)

    def spec_of(s: TensorSpec) -> TensorSpec:
        return TensorSpec(s.dtype, tuple(map(dim_of, s.shape)), tuple(map(dim_of, s.strides)), s.device)

    canonical = SubGraph(
        tuple(names[i] for i in graph.inputs),
        tuple(map(call_of, graph.nodes)),
        tuple(names[o] for o in graph.outputs),
        tuple((new, spec_of(spec[old])) for old, new in names.items()),
        graph.pattern,
        graph.bundle,
    )
    return canonical, names, {str(new): old for old, new in order.items()}


def _appearance(dim: sympy.Expr, sym: sympy.Symbol) -> int:
    return symbols.render(dim).find(sym.name)
