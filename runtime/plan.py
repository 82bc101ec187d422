"""Plans: a recording as straight-line Python.

A plan is a function of the scope's parameters, in signature order. It first checks everything the recording depended
on, and returns `MISS` when something differs; then it runs library calls, kernels and islands. A check that fails
after an island has changed something, and any error, goes to `on_failure` with what the islands returned so far.
"""

from __future__ import annotations

import ast
import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import CodeType
from typing import Any

import sympy
import torch
from torch.utils import _pytree as pytree

from fusion.patterns import symbols
from fusion.patterns.errors import GraphError
from fusion.patterns.graph import (
    Argument,
    Attribute,
    Expect,
    IslandNode,
    OpNode,
    Path,
    RecordedGraph,
    Ref,
    SymbolSource,
    leaves,
)
from fusion.patterns.ops import resolve
from fusion.patterns.symbols import Dim

from .calls import call
from .handed_on import HandedOn, restored
from .native import make_guard
from .undo import Undo, separate, storages
from .wellformed import check_steps, check_text

_MOST_KEPT = 1 << 16  # bytes that a plan copies before it writes to them, in case it fails later


class _Miss:
    def __repr__(self) -> str:
        return "MISS"


MISS: Any = _Miss()


class Deoptimized(Exception):
    """A guard failed after an island had an effect; the original forward takes over."""


@dataclass(frozen=True, slots=True)
class Raised:
    """What a log holds for an island that raised: a re-run of the original meets the same error."""

    error: Exception


@dataclass(frozen=True, slots=True)
class KernelCall:
    """A kernel in a plan.

    Attributes:
        inputs, outputs: value names.
        given: sizes the launcher takes as integers, after the inputs.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    given: tuple[Dim, ...] = ()


def as_it_is(result: Any) -> Any:
    """What a read returned, for a log: a tensor that a later effect may write to is copied."""
    return pytree.tree_map(lambda x: x.clone() if isinstance(x, torch.Tensor) else x, result)


Step = tuple[str, int]  # ("node", index into graph.nodes) or ("region", index into the kernels)


@dataclass(frozen=True)
class Conditions:
    """What must hold of a call's arguments beside tensors; as `capture.record.Conditions`, in plain values.

    Attributes:
        containers: (path, type, number of items or keys, or None where the type tells all).
        atoms: (path, value), compared by type and value.
        kinds: (path, exact type).
        aliases: pairs of paths that hold one tensor.
        written: groups of inputs and parameters that are written to; those of a group share memory.
        others: inputs that live in other memory than all of `written`.
        held: parameters that do.
    """

    containers: tuple[tuple[Path, type, Any], ...]
    atoms: tuple[tuple[Path, Any], ...]
    kinds: tuple[tuple[Path, type], ...]
    aliases: tuple[tuple[Path, Path], ...]
    written: tuple[tuple[str, ...], ...] = ()
    others: tuple[str, ...] = ()
    held: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    """What a plan is generated from; equal shapes share their code.

    Attributes:
        graph: the recording.
        conditions: its conditions.
        parameters: the scope's parameter names in signature order.
        devices: full device of every input, then of every parameter.
        tree: pytree structure of the result.
    """

    graph: RecordedGraph
    conditions: Conditions
    parameters: tuple[str, ...]
    devices: tuple[torch.device, ...]
    tree: Any


@dataclass
class Plan:
    """A callable plan.

    Attributes:
        run: the function; takes the scope's arguments in signature order.
        source: its text.
    """

    run: Callable[..., Any]
    source: str


@dataclass
class Source:
    """A plan's text and what its names stand for; parameters, constants and island arguments are bound later."""

    text: str
    names: dict[str, Any] = field(default_factory=dict)

    def bind(self, values: Mapping[str, Any]) -> Plan:
        """Makes the plan callable.

        Args:
            values: objects for the names that differ between scopes of one shape.
        """
        namespace = {**self.names, **values}
        exec(_compiled(self.text, frozenset(namespace)), namespace)
        return Plan(namespace["plan"], self.text)


@functools.lru_cache(maxsize=4096)
def _compiled(text: str, bound: frozenset[str]) -> CodeType:
    tree = ast.parse(text)
    check_text(tree, bound)
    return compile(tree, "<fusion plan>", "exec")


def island_constants(graph: RecordedGraph) -> dict[str, Any]:
    """Plain values among islands' arguments by the name a plan uses for them ("i0", ...): a layer's number, say."""
    found: dict[str, Any] = {}
    for index, node in enumerate(graph.nodes):
        if isinstance(node, IslandNode):
            for position, leaf in enumerate(node.args or ()):
                if _bound_later(leaf):
                    found[f"i{index}_{position}"] = leaf
    return found


def standing(conditions: Conditions, tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """What every plan of a recording is bound to beside its tensors.

    Args:
        conditions: the recording's.
        tensors: its parameters by value name.
    """
    return {"UNDO": Undo, "HELD": storages(tensors[name] for name in conditions.held)}


def _bound_later(leaf: Any) -> bool:
    return type(leaf) is int


class Writer:
    """Writes one plan. Use `write_plan` and `write_match`."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.graph = shape.graph
        self.lines: list[str] = []
        self.names: dict[str, Any] = {"MISS": MISS, "Deoptimized": Deoptimized, "Raised": Raised}
        self.bound: set[str] = set()
        self.pending = [(set(re.findall(r"\bs\d+\b", g)), g) for g in self.graph.guards]
        self.register: dict[str, str] = {}
        self.free: list[str] = []
        self.effects = False
        self.logged = 0  # entries of the log so far
        self.logged_at: dict[str, int] = {}  # results of steps that only other steps read: their place in the log
        self.lets_go = False
        by_operators = {r for n in self.graph.nodes if isinstance(n, OpNode) for r in n.refs}
        asked = {r for n in self.graph.nodes if self._reads_data(n) for r in n.refs}
        by_islands = {r for n in self.graph.nodes if isinstance(n, IslandNode) for r in n.refs}
        self.passed_on = by_islands - by_operators - asked
        self.paths = {i.name: i.path for i in self.graph.inputs}
        self.given = frozenset(
            [name for name, _ in self.graph.parameters] + [*self.graph.constants] + [o.name for o in self.graph.objects]
        )
        numbers = {s.value for s in self.graph.symbols if s.kind == "result"}
        made = (o for n in self.graph.nodes if isinstance(n, IslandNode) for o in n.outputs if isinstance(o, str))
        self.made_objects = frozenset(o for o in made if o not in self.graph.spec and o not in numbers)

    # ---- names

    def name(self, hint: str, value: Any) -> str:
        """A name in the plan's namespace for an object."""
        for known, held in self.names.items():
            if held is value:
                return known
        fresh = f"{hint}{len(self.names)}"
        self.names[fresh] = value
        return fresh

    def path(self, path: Path) -> str:
        """Source of an argument path."""
        text = f"a{self.shape.parameters.index(str(path[0]))}"
        for key in path[1:]:
            if isinstance(key, Attribute):
                text += f".{key}"
            else:
                text += f"[{key}]" if isinstance(key, int) else f"[{self.name('key', key)}]"
        return text

    def value(self, name: str) -> str:
        """Source of a tensor value."""
        if name in self.register:
            return self.register[name]
        if name in self.paths:
            return self.path(self.paths[name])
        if name not in self.given and name not in self.made_objects:
            raise GraphError(f"The plan reads {name!r}, which was let go of or never made.", remedy="Report this.")
        return name  # a parameter p0.., constant c0.. or object, bound by name

    def text(self, leaf: Any) -> str:
        """Source of a leaf or nested tuple of leaves."""
        if isinstance(leaf, tuple):
            return "(" + ", ".join(map(self.text, leaf)) + ("," if len(leaf) == 1 else "") + ")"
        if isinstance(leaf, Ref):
            return self.value(leaf.name)
        if isinstance(leaf, sympy.Expr):
            return symbols.print_python(leaf)
        if isinstance(leaf, Expect):
            return self.text(leaf.value)
        if isinstance(leaf, Argument):
            return self.path(leaf.path)
        if leaf is None or type(leaf) in (bool, int):
            return repr(leaf)
        return self.name("k", leaf)

    # ---- checks

    def differs(self, text: str, value: Any) -> str:
        """The condition under which what `text` stands for, of the type of `value`, is another value."""
        if value != value:  # NaN, of which no two are equal
            return f"{text} == {text}"
        if type(value) is float and value == 0.0:  # 0.0 == -0.0, but they are two scales
            sign = math.copysign(1.0, value)
            return f"{text} != 0.0 or {self.name('sign', math.copysign)}(1.0, {text}) != {sign}"
        return f"{text} != {self.text(value)}"

    def miss(self, condition: str, indent: str = "    ") -> None:
        """`if condition:` the plan is not for this call."""
        action = "raise Deoptimized" if self.effects else "return MISS"
        self.lines.append(f"{indent}if {condition}: {action}")

    def checks(self) -> None:
        """Everything that can be checked before the first call."""
        conditions = self.shape.conditions
        for path, kind, keys in conditions.containers:
            at = self.path(path)
            if kind is dict and not keys and len(path) == 1:
                self.miss(f"{at} or type({at}) is not dict")
                continue
            known = kind.__name__ if kind in (dict, list, tuple) else self.name("type", kind)
            size = f"len({at}) != {keys}" if isinstance(keys, int) else f"tuple({at}) != {self.name('keys', keys)}"
            self.miss(f"type({at}) is not {known}" + (f" or {size}" if keys is not None else ""))
        for path, value in conditions.atoms:
            at = self.path(path)
            if value is None or isinstance(value, (bool, torch.dtype)):
                self.miss(f"{at} is not {self.text(value)}")
            else:
                self.miss(f"type({at}) is not {self.name('type', type(value))} or {self.differs(at, value)}")
        for path, kind in conditions.kinds:
            self.miss(f"type({self.path(path)}) is not {self.name('type', kind)}")
        for left, right in conditions.aliases:
            self.miss(f"{self.path(left)} is not {self.path(right)}")
        names = [*(i.name for i in self.graph.inputs), *(name for name, _ in self.graph.parameters)]
        if names:  # parameters too: `.to()` and `.data =` change them and keep the object
            self.guard(names, self.shape.devices)
        if conditions.written:
            groups = ", ".join(f"({', '.join(map(self.value, group))},)" for group in conditions.written)
            others = "".join(f"{self.value(name)}, " for name in conditions.others)
            self.miss(f"not {self.name('separate', separate)}(({groups},), ({others}), HELD)")
        self.flush()

    def guard(self, names: Sequence[str], devices: Sequence[torch.device], indent: str = "    ") -> None:
        """Checks tensors and binds the size symbols they are the source of."""
        results = {s.symbol for s in self.graph.symbols if s.kind == "result"}
        by_number = [n for n in names if results & self._symbols_of(n)]
        if by_number:
            for name in by_number:
                self._plain_guard(name, indent)
            rest = [(n, d) for n, d in zip(names, devices, strict=True) if n not in by_number]
            if rest:
                self.guard([n for n, _ in rest], [d for _, d in rest], indent)
            return
        checked, places = self._sources(names)
        all_devices = [*devices, *(devices[0] for _ in checked[len(names) :])]
        guard = make_guard(
            [self.spec(n) for n in checked],
            all_devices,
            [(s.symbol, checked.index(s.value), s.kind, s.dim) for s in places],
        )
        called = f"{self.name('guard', guard)}({', '.join(map(self.value, checked))})"
        self.lines.append(f"{indent}g = {called}")
        self.miss("g is None", indent)
        if places:
            self.lines.append(f"{indent}{', '.join(s.symbol for s in places)}, = g")
        self.bound |= {s.symbol for s in places}

    def _symbols_of(self, name: str) -> set[str]:
        spec = self.spec(name)
        return {x.name for x in symbols.free_symbols([*spec.shape, *spec.strides])}

    def _plain_guard(self, name: str, indent: str) -> None:
        """A check in Python, of a tensor whose sizes follow a number that no tensor tells."""
        spec, text = self.spec(name), self.value(name)
        for source in self.graph.symbols:
            if source.value == name and source.symbol not in self.bound:
                read = "size" if source.kind == "shape" else "stride"
                self.lines.append(f"{indent}{source.symbol} = {text}.{read}({source.dim})")
                if source.kind == "shape":
                    self.miss(f"{source.symbol} < 2", indent)
                self.bound.add(source.symbol)
        self.miss(f"{text}.dtype is not {self.text(spec.dtype)} or {text}.device.type != {spec.device!r}", indent)
        self.miss(f"{text}.shape != {self.text(tuple(spec.shape))}", indent)
        for dim, (size, stride) in enumerate(zip(spec.shape, spec.strides, strict=True)):
            if size != 1:
                self.miss(f"{text}.stride({dim}) != {self.text(stride)}", indent)

    def _sources(self, names: Sequence[str]) -> tuple[list[str], list[SymbolSource]]:
        """The tensors a guard on `names` reads, and the size symbols it takes from them.

        A size that came from an earlier tensor is read off that tensor again, which may itself have further sizes.
        """
        checked = list(names)
        places = {s.symbol: s for s in self.graph.symbols if s.value in names and s.symbol not in self.bound}
        for name in checked:  # grows on the way
            needed = self._symbols_of(name) - set(places)
            for source in self.graph.symbols:
                if source.symbol in needed:
                    places[source.symbol] = source
                    if source.kind != "result" and source.value not in checked:
                        checked.append(source.value)
        return checked, [s for s in places.values() if s.kind != "result"]

    def spec(self, name: str) -> Any:
        """The TensorSpec of a value."""
        return self.graph.spec[name]

    def flush(self, indent: str = "    ") -> None:
        """Writes the guards whose symbols are all known by now."""
        for wanted, guard in list(self.pending):
            if wanted <= self.bound:
                self.pending.remove((wanted, guard))
                self.miss(f"not ({guard})", indent)

    # ---- the body

    def keeper(self, steps: Sequence[Step], log: bool) -> str:
        """Source of what keeps memory and generators as they were before the plan's lasting effects; notes where.

        A large tensor is kept only if a later check may still end the plan: an error after the write is then handed on.
        """
        at = [k for k, (kind, index) in enumerate(steps) if kind == "node" and index in self.graph.lasting]
        if not at or (at == [len(steps) - 1] and not log):
            return "None"
        self.kept_before = frozenset(steps[k][1] for k in at)
        later = any(kind == "node" and isinstance(self.graph.nodes[i], IslandNode) for kind, i in steps[at[0] :])
        return f"UNDO({None if log or later else _MOST_KEPT})"

    kept_before: frozenset[int] = frozenset()

    def island(self, index: int, node: IslandNode, log: bool) -> None:
        """An island call, its log entry, and the checks on what it returned."""
        receiver = self.text(node.receiver) if isinstance(node.receiver, Ref) else self.path(node.receiver)
        pad = "        "
        if self._reads_data(node):
            asked = ", ".join(map(self.text, node.args or ()))
            self.lines.append(f"{pad}r = {receiver}.{node.method}({asked})")
        elif node.args is None:
            self.lines.append(f"{pad}r = {receiver}.{node.method}")
            self.lines.append(f"{pad}log.append(r)")
            if log:
                self.lines.append(f"{pad}SEEN.append([])")
        else:
            given = [f"i{index}_{p}" if _bound_later(leaf) else self.text(leaf) for p, leaf in enumerate(node.args)] + [
                f"{k}={self.text(v)}" for k, v in node.kwargs
            ]
            called = f"{receiver}.{node.method}" if node.method else receiver
            self.lines.append(f"{pad}try: r = {called}({', '.join(given)})")
            self.lines.append(f"{pad}except Exception as e: log.append(Raised(e)); raise")
            live = not node.effect and any(o in self.graph.spec for o in node.outputs if isinstance(o, str))
            self.lines.append(
                f"{pad}log.append({self.name('as_it_is', as_it_is)}(r))" if live else f"{pad}log.append(r)"
            )
            if log:
                every = leaves((node.args, tuple(value for _, value in node.kwargs)))
                seen = [
                    self.value(leaf.name) for leaf in every if isinstance(leaf, Ref) and leaf.name in self.graph.spec
                ]
                self.lines.append(f"{pad}SEEN.append([{', '.join(seen)}])")
        self.effects = self.effects or node.effect
        if node.structure not in ("leaf", "tuple", "list"):
            flatten, tree = self.name("flatten", pytree.tree_flatten), pytree.treespec_loads(node.structure)
            self.lines.append(f"{pad}r, tree = {flatten}(r)")
            self.miss(f"tree != {self.name('tree', tree)}", pad)
        elif node.structure != "leaf":
            self.miss(f"type(r) is not {node.structure} or len(r) != {len(node.outputs)}", pad)
        if node.structure != "leaf":
            targets = [f"t{k}" for k in range(len(node.outputs))]
            self.lines.append(f"{pad}{', '.join(targets)}{',' if len(targets) == 1 else ''} = r")
        else:
            targets = ["r"]
        tensors: list[str] = []
        for target, output in zip(targets, node.outputs, strict=True):
            if isinstance(output, Expect):
                self.miss(f"type({target}) is not {self.name('type', type(output.value))}", pad)
                self.miss(self.differs(target, output.value), pad)
            elif isinstance(output, (Argument, Ref)):
                self.miss(f"{target} is not {self.text(output)}", pad)
            elif output in self.made_objects:
                self.lines.append(f"{pad}{output} = {target}")
            elif output in self.graph.spec:
                if output in self.register or output in self.paths or output in self.given:
                    self.miss(f"{target} is not {self.value(output)}", pad)
                else:
                    self.lines.append(f"{pad}{self.allocate(output)} = {target}")
                tensors.append(output)
            else:
                symbol = next(s.symbol for s in self.graph.symbols if s.value == output)
                self.lines.append(f"{pad}{symbol} = {target}")
                if output in self.taps:
                    self.lines.append(f"{pad}TAP[{self.name('tap', output)}] = {symbol}")
                self.miss(f"type({symbol}) is not int or {symbol} < 2", pad)
                self.bound.add(symbol)
        if tensors:
            self.guard(tensors, [self.shape.devices[0]] * len(tensors), pad)
        self.flush(pad)

    def allocate(self, name: str) -> str:
        """A local variable for a value; variables of dead values are used again, so that memory is freed."""
        self.register[name] = self.free.pop() if self.free else f"v{len(set(self.register.values()) | set(self.free))}"
        return self.register[name]

    def release(self, names: Sequence[str], position: int, last: Mapping[str, int]) -> None:
        """Gives back the variables of values that are not read after `position`."""
        for name in dict.fromkeys(names):
            if last.get(name, -1) <= position and name in self.register and name not in self.kept:
                self.free.append(self.register.pop(name))

    kept: frozenset[str] = frozenset()
    taps: frozenset[str] = frozenset()

    def body(self, steps: Sequence[Step], kernels: Sequence[KernelCall], taps: frozenset[str], log: bool) -> None:
        """Library calls, kernels and islands in order."""
        pad = "        "
        reads = [self._reads(step, kernels) for step in steps]
        last: dict[str, int] = {}
        for position, names in enumerate(reads):
            last.update(dict.fromkeys(names, position))
        returned = {leaf.name for leaf in self.graph.outputs if isinstance(leaf, Ref)}
        sources = {s.value for s in self.graph.symbols}
        self.kept = frozenset(returned | sources)
        self.taps = taps
        given = {*self.paths, *dict(self.graph.parameters), *self.graph.constants}
        for name in sorted(taps & given):
            self.lines.append(f"{pad}TAP[{self.name('tap', name)}] = {self.value(name)}")
        for position, (kind, index) in enumerate(steps):
            if kind == "region":
                made = self._kernel(index, kernels[index], reads[position], position, last)
            elif isinstance(self.graph.nodes[index], IslandNode):
                node = self.graph.nodes[index]
                assert isinstance(node, IslandNode)
                if not log:
                    self._let_go(node)
                self.island(index, node, log)
                self.release(reads[position], position, last)
                made = [o for o in node.outputs if isinstance(o, str) and o in self.graph.spec]
            else:
                made = self._operator(index, reads[position], position, last)
            for name in made:
                if name in taps:
                    self.lines.append(f"{pad}TAP[{self.name('tap', name)}] = {self.value(name)}")
            self.release(made, position, last)

    def _let_go(self, node: IslandNode) -> None:
        """Takes out of the log what the forward has given up by the time it makes a call, if only steps read it."""
        for name in node.given_up:
            if name in self.logged_at:
                gone = self.name("gone", HandedOn(self.spec(name), self.shape.devices[0]))
                self.lines.append(f"        log[{self.logged_at.pop(name)}] = {gone}")
                self.lets_go = True
        self.logged += not self._reads_data(node)
        passed_on = node.structure == "leaf" and node.outputs[0] in self.passed_on
        if node.effect and isinstance(node.receiver, Ref) and passed_on:
            self.logged_at[node.outputs[0]] = self.logged - 1

    def _reads_data(self, node: OpNode | IslandNode) -> bool:
        receiver = node.receiver if isinstance(node, IslandNode) else None
        return isinstance(receiver, Ref) and receiver.name in self.graph.spec

    def _reads(self, step: Step, kernels: Sequence[KernelCall]) -> tuple[str, ...]:
        kind, index = step
        return kernels[index].inputs if kind == "region" else self.graph.nodes[index].refs

    def _kernel(
        self, index: int, kernel: KernelCall, reads: Sequence[str], position: int, last: Mapping[str, int]
    ) -> list[str]:
        given = [*map(self.value, kernel.inputs), *(symbols.print_python(d) for d in kernel.given)]
        self.release(reads, position, last)
        targets = ", ".join(self.allocate(o) for o in kernel.outputs)
        self.lines.append(f"        {targets} = kernel{index}({', '.join(given)})")
        return list(kernel.outputs)

    def _operator(self, index: int, reads: Sequence[str], position: int, last: Mapping[str, int]) -> list[str]:
        node = self.graph.nodes[index]
        assert isinstance(node, OpNode)
        known = self.graph.spec.get(node.outputs[0]) if node.outputs else None
        source = call(node, self.text, self.name, known, hold_scalars=True)
        if index in self.kept_before:
            given = "".join(f"{self.text(a)}, " for a in node.args)
            named = ", ".join(f"{k!r}: {self.text(v)}" for k, v in node.kwargs)
            if index in self.graph.outer_writes:
                self.lines.append(f"        undo.before({self.name('op', resolve(node.op))}, ({given}), {{{named}}})")
            else:
                self.lines.append(f"        undo.drawing(({given}), {{{named}}})")
        if index in self.graph.lasting:
            self.effects = True
        self.release(reads, position, last)
        fresh = [o for o in node.outputs if o not in self.register and o not in self.paths]
        unsure = [o for o in fresh if o in self.graph.opaque]
        if not fresh:
            self.lines.append(f"        {source}")
        else:
            several = len(node.outputs) > 1 or self._returns_list(node)
            targets = ", ".join(self.allocate(o) for o in node.outputs)
            self.lines.append(f"        {targets}{',' if several else ''} = {source}")
        if unsure:
            self.guard(unsure, [self.shape.devices[0]] * len(unsure), "        ")
            self.flush("        ")
        return fresh

    @staticmethod
    def _returns_list(node: OpNode) -> bool:
        returns = resolve(node.op)._schema.returns
        return len(returns) == 1 and isinstance(returns[0].type, torch.ListType)

    def result(self) -> str:
        """Source of what the plan returns."""
        leaves = [self.text(leaf) for leaf in self.graph.outputs]
        tree = self.shape.tree
        if tree.is_leaf():
            return leaves[0]
        if tree.type in (tuple, list) and all(child.is_leaf() for child in tree.children()):
            inner = ", ".join(leaves)
            return f"[{inner}]" if tree.type is list else f"({inner}{',' if len(leaves) == 1 else ''})"
        if tree.type is dict and all(child.is_leaf() for child in tree.children()):
            keys = [self.name("key", key) for key in tree.context]
            return "{" + ", ".join(f"{k}: {v}" for k, v in zip(keys, leaves, strict=True)) + "}"
        unflatten = self.name("unflatten", pytree.tree_unflatten)
        return f"{unflatten}([{', '.join(leaves)}], {self.name('tree', tree)})"


def _head(shape: Shape, name: str) -> str:
    return f"def {name}({', '.join(f'a{i}' for i in range(len(shape.parameters)))}):"


def write_match(shape: Shape) -> Source:
    """A function like the plan that only checks: it returns the input symbols' values by name, or MISS."""
    writer = Writer(shape)
    writer.lines.append(_head(shape, "plan"))
    writer.checks()
    writer.lines.append("    return {" + ", ".join(f"{s!r}: {s}" for s in sorted(writer.bound)) + "}")
    return Source("\n".join(writer.lines), writer.names)


def write_plan(
    shape: Shape,
    steps: Sequence[Step],
    kernels: Sequence[KernelCall] = (),
    *,
    within: Mapping[str, tuple[int, int]] | None = None,
    pinned: bool = False,
    taps: frozenset[str] = frozenset(),
    log: bool = False,
) -> Source:
    """The source of a plan.

    Args:
        shape: what was recorded.
        steps: execution order.
        kernels: the kernels that "region" steps call as kernel0, kernel1, ...
        within: bounds (lowest, highest) on input symbols this plan is for.
        pinned: the plan is only for the values of the input symbols in the set `PROVED`.
        taps: values to leave in the dict `TAP` on the way.
        log: leave islands' tensor arguments in the list `SEEN`, and their results in the list `LOGGED`.

    Names to bind: parameters, constants and island constants by value name, kernel0.., `FAIL(error, log, arguments,
    undo)`, what `standing` gives, and `PROVED`, `TAP`, `SEEN`, `LOGGED` where asked for. `undo` is None, or takes back
    what the plan has written and drawn so far.
    """
    check_steps(shape.graph, steps, kernels)
    writer = Writer(shape)
    writer.lines.append(_head(shape, "plan"))
    writer.checks()
    for symbol, (low, high) in (within or {}).items():
        writer.miss(f"not {low} <= {symbol} <= {high}")
    if pinned:
        inputs = sorted(writer.bound)
        writer.miss(f"({', '.join(inputs)}{',' if inputs else ''}) not in PROVED")
    arguments = ", ".join(f"a{i}" for i in range(len(shape.parameters)))
    writer.lines += [
        "    log = LOGGED" if log else "    log = []",
        f"    undo = {writer.keeper(steps, log)}",
        "    try:",
    ]
    writer.body(steps, kernels, taps, log)
    writer.lines.append(f"        return {writer.result()}")
    writer.lines.append("    except Exception as error:")
    logged = f"{writer.name('restored', restored)}(log, locals())" if writer.lets_go else "log"
    writer.lines.append(f"        return FAIL(error, {logged}, ({arguments}{',' if arguments else ''}), undo)")
    return Source("\n".join(writer.lines), writer.names)


def input_symbols(graph: RecordedGraph) -> tuple[SymbolSource, ...]:
    """The symbols that are known before a plan's first call, by symbol name."""
    names = {i.name for i in graph.inputs}
    return tuple(sorted((s for s in graph.symbols if s.value in names), key=lambda s: s.symbol))
