"""The language of graphs: operator calls, subgraphs and recordings as immutable values.

Everything here is frozen, compares by structure and has a SHA-256 `digest` that two processes agree on.
Names of values are arbitrary in a graph and canonical in its digest: renaming values changes nothing.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import sympy
import torch

from . import symbols
from .errors import GraphError
from .symbols import Dim

Path = tuple[str | int, ...]  # a parameter of the scope, then indices, keys and `Attribute`s into it
Leaf = Any  # a Ref, Dim, float, bool, None, str, torch.dtype, torch.device, torch.layout or torch.memory_format


class Attribute(str):
    """A step of a path that is an attribute's name rather than a key."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f".{self}"


@dataclass(frozen=True, slots=True, order=True)
class Ref:
    """A use of the value called `name`."""

    name: str


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What is known of a tensor before it exists.

    Attributes:
        dtype: element type.
        shape: one Dim per dimension.
        strides: in elements, one Dim per dimension.
        device: device type, "cpu" or "cuda".
    """

    dtype: torch.dtype
    shape: tuple[Dim, ...]
    strides: tuple[Dim, ...]
    device: str = "cpu"

    @staticmethod
    def contiguous(dtype: torch.dtype, shape: tuple[Dim, ...], device: str = "cpu") -> TensorSpec:
        """The spec of a row-major tensor."""
        return TensorSpec(dtype, shape, contiguous_strides(shape), device)

    @property
    def is_contiguous(self) -> bool:
        """Whether the strides are provably row-major; dimensions of size 1 do not count."""
        expected = contiguous_strides(self.shape)
        return all(
            symbols.same(have, want) or (isinstance(size, int) and size == 1)
            for have, want, size in zip(self.strides, expected, self.shape, strict=True)
        )

    def text(self) -> str:
        """`bfloat16[s0, 64]`, for people."""
        dims = ", ".join(symbols.render(d) for d in self.shape)
        return f"{str(self.dtype).removeprefix('torch.')}[{dims}]"


def contiguous_strides(shape: tuple[Dim, ...]) -> tuple[Dim, ...]:
    """Row-major strides, in elements."""
    strides: list[Dim] = []
    running: Dim = 1
    for size in reversed(shape):
        strides.append(running)
        running = symbols.as_dim(running * size)
    return tuple(reversed(strides))


@dataclass(frozen=True, slots=True)
class OpNode:
    """One operator call.

    Attributes:
        op: the operator's full name with its overload, "aten.mul.Tensor".
        args: positional arguments in schema order; tensors are `Ref`s, sizes are Dims, nested tuples allowed.
        kwargs: keyword arguments, sorted by name.
        outputs: the names of the values it makes. What an in-place call hands back is a new name for the same memory.
        origin: "file:line" of the user's code; no part of equality.
    """

    op: str
    args: tuple[Leaf, ...]
    kwargs: tuple[tuple[str, Leaf], ...] = ()
    outputs: tuple[str, ...] = ()
    origin: str = field(default="", compare=False)
    _refs: tuple[str, ...] | None = field(default=None, init=False, repr=False, compare=False)

    @property
    def refs(self) -> tuple[str, ...]:
        """Names of the values it reads, in order, with repeats."""
        if self._refs is None:
            object.__setattr__(self, "_refs", _names(self.args, self.kwargs))
        assert self._refs is not None
        return self._refs

    @property
    def digest(self) -> str:
        """SHA-256 over the structure, the same in every process."""
        return _sha256(self.to_json())

    def renamed(self, rename: Callable[[str], str]) -> OpNode:
        """The same call over other value names."""

        def leaf(x: Leaf) -> Leaf:
            return Ref(rename(x.name)) if isinstance(x, Ref) else x

        return OpNode(
            self.op,
            map_leaves(leaf, self.args),
            map_leaves(leaf, self.kwargs),
            tuple(rename(o) for o in self.outputs),
            self.origin,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-able dict; `from_json` reads it back. The origin is left out."""
        return {
            "op": self.op,
            "args": encode(self.args),
            "kwargs": [[k, encode(v)] for k, v in self.kwargs],
            "outputs": list(self.outputs),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> OpNode:
        return OpNode(
            data["op"],
            decode(data["args"]),
            tuple((k, decode(v)) for k, v in data["kwargs"]),
            tuple(data["outputs"]),
        )


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

    @functools.cached_property
    def spec(self) -> dict[str, TensorSpec]:
        """Specs by value name."""
        return dict(self.specs)

    @functools.cached_property
    def producer(self) -> dict[str, OpNode]:
        """The call that makes each value."""
        return {name: node for node in self.nodes for name in node.outputs}

    @functools.cached_property
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

    @functools.cached_property
    def symbols(self) -> tuple[str, ...]:
        """Names of all size symbols, sorted."""
        dims = [d for _, s in self.specs for d in (*s.shape, *s.strides)]
        dims += [x for n in self.nodes for x in leaves((n.args, n.kwargs)) if isinstance(x, sympy.Expr)]
        return tuple(s.name for s in symbols.free_symbols(dims))

    @functools.cached_property
    def ops(self) -> tuple[str, ...]:
        """Short op names in order, for people: ("silu", "mul")."""
        return tuple(node.op.split(".")[1] for node in self.nodes)

    @functools.cached_property
    def canonical(self) -> SubGraph:
        """The same graph with canonical names: inputs a0.., values v0.., size symbols s0.. by first appearance."""
        return canonicalize(self)[0]

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over the canonical form, the same in every process."""
        return _sha256(self.canonical.to_json())

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


@functools.cache
def writes(op: str) -> bool:
    """Whether an operator, by its full name, writes to a tensor it is given; False for one this torch does not have."""
    target: Any = torch.ops
    for part in op.split("."):
        target = getattr(target, part, None)
    schema = getattr(target, "_schema", None)
    return schema is not None and bool(schema.is_mutable)


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


@dataclass(frozen=True, slots=True)
class IslandNode:
    """A call that is made natively and never looked into: a method with Python side effects, a module that is a step of
    its scope, a class whose instance the scope makes, a read of a tensor's data.

    Attributes:
        receiver: what it is called on: a path among the scope's arguments, or the `Ref` of an object or tensor.
        method: the method's name; "" where the receiver itself is called; an attribute's name when `args` is None.
        args, kwargs: as in `OpNode`; objects are `Ref`s or `Argument`s.
        outputs: one leaf per flattened result: the name of a tensor, symbol or object it makes, or `Expect(value)`.
        effect: True when the call changes state; False for a read, which a plan may check before any effect.
        structure: how the flattened results nest: "leaf", "tuple", "list", or the text of a pytree structure.
        given_up: results of earlier islands that nobody held any more when this call was made.
        given: how the arguments nest where lists or dicts are among them: the text of a pytree structure of the
            positional and the named ones, by name; `args` are its leaves then, and `kwargs` is empty. Else "".
    """

    receiver: Path | Ref
    method: str
    args: tuple[Leaf, ...] | None
    kwargs: tuple[tuple[str, Leaf], ...]
    outputs: tuple[Any, ...]
    effect: bool
    structure: str
    given_up: tuple[str, ...] = ()
    origin: str = field(default="", compare=False)
    given: str = ""

    @property
    def refs(self) -> tuple[str, ...]:
        """Names of the values it reads."""
        read = leaves((self.receiver if isinstance(self.receiver, Ref) else None, self.args, self.kwargs))
        return tuple(leaf.name for leaf in read if isinstance(leaf, Ref))


@dataclass(frozen=True, slots=True)
class Expect:
    """A Python value a recording depended on; a plan that meets another one is not valid for this call."""

    value: Any

    def __hash__(self) -> int:
        return hash(repr(self.value))  # which may be a list


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
class Argument:
    """An argument object of the scope that is handed back as it came."""

    path: Path


@dataclass(frozen=True, slots=True)
class HeldObject:
    """An object that is no tensor and no argument, bound to a plan by name.

    Attributes:
        name: value name.
        kind: "module" (a step of the scope), "class" (one it makes instances of) or "attribute" (one its modules hold).
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
        value: the tensor value, or the integer result of a read island, it comes from.
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
        nodes: operator calls and islands in execution order.
        outputs: the result's leaves: `Ref`s, Dims, Python constants, or `Argument(path)` for an argument handed back.
            Where the recording sets items of dicts it was given, those of the result and then those of the values set.
        structure: how the leaves nest, as text (see capture): the result, or a pair of the result and the values.
        specs: TensorSpec of every tensor value.
        symbols: where each size symbol's value comes from, in the order they were met.
        guards: boolean expressions over the symbols, as Python text over symbol names.
        opaque: results of operators whose shape torch cannot tell beforehand; a plan checks them when they are made.
        objects: objects that islands call or are given.
        outer_writes: indices of the calls that write to memory which outlives the run.
        draws: indices of the calls that draw random numbers.
        items: items of dicts among the arguments that the recording sets: the dict's path, and the key.
    """

    inputs: tuple[GraphInput, ...]
    parameters: tuple[tuple[str, str], ...]
    constants: tuple[str, ...]
    mutated: tuple[str, ...]
    nodes: tuple[OpNode | IslandNode, ...]
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

    @functools.cached_property
    def lasting(self) -> frozenset[int]:
        """Indices of the calls whose effect outlives a run."""
        return frozenset(self.outer_writes) | frozenset(self.draws)

    @functools.cached_property
    def spec(self) -> dict[str, TensorSpec]:
        """Specs by value name."""
        return dict(self.specs)

    @functools.cached_property
    def digest(self) -> str:
        """SHA-256 over the structure: equal for layers that differ only in their weights."""
        return _sha256(
            {
                "inputs": [[i.name, list(i.path)] for i in self.inputs],
                "mutated": list(self.mutated),
                "parameters": [list(p) for p in self.parameters],
                "constants": list(self.constants),
                "nodes": [_node_json(n) for n in self.nodes],
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
        """The operator calls, without islands."""
        return tuple(n for n in self.nodes if isinstance(n, OpNode))

    def __str__(self) -> str:
        lines = [
            "recording(" + ", ".join(f"{path_text(i.path)}: {self.spec[i.name].text()}" for i in self.inputs) + ")"
        ]
        for node in self.nodes:
            made = ", ".join(
                f"{o}: {self.spec[o].text()}" if isinstance(o, str) and o in self.spec else str(o) for o in node.outputs
            )
            call = node.op if isinstance(node, OpNode) else f"island {island_text(node)}"
            lines.append(f"  {made} = {call}({', '.join(map(show, node.args or ()))})")
        lines += [f"  guard {g}" for g in self.guards]
        lines += [f"  set {path_text((*path, key))}" for path, key in self.items]
        lines.append(f"  return {', '.join(map(show, self.outputs))}")
        return "\n".join(lines)


def _node_json(node: OpNode | IslandNode) -> dict[str, Any]:
    if isinstance(node, OpNode):
        return node.to_json()
    return {
        "island": node.method,
        "receiver": encode(node.receiver),
        "args": encode(node.args),
        "kwargs": [[k, encode(v)] for k, v in node.kwargs],
        "outputs": encode(node.outputs),
        "effect": node.effect,
        "structure": node.structure,
        "given_up": list(node.given_up),
        "given": node.given,
    }


def _names(*trees: Leaf) -> tuple[str, ...]:
    """The names of the `Ref`s among the leaves of nested tuples, left to right."""
    found: list[str] = []
    waiting = list(reversed(trees))
    while waiting:
        leaf = waiting.pop()
        if isinstance(leaf, Ref):
            found.append(leaf.name)
        elif isinstance(leaf, tuple):
            waiting += leaf[::-1]
    return tuple(found)


def leaves(tree: Leaf) -> Iterator[Leaf]:
    """The leaves of nested tuples, left to right."""
    if isinstance(tree, tuple):
        for branch in tree:
            yield from leaves(branch)
    else:
        yield tree


def map_leaves(function: Callable[[Leaf], Leaf], tree: Leaf) -> Any:
    """`tree` with `function` applied to every leaf."""
    if isinstance(tree, tuple):
        return tuple(map_leaves(function, branch) for branch in tree)
    return function(tree)


def path_text(path: Path) -> str:
    """A path for people: `position_embeddings[0]`."""
    return str(path[0]) + "".join(repr(key) if isinstance(key, Attribute) else f"[{key!r}]" for key in path[1:])


def island_text(node: IslandNode) -> str:
    """What an island calls, for people: `past_key_values.update`."""
    receiver = node.receiver.name if isinstance(node.receiver, Ref) else path_text(node.receiver)
    return f"{receiver}.{node.method}" if node.method else receiver


def show(leaf: Leaf) -> str:
    """A leaf or nested tuple of leaves, for people."""
    if isinstance(leaf, tuple):
        return "(" + ", ".join(map(show, leaf)) + ")"
    return leaf.name if isinstance(leaf, Ref) else str(leaf)


def encode(leaf: Leaf) -> Any:
    """A leaf or nested tuple of leaves as JSON-able data; `decode` reads it back."""
    if isinstance(leaf, tuple):
        return [encode(branch) for branch in leaf]
    if leaf is None or isinstance(leaf, (bool, int, str)):
        return leaf
    if isinstance(leaf, float):
        return {"float": leaf.hex()}
    if isinstance(leaf, Ref):
        return {"ref": leaf.name}
    if isinstance(leaf, Expect):
        return {"expect": encode(leaf.value)}
    if isinstance(leaf, Argument):
        return {"argument": list(leaf.path)}
    if isinstance(leaf, sympy.Expr):
        return {"dim": symbols.render(leaf)}
    if isinstance(leaf, (torch.dtype, torch.layout, torch.memory_format)):
        return {"torch": str(leaf)}
    if isinstance(leaf, torch.device):
        return {"device": str(leaf)}
    if isinstance(leaf, complex):
        return {"complex": [leaf.real.hex(), leaf.imag.hex()]}
    if isinstance(leaf, list):
        return {"list": [encode(branch) for branch in leaf]}
    raise GraphError(f"A call's argument {leaf!r} of type {type(leaf).__name__} has no place in a graph.")


def decode(data: Any) -> Any:
    """Reads what `encode` wrote."""
    if isinstance(data, list):
        return tuple(decode(x) for x in data)
    if not isinstance(data, Mapping):
        return data
    ((kind, value),) = data.items()
    if kind == "float":
        return float.fromhex(value)
    if kind == "ref":
        return Ref(value)
    if kind == "argument":
        return Argument(tuple(value))
    if kind == "expect":
        return Expect(decode(value))
    if kind == "dim":
        return symbols.parse(value)
    if kind == "list":
        return list(map(decode, value))
    if kind == "torch":
        return _torch_constant(value)
    if kind == "device":
        return torch.device(value)
    if kind == "complex":
        return complex(float.fromhex(value[0]), float.fromhex(value[1]))
    raise GraphError(f"Unknown kind of encoded argument {kind!r}.")


def encode_spec(spec: TensorSpec) -> dict[str, Any]:
    """A TensorSpec as JSON-able data."""
    return {
        "dtype": str(spec.dtype),
        "shape": [symbols.render(d) for d in spec.shape],
        "strides": [symbols.render(d) for d in spec.strides],
        "device": spec.device,
    }


def decode_spec(data: Mapping[str, Any]) -> TensorSpec:
    """Reads what `encode_spec` wrote."""
    return TensorSpec(
        _torch_constant(data["dtype"]),
        tuple(symbols.parse(d) for d in data["shape"]),
        tuple(symbols.parse(d) for d in data["strides"]),
        data["device"],
    )


def _torch_constant(text: str) -> Any:
    prefix, _, name = text.partition(".")
    constant = getattr(torch, name, None)
    if prefix != "torch" or not isinstance(constant, (torch.dtype, torch.layout, torch.memory_format)):
        raise GraphError(f"{text!r} is no dtype, layout or memory format of this torch.")
    return constant


def _sha256(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
