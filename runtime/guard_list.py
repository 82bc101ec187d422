"""The guards of a recording as values, and the first that a call's arguments do not meet.

`guard_writer` writes the same conditions as text, which is what plans run. The values are looked at only where a call
was refused: `GuardList.first_miss` explains whatever that text refuses.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import sympy
import torch

from fusion.kernels.plain_memory import TENSOR_TYPES, in_plain_memory
from fusion.patterns import symbols
from fusion.patterns.guards import Guard, GuardMiss, Words, miss_of, place, shorten
from fusion.patterns.leaves import Attribute, Path
from fusion.patterns.recorded import RecordedGraph
from fusion.patterns.source import define
from fusion.patterns.specs import TensorSpec
from fusion.runtime.aliasing import disjoint, storages
from fusion.runtime.plan import Conditions, PlanSpec

_PLAIN = Words("a plain tensor")
_OWN_MEMORY = Words("memory of its own")
_MOST_KEYS = 2  # that a miss names, of those that came and of those that went
AT_LEAST_2 = Words("a whole number of at least 2")


def guards_of(shape: PlanSpec, owner: str = "") -> Iterator[Guard]:
    """What a plan checks before it calls anything, in an order in which each can be read if those before it hold.

    Args:
        shape: what the plan is generated from.
        owner: what holds the parameters, in front of their paths: "self" for a module's forward.
    """
    yield from _of_arguments(shape.conditions)
    graph = shape.graph
    names = [*(i.name for i in graph.inputs), *(name for name, _ in graph.parameters)]
    paths = tensor_paths(graph, owner)
    origins = _first_readers(graph)
    each = [
        list(tensor_guards(paths[name], graph.spec[name], device, origins.get(name, "")))
        for name, device in zip(names, shape.devices, strict=True)
    ]
    for kinds in (("tensor", "dtype", "device", "rank"), ("size", "stride")):  # every rank, before a size is read
        yield from (guard for guards in each for guard in guards if guard.kind in kinds)
    written = [name for group in shape.conditions.mutated_groups for name in group]
    if shape.conditions.mutated_groups:
        yield Guard("memory", paths[written[0]] if written else (), _OWN_MEMORY)
    known = {s.symbol for s in graph.symbols if s.value in paths and s.kind != "result"}
    for text, line in conditions_of(graph):
        if names_in(text) <= known:
            yield Guard("relation", (), text, origin=line)


def _of_arguments(conditions: Conditions) -> Iterator[Guard]:
    for path, kind, keys in conditions.containers:
        yield Guard("class", path, kind)
        if keys is not None:
            yield Guard("length" if isinstance(keys, int) else "keys", path, keys)
    for path, value in conditions.atoms:
        yield Guard("value", path, value)
    for path, kind in conditions.kinds:
        yield Guard("class", path, kind)
    for left, right in conditions.aliases:
        yield Guard("same", left, right)
    for left, right in conditions.apart:
        yield Guard("apart", left, right)


def tensor_guards(path: Path, spec: TensorSpec, device: Any, origin: str) -> Iterator[Guard]:
    """What is checked of one tensor.

    Args:
        path: where it comes from.
        spec: what it has to be.
        device: a torch.device with its index.
        origin: the user's line that reads it.
    """
    yield Guard("tensor", path, _PLAIN, origin=origin)
    yield Guard("dtype", path, spec.dtype, origin=origin)
    yield Guard("device", path, device, origin=origin)
    yield Guard("rank", path, len(spec.shape), origin=origin)
    for dim, size in enumerate(spec.shape):
        yield Guard("size", path, size, dim, origin)
    for dim, stride in enumerate(spec.strides):
        yield Guard("stride", path, stride, dim, origin)


def conditions_of(graph: RecordedGraph) -> Iterator[tuple[str, str]]:
    """The conditions on sizes, each with the user's line that asked for it, or ""."""
    return itertools.zip_longest(graph.guards, graph.guard_origins, fillvalue="")


def tensor_paths(graph: RecordedGraph, owner: str = "") -> dict[str, Path]:
    """Where the tensors that a plan is given come from, by value name."""
    found = {i.name: i.path for i in graph.inputs}
    return found | {name: (owner, Attribute(path)) if owner else (path,) for name, path in graph.parameters}


def _first_readers(graph: RecordedGraph) -> dict[str, str]:
    """The user's line that is the first to use a value, by value name."""
    found: dict[str, str] = {}
    for node in graph.nodes:
        for name in node.refs if node.origin else ():
            found.setdefault(name, node.origin)
    return found


class GuardList:
    """The guards of one recording, made once.

    Args:
        shape: what the recording's plans are generated from.
        owner: as `guards_of` takes it.
    """

    def __init__(self, shape: PlanSpec, owner: str = "") -> None:
        self.shape = shape
        self.paths = tensor_paths(shape.graph, owner)
        self.names = symbol_names(shape.graph, self.paths)
        self.parameters = {self.paths[name]: name for name, _ in shape.graph.parameters}
        self.guards = tuple(guards_of(shape, owner))

    def first_miss(self, arguments: Sequence[Any], parameters: Mapping[str, torch.Tensor]) -> GuardMiss | None:
        """The first guard that does not hold for a call, in words; None where all hold.

        It reads of the arguments what the plan's own text reads, and no more.

        Args:
            arguments: in signature order.
            parameters: the recording's by value name.
        """
        call = _Call(self, arguments, parameters)
        return next((miss for guard in self.guards if (miss := call.miss(guard)) is not None), None)


class _Call:
    """What guards look at of one call."""

    def __init__(self, known: GuardList, arguments: Sequence[Any], parameters: Mapping[str, torch.Tensor]) -> None:
        self.known = known
        self.parameters = parameters
        self._named = dict(zip(known.shape.parameters, arguments, strict=True))
        self._sizes: Sizes | None = None

    def miss(self, guard: Guard) -> GuardMiss | None:
        """Why a guard does not hold, or None."""
        if guard.kind == "relation":
            return self.sizes.relation(guard.wanted, guard.origin)
        if guard.kind == "memory":
            return self._memory(guard)
        value = self._at(guard.path)
        if guard.kind in ("same", "apart"):
            if (value is self._at(guard.wanted)) == (guard.kind == "same"):
                return None
            other = Words(f"the object at {place(guard.wanted)}")
            apart = Words("another object than that")
            return miss_of(guard, *((other, apart) if guard.kind == "apart" else (apart, other)))
        return (self.sizes if guard.kind in ("size", "stride") else _NO_SIZES).miss(guard, value)

    @property
    def sizes(self) -> Sizes:
        """The size symbols; asked for when every tensor's rank is known to be right."""
        if self._sizes is None:
            tensors = {name: self.tensor(name) for name in self.known.paths}
            self._sizes = Sizes(symbol_values(self.known.shape.graph, tensors), self.known.names)
        return self._sizes

    def tensor(self, name: str) -> Any:
        """The tensor of a value name."""
        held = self.parameters.get(name)
        return self._at(self.known.paths[name]) if held is None else held

    def _at(self, path: Path) -> Any:
        name = self.known.parameters.get(path)
        if name is not None:
            return self.parameters[name]
        value = self._named[str(path[0])]
        for key in path[1:]:
            value = getattr(value, key) if isinstance(key, Attribute) else value[key]
        return value

    def _memory(self, guard: Guard) -> GuardMiss | None:
        conditions, paths = self.known.shape.conditions, self.known.paths
        written = [[self.tensor(name) for name in group] for group in conditions.mutated_groups]
        others = {name: self.tensor(name) for name in conditions.separate_inputs}
        parameters = {name: self.tensor(name) for name in conditions.separate_parameters}
        if disjoint(written, others.values(), storages(parameters.values())):
            return None
        mine = [storages(group) for group in written]
        for number, memory in enumerate(mine):
            earlier = [group for group in conditions.mutated_groups[:number] if group]
            rest = [(group[0], storages([self.tensor(n) for n in group])) for group in earlier]
            rest += [(name, storages([tensor])) for name, tensor in {**others, **parameters}.items()]
            shared = next((name for name, other in rest if not memory.isdisjoint(other)), None)
            if shared is not None and conditions.mutated_groups[number]:
                found = Guard("memory", paths[conditions.mutated_groups[number][0]], _OWN_MEMORY)
                return miss_of(found, Words(f"memory that {place(paths[shared])} shares"))
        return miss_of(guard, Words("memory that another tensor shares"))


class Sizes:
    """The values of size symbols, and their names for people.

    Args:
        values: by symbol name.
        names: what the user calls a symbol: "x.shape[0]".
    """

    def __init__(self, values: Mapping[str, int], names: Mapping[str, str]) -> None:
        self.values = values
        self.names = names

    def miss(self, guard: Guard, value: Any) -> GuardMiss | None:
        """Why a guard does not hold for the value at its path, or None.

        Args:
            guard: of any kind but those that look at several places.
            value: what is at its path; for a size or stride, a tensor of the right rank.
        """
        now = read(guard, value)
        if guard.kind not in ("size", "stride"):
            if meets(guard, now):
                return None
            return miss_of(guard, _other_keys(guard.wanted, now) if guard.kind == "keys" else now)
        if guard.kind == "stride" and 0 in value.shape:
            return None
        wanted = self.number(guard.wanted)
        if wanted is None or now == wanted:
            is_small = isinstance(guard.wanted, sympy.Symbol) and now < 2
            return miss_of(guard, now, AT_LEAST_2) if is_small else None
        told = "" if isinstance(guard.wanted, int) else f" ({self.in_words(guard.wanted)})"
        return miss_of(guard, now, Words(f"{wanted}{told}"))

    def number(self, dim: Any) -> int | None:
        """The number that a size stands for; None where a symbol has no value, or the sizes admit none."""
        if isinstance(dim, int):
            return dim
        if not {s.name for s in dim.free_symbols} <= self.values.keys():
            return None
        try:
            return symbols.evaluate(dim, self.values)
        except (ZeroDivisionError, TypeError):  # a size divided by a difference of sizes
            return None

    def in_words(self, dim: Any) -> str:
        """A size with the user's names for its symbols."""
        return self._renamed(symbols.print_python(dim))

    def relation(self, text: str, origin: str = "") -> GuardMiss | None:
        """Why a condition on sizes does not hold, or None.

        Args:
            text: Python over symbol names, as in `RecordedGraph.guards`.
            origin: the user's line that asked.
        """
        used = sorted(names_in(text), key=lambda name: int(name[1:]))
        if not set(used) <= self.values.keys():
            return None
        holds = define(f"def holds({', '.join(used)}):\n    return ({text})", "holds", {}, "<fusion guard>")
        if holds(*(self.values[name] for name in used)):
            return None
        now = ", ".join(f"{self.names.get(name, name)} is {self.values[name]}" for name in used)
        guard = Guard("relation", (self._renamed(text),), True, origin=origin)
        return miss_of(guard, Words(now), Words("true"))

    def _renamed(self, text: str) -> str:
        return re.sub(r"\bs\d+\b", lambda found: self.names.get(found[0], found[0]), text)


def _other_keys(wanted: Sequence[Any], now: Sequence[Any]) -> Words:
    """How the keys of a dict differ from those that it has to have."""
    more = [f"also {shorten(key)}" for key in now if key not in wanted][:_MOST_KEYS]
    less = [f"not {shorten(key)}" for key in wanted if key not in now][:_MOST_KEYS]
    return Words(", ".join(less + more) or "in another order")


_NO_SIZES = Sizes({}, {})


def symbol_values(graph: RecordedGraph, tensors: Mapping[str, Any]) -> dict[str, int]:
    """The values of the size symbols that some tensors tell.

    Args:
        graph: the recording.
        tensors: of the recorded ranks, by value name.
    """
    return {
        s.symbol: int(tensors[s.value].shape[s.dim] if s.kind == "shape" else tensors[s.value].stride(s.dim))
        for s in graph.symbols
        if s.kind != "result" and s.value in tensors
    }


def symbol_names(graph: RecordedGraph, paths: Mapping[str, Path]) -> dict[str, str]:
    """What the user calls the size symbols of some tensors: "x.shape[0]".

    Args:
        graph: the recording.
        paths: where the tensors come from, by value name.
    """
    return {
        s.symbol: Guard("size" if s.kind == "shape" else "stride", paths[s.value], None, s.dim).source
        for s in graph.symbols
        if s.kind != "result" and s.value in paths
    }


def names_in(text: str) -> set[str]:
    """The size symbols that a condition is over."""
    return set(re.findall(r"\bs\d+\b", text))


def read(guard: Guard, value: Any) -> Any:
    """What a guard looks at of the value at its path."""
    match guard.kind:
        case "class":
            return type(value)
        case "length":
            return len(value)
        case "keys":
            return tuple(value)
        case "dtype":
            return value.dtype
        case "device":
            return value.device
        case "rank":
            return value.dim()
        case "size":
            return int(value.shape[guard.dim])
        case "stride":
            return int(value.stride(guard.dim))
    return value


def meets(guard: Guard, now: Any) -> bool:
    """Whether what a guard looks at is what it wants; for kinds that compare with one value."""
    if guard.kind == "class":
        return now is guard.wanted
    if guard.kind == "tensor":
        return type(now) in TENSOR_TYPES and in_plain_memory(now)
    if guard.kind == "device":
        return (now.type, now.index or 0) == (guard.wanted.type, guard.wanted.index or 0)
    return bool(now == guard.wanted) if guard.kind in ("length", "keys", "dtype", "rank") else equals(guard.wanted, now)


def equals(wanted: Any, value: Any) -> bool:
    """Whether a plan takes a Python value for the recorded one: by type and value, zeros by their sign, NaN for NaN."""
    if wanted is None or isinstance(wanted, (bool, torch.dtype)):
        return value is wanted
    if type(value) is not type(wanted):
        return False
    if wanted != wanted:
        return bool(value != value)
    if type(wanted) is float and wanted == 0.0:
        return bool(value == 0.0) and math.copysign(1.0, value) == math.copysign(1.0, wanted)
    differs = bool(value != wanted)  # as the plan asks: a class may answer `==` otherwise
    return not differs
