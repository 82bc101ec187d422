"""Which guard it was that ended a plan on its way: what a read, a native call or a tensor's data gave."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fusion.patterns.guards import Guard, GuardMiss, Words, miss_of
from fusion.patterns.leaves import Argument, Attribute, Expect, Path, Ref
from fusion.patterns.nodes import Node, OpNode
from fusion.patterns.python_nodes import (
    Item,
    Method,
    NewObject,
    ObjectRead,
    OpaqueCall,
    PythonNode,
    Receiver,
    TensorRead,
)
from fusion.patterns.recorded import RecordedGraph
from fusion.runtime.guard_list import (
    AT_LEAST_2,
    Sizes,
    conditions_of,
    equals,
    symbol_names,
    symbol_values,
    tensor_guards,
    tensor_paths,
)
from fusion.runtime.plan import PlanSpec
from fusion.runtime.pytrees import tree_of

_AS_RECORDED = Words("the object that it was when recorded")
_ANOTHER = Words("another object")
_UNCHANGED = Words("as it was given")
_CHANGED = Words("changed by the call")


@dataclass(frozen=True, slots=True)
class WrittenStep:
    """Where a step stands in a plan's text.

    Attributes:
        line: its first line, from 1.
        nodes: indices of the calls that it makes.
        variables: the local variable of each tensor that it makes.
    """

    line: int
    nodes: tuple[int, ...]
    variables: Mapping[str, str]


class StepGuards:
    """Tells which guard of a plan did not hold from the line that found it out, and the plan's local variables.

    Args:
        shape: what the plan was generated from.
        steps: in the order of the text.
    """

    def __init__(self, shape: PlanSpec, steps: Sequence[WrittenStep]) -> None:
        self.shape = shape
        self.steps = steps

    def origin(self, line: int) -> str:
        """ "file:line" of the user's code behind a line of the plan, or ""."""
        step = self._step(line)
        nodes = [] if step is None else [self.shape.graph.nodes[index] for index in step.nodes]
        return next((node.origin for node in nodes if node.origin), "")

    def miss(self, line: int, local: Mapping[str, Any]) -> GuardMiss | None:
        """The guard that did not hold, in words; None where no step is at that line.

        Args:
            line: of the plan's text, from 1.
            local: the plan's local variables just then.
        """
        step = self._step(line)
        if step is None or not step.nodes:
            return None
        node = self.shape.graph.nodes[step.nodes[0]]
        found = self._of_tensors(node, step, local) if isinstance(node, OpNode) else self._of_call(node, local)
        path = read_path(self.shape.graph, node)
        return next(found, None) or miss_of(_guard(node, "unknown", path), _ANOTHER, _AS_RECORDED)

    def _step(self, line: int) -> WrittenStep | None:
        at = bisect_right([step.line for step in self.steps], line) - 1
        return self.steps[at] if at >= 0 else None

    def _of_tensors(self, node: OpNode, step: WrittenStep, local: Mapping[str, Any]) -> Iterator[GuardMiss]:
        """What does not fit of the tensors that an operator has made, whose sizes data decides."""
        made = {name: local.get(variable) for name, variable in step.variables.items()}
        yield from self._tensors(node, made, {name: read_path(self.shape.graph, node) for name in made}, local)

    def _of_call(self, node: PythonNode, local: Mapping[str, Any]) -> Iterator[GuardMiss]:
        """What does not fit of what a read or a native call gave."""
        graph, value = self.shape.graph, local.get("r")
        path, kind = read_path(graph, node), _kind(node)
        if isinstance(node, OpaqueCall) and node.nest and local.get("changed") is True:
            yield miss_of(_guard(node, kind, path), _CHANGED, _UNCHANGED)
        nest = _wrong_nest(node, local)
        if nest is not None:
            yield miss_of(_guard(node, kind, path), value, nest)
            return
        results = [value] if node.structure == "leaf" else list(value or ())
        several = len(node.outputs) > 1
        paths = [(*path, k) if several else path for k in range(len(node.outputs))]
        numbers = {s.value for s in graph.symbols if s.kind == "result"}
        tensors: dict[str, Any] = {}
        for at, output, result in zip(paths, node.outputs, results, strict=False):
            if isinstance(output, Expect):
                if not equals(output.value, result):
                    yield miss_of(_guard(node, kind, at, output.value), result)
            elif isinstance(output, Argument):
                if result is not self._argument(output.path, local):
                    yield miss_of(_guard(node, kind, at), _ANOTHER, _AS_RECORDED)
            elif isinstance(output, str) and output in graph.spec:
                tensors[output] = result
            elif output in numbers:
                if type(result) is not int or result < 2:
                    yield miss_of(_guard(node, kind, at, AT_LEAST_2), result)
            elif isinstance(node, ObjectRead) and node.kind is not None and type(result) is not node.kind:
                yield miss_of(_guard(node, "class", at, node.kind), type(result))
        where = {o: p for p, o in zip(paths, node.outputs, strict=True) if isinstance(o, str)}
        yield from self._tensors(node, tensors, where, local)

    def _argument(self, path: Path, local: Mapping[str, Any]) -> Any:
        value = local.get(f"a{self.shape.parameters.index(str(path[0]))}")
        for key in path[1:]:
            value = getattr(value, key) if isinstance(key, Attribute) else value[key]  # type: ignore[index]
        return value

    def _tensors(
        self, node: Node, tensors: Mapping[str, Any], paths: Mapping[str, Path], local: Mapping[str, Any]
    ) -> Iterator[GuardMiss]:
        graph = self.shape.graph
        device, plain = self.shape.devices[0], Sizes({}, {})
        guards = {n: list(tensor_guards(paths[n], graph.spec[n], device, node.origin)) for n in tensors}
        for name, tensor in tensors.items():
            for guard in guards[name]:
                miss = plain.miss(guard, tensor) if guard.kind not in ("size", "stride") else None
                if miss is not None:
                    yield miss
                    return  # no sizes are read of what is no tensor, or has another rank
        sizes = self._sizes(tensors, paths, local)
        for name, tensor in tensors.items():
            found = (sizes.miss(guard, tensor) for guard in guards[name] if guard.kind in ("size", "stride"))
            yield from (miss for miss in found if miss is not None)
        related = (sizes.relation(text, line or node.origin) for text, line in conditions_of(graph))
        yield from (miss for miss in related if miss is not None)

    def _sizes(self, tensors: Mapping[str, Any], paths: Mapping[str, Path], local: Mapping[str, Any]) -> Sizes:
        """The size symbols that the plan knows by now, and those that these tensors tell."""
        graph = self.shape.graph
        known = {s.symbol: local[s.symbol] for s in graph.symbols if type(local.get(s.symbol)) is int}
        told = {s.symbol: Guard("read", value_path(graph, s.value), None).source for s in graph.symbols}
        names = {**told, **symbol_names(graph, {**tensor_paths(graph), **paths})}
        return Sizes({**known, **symbol_values(graph, tensors)}, names)


def _guard(node: Node, kind: str, path: Path, wanted: Any = None) -> Guard:
    return Guard(kind, path, wanted, origin=node.origin)


def _wrong_nest(node: PythonNode, local: Mapping[str, Any]) -> Words | None:
    """How the results of a call should have nested, where they do not."""
    value, nest = local.get("r"), {"tuple": tuple, "list": list}.get(node.structure)
    if node.structure == "leaf":
        return None
    if nest is None:
        return Words("results that nest as they did") if local.get("tree") != tree_of(node.structure) else None
    fits = type(value) is nest and len(value) == len(node.outputs)
    return None if fits else Words(f"a {node.structure} of {len(node.outputs)}")


def _kind(node: PythonNode) -> str:
    if isinstance(node, TensorRead):
        return "data"
    return "call" if node.effect else "read"


def read_path(graph: RecordedGraph, node: Node) -> Path:
    """Where what a node gives comes from: the receiver's path, then the attribute, item or method."""
    match node:
        case OpNode():
            return (f"{node.op.split('.')[1]}(...)",)
        case TensorRead():
            return (*_receiver_path(graph, node.tensor), Attribute(f"{node.method}()"))
        case NewObject():
            return _called_path(_receiver_path(graph, node.constructor))
        case OpaqueCall(callee=Method(receiver=receiver, name=name)):
            given = "..." if node.args or node.kwargs else ""
            return (*_receiver_path(graph, receiver), Attribute(f"{name}({given})"))
        case OpaqueCall():
            return _called_path(_receiver_path(graph, node.receiver))
        case ObjectRead(receiver=receiver, member=Item(method=method, args=args)):
            base = _receiver_path(graph, receiver)
            if method == "__getitem__" and len(args) == 1 and type(args[0]) in (int, str):
                return (*base, args[0])
            return (*base, Attribute(f"{method}({'...' if args else ''})"))
        case ObjectRead(receiver=receiver, member=member):
            return (*_receiver_path(graph, receiver), Attribute(str(member)))


def _receiver_path(graph: RecordedGraph, receiver: Receiver) -> Path:
    return value_path(graph, receiver.name) if isinstance(receiver, Ref) else receiver


def _called_path(base: Path) -> Path:
    return (*base[:-1], _called(base[-1])) if len(base) > 1 else (f"{base[0]}(...)",)


def _called(key: str | int) -> Attribute:
    return Attribute(f"{key}(...)")


def value_path(graph: RecordedGraph, name: str) -> Path:
    """Where a value comes from, for people."""
    given = tensor_paths(graph)
    if name in given:
        return given[name]
    held = next((o for o in graph.objects if o.name == name), None)
    if held is not None:
        return (held.path,)
    maker = next((node for node in graph.nodes if name in node.outputs), None)
    if maker is None:
        return ("a constant",)
    path = read_path(graph, maker)
    return (*path, maker.outputs.index(name)) if len(maker.outputs) > 1 else path
