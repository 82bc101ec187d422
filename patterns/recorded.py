"""Recordings of a scope as immutable values: what ran, in order, and where everything comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .forks import cached_property
from .leaves import Path, encode, path_text, sha256, show
from .nodes import Node, OpNode
from .specs import TensorSpec, encode_spec

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True, slots=True)
class GraphInput:
    """A tensor that enters a scope.

    Attributes:
        name: value name.
        path: where it comes from: a parameter name, then keys: ("hidden_states",), ("position_embeddings", 0).
    """

    name: str
    path: Path


@dataclass(frozen=True, slots=True)
class HeldObject:
    """An object that is no tensor and no argument, bound to a plan by name.

    Attributes:
        name: value name.
        kind: "module" (one that is a scope of its own), "function", "class" (one it makes instances of) or "attribute"
            (an object that its modules hold).
        path: dotted path from the scope's module, or the class's qualified name.
    """

    name: str
    kind: str
    path: str


@dataclass(frozen=True, slots=True)
class SymbolSource:
    """Where a size symbol's value is read.

    Attributes:
        symbol: its name.
        value: the tensor value, or the integer result of a read or an opaque call, it comes from.
        kind: "shape", "stride" or "result".
        dim: for shape and stride.
    """

    symbol: str
    value: str
    kind: str
    dim: int = 0


@dataclass(frozen=True)
class RecordedGraph:
    """One observed run of a scope, as an immutable value.

    Attributes:
        inputs: tensors that enter by argument.
        parameters: (value name, path from the scope's module) of parameters, buffers and tensor attributes.
        constants: value names of tensors made from Python data, in the order of the recording's constant list.
        mutated: values whose memory the recording writes to after they are made; no fusion may touch them.
        nodes: operator calls, and what else a plan does in Python, in execution order.
        outputs: the result's leaves: `Ref`s, Dims, Python constants, or `Argument(path)` for an argument handed back.
            Where the recording sets items of dicts it was given, those of the result and then those of the values set.
        structure: how the leaves nest, as text (see capture): the result, or a pair of the result and the values.
        specs: TensorSpec of every tensor value.
        symbols: where each size symbol's value comes from, in the order they were met.
        guards: boolean expressions over the symbols, as Python text over symbol names.
        opaque: results of operators whose shape torch cannot tell beforehand; a plan checks them when they are made.
        objects: objects that calls are made on, or are given.
        outer_writes: indices of the calls that write to memory which outlives the run.
        draws: indices of the calls that draw random numbers.
        items: items of dicts among the arguments that the recording sets: the dict's path, and the key.
        guard_origins: "file:line" of the user's code that asked for each guard, or ""; no part of equality.
    """

    inputs: tuple[GraphInput, ...]
    parameters: tuple[tuple[str, str], ...]
    constants: tuple[str, ...]
    mutated: tuple[str, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Any, ...]
    structure: str
    specs: tuple[tuple[str, TensorSpec], ...]
    symbols: tuple[SymbolSource, ...]
    guards: tuple[str, ...]
    opaque: tuple[str, ...] = ()
    objects: tuple[HeldObject, ...] = ()
    outer_writes: tuple[int, ...] = ()
    draws: tuple[int, ...] = ()
    items: tuple[tuple[Path, str | int], ...] = ()
    guard_origins: tuple[str, ...] = field(default=(), compare=False)

    @cached_property
    def lasting(self) -> frozenset[int]:
        """Indices of the calls whose effect outlives a run."""
        return frozenset(self.outer_writes) | frozenset(self.draws)

    @cached_property
    def spec(self) -> dict[str, TensorSpec]:
        """Specs by value name."""
        return dict(self.specs)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the structure: equal for layers that differ only in their weights."""
        return sha256(
            {
                "inputs": [[i.name, list(i.path)] for i in self.inputs],
                "mutated": list(self.mutated),
                "parameters": [list(p) for p in self.parameters],
                "constants": list(self.constants),
                "nodes": [n.to_json() for n in self.nodes],
                "outputs": encode(self.outputs),
                "structure": self.structure,
                "specs": [[name, encode_spec(s)] for name, s in self.specs],
                "symbols": [[s.symbol, s.value, s.kind, s.dim] for s in self.symbols],
                "guards": list(self.guards),
                "opaque": list(self.opaque),
                "objects": [[o.name, o.kind, o.path] for o in self.objects],
                "outer_writes": list(self.outer_writes),
                "draws": list(self.draws),
                "items": [[list(path), key] for path, key in self.items],
            }
        )

    @property
    def ops(self) -> tuple[OpNode, ...]:
        """The operator calls alone."""
        return tuple(n for n in self.nodes if isinstance(n, OpNode))

    def to_networkx(self) -> networkx.MultiDiGraph:
        """The data flow as a graph of networkx, to query (`networkx.ancestors`), draw, or write to a file.

        Nodes are calls ("3 mul" is `nodes[3]`) and what enters and leaves ("input x0", "parameter x1", "constant x2",
        "object o0", "output 0"), in the order of execution. An edge is one use of a value; a call that uses a value
        twice has two, hence a MultiDiGraph. It has no circles. Side effects are no edges: a valid order is a
        topological one in which no call has moved past one with an `effect`. The recorded order is `index`.

        Each node has these attributes (`network.NodeAttributes`):
            kind (str): "input", "parameter", "constant", "object" or "output"; for an operator its `Kind`: "pointwise",
                "reduction", "view", "element", "library" or "effect"; else, as in `python_nodes`, "opaque call",
                "object read", "tensor read" or "new object".
            op (str): a call's operator ("aten.mul.Tensor") or what a node calls or reads ("cache.update"); else "".
            index (int): its place among the graph's `nodes`, or among its inputs, parameters, ..., outputs.
            values (str): names of the values it makes, with ", " between them; what an output hands back.
            path (str): where an input, a parameter or an object comes from ("position_embeddings[0]"); else "".
            dtype, shape, device (str): of the first tensor among its values: "bfloat16", "[s0, 64]", "cpu"; else "".
            origin (str): "file:line" of the user's code that makes the value; "" where it is not known.
            effect (bool): whether the call writes to memory, draws random numbers or has Python side effects.

        Each edge has these (`network.EdgeAttributes`):
            kind (str): "operand", or "size" where only a number is used that is known once the value is made.
            value (str): the value's name.
            output (int): which of the maker's results it is, from 0.
            operand (int): which of the values that the reader reads (its `refs`) it is, from 0; -1 for a "size".
            dtype, shape, device (str): the value's.

        Raises:
            GraphError: the recording is malformed; one that was recorded never is.
        """
        from .network import of_recording  # with networkx, which takes long to import

        return of_recording(self)

    def __str__(self) -> str:
        lines = [
            "recording(" + ", ".join(f"{path_text(i.path)}: {self.spec[i.name].text()}" for i in self.inputs) + ")"
        ]
        for node in self.nodes:
            made = ", ".join(
                f"{o}: {self.spec[o].text()}" if isinstance(o, str) and o in self.spec else str(o) for o in node.outputs
            )
            call = f"{node.op}({', '.join(map(show, node.args))})" if isinstance(node, OpNode) else str(node)
            lines.append(f"  {made} = {call}")
        lines += [f"  guard {g}" for g in self.guards]
        lines += [f"  set {path_text((*path, key))}" for path, key in self.items]
        lines.append(f"  return {', '.join(map(show, self.outputs))}")
        return "\n".join(lines)
