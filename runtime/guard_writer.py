"""The checks of a plan, as source: everything a recording depended on, compared with a call's arguments.

`GuardWriter` is the half of a plan's writer that needs no steps; `write_match` is a plan that stops there.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Sequence
from typing import Any

import sympy
import torch

from fusion.patterns import symbols
from fusion.patterns.errors import GraphError
from fusion.patterns.leaves import Argument, Attribute, Expect, Path, Ref
from fusion.patterns.nodes import OpNode, made_by
from fusion.patterns.recorded import SymbolSource
from fusion.runtime.aliasing import Memory, disjoint
from fusion.runtime.native import make_guard
from fusion.runtime.plan import MISS, Deoptimized, LoggedError, PlanSpec, Source


class GuardWriter:
    """Writes names, values and checks.

    Attributes:
        lines: the text so far.
        names: what the names of the plan's namespace stand for.
        bound: size symbols that are known by now.
        register: the local variable of each tensor value that has one.
        effects: whether a call has changed something by now, so that a failed check has to raise.
    """

    def __init__(self, shape: PlanSpec) -> None:
        self.shape = shape
        self.graph = shape.graph
        self.lines: list[str] = []
        self.names: dict[str, Any] = {"MISS": MISS, "Deoptimized": Deoptimized, "LoggedError": LoggedError}
        self.bound: set[str] = set()
        self.pending = [(set(re.findall(r"\bs\d+\b", g)), g) for g in self.graph.guards]
        self.register: dict[str, str] = {}
        self.effects = False
        self.paths = {i.name: i.path for i in self.graph.inputs}
        self.given = frozenset(
            [name for name, _ in self.graph.parameters] + [*self.graph.constants] + [o.name for o in self.graph.objects]
        )
        numbers = {s.value for s in self.graph.symbols if s.kind == "result"}
        made = (o for n in self.graph.nodes if not isinstance(n, OpNode) for o in made_by(n))
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

    def outside(self, word: Any) -> str:
        """A name for a keyword, a key or an attribute's name. Such words come from outside and are never text."""
        return self.name("key", sys.intern(word) if type(word) is str else word)

    def path(self, path: Path) -> str:
        """Source of an argument path."""
        text = f"a{self.shape.parameters.index(str(path[0]))}"
        for key in path[1:]:
            if isinstance(key, Attribute):
                text = f"getattr({text}, {self.outside(str(key))})"
            else:
                text += f"[{key}]" if type(key) is int else f"[{self.outside(key)}]"
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
        for left, right in conditions.apart:
            self.miss(f"{self.path(left)} is {self.path(right)}")
        names = [*(i.name for i in self.graph.inputs), *(name for name, _ in self.graph.parameters)]
        if names:  # parameters too: `.to()` and `.data =` change them and keep the object
            self.guard(names, self.shape.devices)
        if conditions.mutated_groups:
            groups = ", ".join(self.text(tuple(map(Ref, group))) for group in conditions.mutated_groups)
            others = "".join(f"{self.value(name)}, " for name in conditions.separate_inputs)
            memory = f"({groups},), ({others}), HELD"
            self.miss(f"not {self.name('disjoint', disjoint)}({memory})")
            if conditions.opaque_aliases:
                self.lines.append(f"    memory = {self.name('Memory', Memory)}({memory})")
        self.flush()

    def guard(self, names: Sequence[str], devices: Sequence[torch.device], indent: str = "    ") -> None:
        """Checks tensors and binds the size symbols they are the source of."""
        results = {s.symbol for s in self.graph.symbols if s.kind == "result"}
        by_number = [n for n in names if any(results & self._symbols_of(m) for m in self._sources([n])[0])]
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
                self.miss(f"{source.symbol} < 2", indent)
                self.bound.add(source.symbol)
        self.miss(
            f"{text}.dtype is not {self.text(spec.dtype)} or {text}.device.type != {self.name('device', spec.device)}",
            indent,
        )
        self.miss(f"{text}.shape != {self.text(tuple(spec.shape))}", indent)
        for dim, stride in enumerate(spec.strides):
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


def head(shape: PlanSpec, name: str) -> str:
    """The first line of a function of the scope's parameters."""
    return f"def {name}({', '.join(f'a{i}' for i in range(len(shape.parameters)))}):"


def write_match(shape: PlanSpec) -> Source:
    """A function like the plan that only checks: it returns the input symbols' values by name, or MISS."""
    writer = GuardWriter(shape)
    writer.lines.append(head(shape, "plan"))
    writer.checks()
    writer.lines.append("    return {" + ", ".join(f"{writer.outside(s)}: {s}" for s in sorted(writer.bound)) + "}")
    return Source("\n".join(writer.lines), writer.names)
