"""The verifier of recordings: it rejects a graph that no plan could be written from.

(`graph.check` is the same for SubGraphs, and runs whenever one is made.)
"""

from __future__ import annotations

import re

import sympy

from .errors import GraphError
from .leaves import Expect, Ref, leaves
from .nodes import Node, OpNode, argument_tensors, made_by
from .python_nodes import NewObject, ObjectRead, OpaqueCall, PythonNode, TensorRead
from .recorded import RecordedGraph
from .specs import TensorSpec
from .symbols import Dim

_REMEDY = "This is a fault of the recorder: run with enable_fusion=False and report it."
_SYMBOL = re.compile(r"\bs\d+\b")
_WORD = re.compile(r"\b[A-Za-z_]\w*\b")
_GUARD_WORDS = frozenset(
    ("and", "or", "not", "True", "False", "max", "min", "math", "floor", "ceil", "trunc", "round", "abs", "float")
)


def check_recording(graph: RecordedGraph) -> None:
    """Rejects a malformed recording.

    That it has no circle needs no graph: every value is made before it is read. This walk takes 5 ms for 3,000 calls,
    networkx, to be told the edges and to look for circles, 19 to 38 ms, and 0.2 s more to be imported.

    Raises:
        GraphError: a name is given twice; a value is read before it is made, or made again by a call that was not
            given it; a tensor has no spec, or one of unequal rank; a size symbol has no source, two, one of no tensor's
            dimension, or is used before its source is made; a guard names something else than size symbols; an output,
            or a value listed as written to, is made nowhere; a node of `python_nodes` is made on something that its
            kind is not for, gives something that its kind does not give, or says of itself what cannot be.
    """
    _Check(graph).run()


class _Check:
    def __init__(self, graph: RecordedGraph) -> None:
        self.graph = graph
        self.known: set[str] = set()
        self.held = {held.name: held.kind for held in graph.objects}
        self.numbers = {source.value for source in graph.symbols if source.kind == "result"}
        self.sourced: dict[str, str] = {}  # size symbol -> the value it is read off
        self.needs: dict[Dim, frozenset[str]] = {}  # symbols of a size, remembered: the same few sizes come again

    def run(self) -> None:
        """All checks, in the order of execution."""
        graph = self.graph
        self._sources()
        given = [i.name for i in graph.inputs] + [n for n, _ in graph.parameters] + list(graph.constants)
        for name in given:
            self._new(name, "is given")
        for held in graph.objects:
            self._new(held.name, "is held")
        for name in given:
            self._spec(name)
        for node in graph.nodes:
            self._node(node)
        self._guards()
        for leaf in leaves(graph.outputs):
            if isinstance(leaf, Ref) and leaf.name not in self.known:
                raise GraphError(f"The output {leaf.name!r} is made by no call.", remedy=_REMEDY)
            self._sized(leaf, "an output")
        for what, names in (("written to", graph.mutated), ("of unknown shape", graph.opaque)):
            for name in names:
                if name not in self.known:
                    raise GraphError(f"{name!r} is listed as {what}, but made by no call.", remedy=_REMEDY)

    def _sources(self) -> None:
        numbers = {o for n in self.graph.nodes if not isinstance(n, OpNode) for o in made_by(n)}
        for source in self.graph.symbols:
            if source.symbol in self.sourced:
                raise GraphError(f"The size symbol {source.symbol} has two sources.", remedy=_REMEDY)
            self.sourced[source.symbol] = source.value
            where = f"The size symbol {source.symbol} is read off {source.kind} {source.dim} of {source.value!r}"
            if source.kind == "result":
                if source.value not in numbers:
                    raise GraphError(f"{where}, which no call or read gives.", remedy=_REMEDY)
            elif source.kind not in ("shape", "stride"):
                raise GraphError(f"{where}: a source is a shape, a stride or a result.", remedy=_REMEDY)
            elif source.value not in self.graph.spec:
                raise GraphError(f"{where}, which is no tensor.", remedy=_REMEDY)
            elif not 0 <= source.dim < len(self.graph.spec[source.value].shape):
                raise GraphError(f"{where}, which has no such dimension.", remedy=_REMEDY)

    def _new(self, name: str, how: str) -> None:
        if name in self.known:
            raise GraphError(f"{name!r} {how} and exists already.", remedy=_REMEDY)
        self.known.add(name)

    def _node(self, node: Node) -> None:
        what = node.text
        for name in node.refs:
            if name not in self.known:
                raise GraphError(f"{what} reads {name!r}, which no input or earlier call makes.", remedy=_REMEDY)
        for leaf in leaves((node.args, node.kwargs)):
            self._sized(leaf, what)
        made = made_by(node)
        if isinstance(node, OpNode):
            again = self.known.intersection(made).difference(node.refs)
            if again:
                raise GraphError(f"{what} makes {sorted(again)}, which exists and was not given to it.", remedy=_REMEDY)
        else:
            fault = self._fault(node)
            if fault:
                raise GraphError(f"{what} {fault}.", remedy=_REMEDY)
        fresh = [name for name in made if name not in self.known]
        self.known.update(fresh)
        for name in fresh:
            if isinstance(node, OpNode) or name in self.graph.spec:
                self._spec(name)

    def _fault(self, node: PythonNode) -> str:
        """What is wrong with a node beside what it reads; "" where nothing is."""
        match node:
            case OpaqueCall():
                return self._fault_of_call(node)
            case ObjectRead():
                return self._fault_of_read(node)
            case TensorRead():
                if node.tensor.name not in self.graph.spec:
                    return f"asks {node.tensor.name!r} for data, which is no tensor"
                known = isinstance(node.output, Expect) or node.output in self.numbers
                return "" if known else f"answers {node.output!r}, which is no value and no size"
            case NewObject():
                if self.held.get(node.constructor.name) != "class":
                    return f"makes an object of {node.constructor.name!r}, which is no class"
                if node.output in self.known or node.output in self.graph.spec:
                    return f"makes {node.output!r} as a new object, which is none"
                return self._fault_of_lent(node)

    def _fault_of_call(self, node: OpaqueCall) -> str:
        if isinstance(node.callee, Ref) and self.held.get(node.callee.name) not in ("module", "function"):
            return f"calls {node.callee.name!r}, which is no module and no function"
        if node.structure == "leaf" and len(node.outputs) != 1:
            return f"gives {len(node.outputs)} leaves as one"
        if node.nest and node.kwargs:
            return "has keywords beside a nest of arguments"
        if node.effect and node.copied:
            return "has an effect, and is copied as a read is"
        if not node.effect and node.lent:
            return "is a read, and is lent what it may write to"
        dead = set(node.dead_results) - self.known
        return f"drops {sorted(dead)}, which no earlier call gives" if dead else self._fault_of_lent(node)

    def _fault_of_read(self, node: ObjectRead) -> str:
        if isinstance(node.receiver, Ref) and node.receiver.name in self.graph.spec:
            return f"reads inside {node.receiver.name!r}, which is a tensor"
        if node.structure not in ("leaf", "tuple"):
            return f"finds a {node.structure}: a read gives one value or a tuple"
        if node.structure == "leaf" and len(node.outputs) != 1:
            return f"gives {len(node.outputs)} leaves as one"
        if node.kind is not None and (node.structure == "tuple" or isinstance(node.outputs[0], Expect)):
            return f"finds a plain value or a tuple of the class {node.kind.__name__}"
        return ""

    def _fault_of_lent(self, node: OpaqueCall | NewObject) -> str:
        count = len(argument_tensors(node, self.graph.spec))
        strange = [place for place in node.lent if not 0 <= place < count]
        return f"is lent the tensors {strange} of {count}" if strange else ""

    def _spec(self, name: str) -> None:
        spec: TensorSpec | None = self.graph.spec.get(name)
        if spec is None:
            raise GraphError(f"The value {name!r} has no TensorSpec.", remedy=_REMEDY)
        if len(spec.shape) != len(spec.strides):
            raise GraphError(f"{name!r} has {len(spec.shape)} sizes and {len(spec.strides)} strides.", remedy=_REMEDY)
        for dim in (*spec.shape, *spec.strides):
            self._sized(dim, f"the spec of {name!r}")

    def _sized(self, leaf: object, where: str) -> None:
        if isinstance(leaf, sympy.Expr):
            if leaf not in self.needs:
                self.needs[leaf] = frozenset(s.name for s in leaf.free_symbols)
            for symbol in self.needs[leaf]:
                if symbol not in self.sourced:
                    raise GraphError(f"{where} uses the size symbol {symbol}, which has no source.", remedy=_REMEDY)
                if self.sourced[symbol] not in self.known:
                    source = self.sourced[symbol]
                    raise GraphError(f"{where} uses {symbol} before its source {source!r} is made.", remedy=_REMEDY)

    def _guards(self) -> None:
        for guard in self.graph.guards:
            names = strange_words(guard) | (set(_SYMBOL.findall(guard)) - set(self.sourced))
            if names:
                raise GraphError(f"The guard {guard!r} names {sorted(names)}, no size symbols of it.", remedy=_REMEDY)


def strange_words(guard: str) -> set[str]:
    """What the text of a guard names beside size symbols and what every plan knows."""
    return {w for w in _WORD.findall(guard) if not _SYMBOL.fullmatch(w)} - _GUARD_WORDS
