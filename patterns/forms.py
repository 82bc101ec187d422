"""The normal form of a SubGraph: what it computes, without what does not matter to its name.

Conversions, copies and broadcasts disappear. Views that reorder elements move from nodes to edges. Equal
expressions become one, and the ways to write the same arithmetic (x*x, square, pow 2; sum/n, mean; 1/sqrt, rsqrt)
become one way. Matching compares normal forms; nothing is compiled from them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import sympy
from torch.utils._sympy.functions import FloorDiv

from . import symbols
from .graph import OpNode, Ref, SubGraph, leaves
from .ops import Call, Kind, Operator, call_of, canonical, lookup
from .ops.pointwise import CONVERSIONS
from .ops.views import PERMUTATIONS, REARRANGEMENTS, SAME_ELEMENTS, SELECTIONS
from .symbols import Dim

DROPPED = ("dropped",)  # the layout step of a reduction that did not keep its dimension
_LAST = ("last",)
# Reductions that their dimensions say all about: what else they take (keepdim, dtype) shows in their result.
_BY_DIMENSION = (
    "sum", "mean", "amax", "amin", "prod", "any", "all", "logsumexp", "softmax", "log_softmax", "cumsum", "cumprod",
)  # fmt: skip
_CONVERSIONS = frozenset(f"aten.{op}" for op in CONVERSIONS)


@dataclass(frozen=True, slots=True)
class Use:
    """A form as an operand: its number, and the reordering views between it and its user."""

    form: int
    layout: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Form:
    """One operation of a normal form.

    Attributes:
        fn: "input", "const", "slice", or an operator's short name.
        operands: what it reads.
        detail: what else tells it apart: an input's name, a constant's value, a slice's part.
    """

    fn: str
    operands: tuple[Use, ...] = ()
    detail: tuple[Any, ...] = ()


@dataclass
class NormalForm:
    """A SubGraph's forms, each once, operands before users.

    Attributes:
        forms: by number.
        values: for each value of the graph, what it is.
        outputs: the graph's outputs, in order.
    """

    forms: list[Form] = field(default_factory=list)
    values: dict[str, Use] = field(default_factory=dict)
    outputs: tuple[Use, ...] = ()

    def is_leaf(self, number: int) -> bool:
        """Whether a form is an input, or a part of one."""
        form = self.forms[number]
        return form.fn == "input" or (form.fn == "slice" and self.is_leaf(form.operands[0].form))

    def live(self) -> set[int]:
        """The forms the outputs depend on."""
        found: set[int] = set()
        open_ends = [use.form for use in self.outputs]
        while open_ends:
            number = open_ends.pop()
            if number not in found:
                found.add(number)
                open_ends += [use.form for use in self.forms[number].operands]
        return found


def normal_form(graph: SubGraph) -> NormalForm:
    """The normal form of `graph`."""
    return _Normaliser(graph).result


class _Normaliser:
    def __init__(self, graph: SubGraph) -> None:
        self.spec = graph.spec
        self.result = NormalForm()
        self.numbers: dict[Form, int] = {}
        self.extents: dict[int, Dim] = {}  # of the forms that are sums over the last dimension
        for name in graph.inputs:
            self.result.values[name] = self.intern(Form("input", (), (name,)))
        for node in graph.nodes:
            self.visit(node)
        self.result.outputs = tuple(self.result.values[name] for name in graph.outputs)

    def intern(self, form: Form) -> Use:
        number = self.numbers.setdefault(form, len(self.result.forms))
        if number == len(self.result.forms):
            self.result.forms.append(form)
        return Use(number)

    def visit(self, node: OpNode) -> None:
        row = lookup(node.op)
        values = self.result.values
        if node.op in _CONVERSIONS:
            values[node.outputs[0]] = values[node.refs[0]]
        elif row is not None and row.kind is Kind.VIEW:
            call = call_of(node, self.spec)
            for number, name in enumerate(node.outputs):
                values[name] = self.view(row, call, number, values[node.refs[0]])
        elif row is not None and row.kind is Kind.REDUCTION and _short(node.op) in _BY_DIMENSION:
            values[node.outputs[0]] = self.reduction(row, node, call_of(node, self.spec))
        else:
            made = self.plain(node)
            for number, name in enumerate(node.outputs):
                values[name] = made if len(node.outputs) == 1 else self.intern(Form("result", (made,), (number,)))

    def view(self, row: Operator, call: Call, number: int, source: Use) -> Use:
        before, after = call.inputs[0].shape, call.outputs[number].shape
        if row.index in SAME_ELEMENTS:
            return source
        if row.index in SELECTIONS:
            return self.selection(row, call, number, source)
        if row.index in PERMUTATIONS and row.index is not None:
            probe = tuple(range(len(after)))
            return Use(source.form, (*source.layout, ("permute", row.index(call, probe, {}, number))))
        if row.index in REARRANGEMENTS:
            detail = (*call.args[1:], *call.kwargs.items())
            return self.intern(Form(_short(row.op), (source,), (number, *detail)))
        if len(before) == len(after) and all(map(symbols.same, before, after)):
            return source
        if source.layout[-1:] == (DROPPED,) and len(after) == len(before) + 1 and after[-1] == 1:
            return Use(source.form, source.layout[:-1])  # the dimension a reduction dropped is back
        return Use(source.form, (*source.layout, ("reshape", tuple(map(symbols.render, after)))))

    def selection(self, row: Operator, call: Call, number: int, source: Use) -> Use:
        """A slice, as the part it takes of each dimension: (dimension from the end, from, to) in fractions."""
        before, after = call.inputs[0].shape, call.outputs[number].shape
        probe = tuple(symbols.index_symbol(f"i{d}") for d in range(len(after)))
        assert row.index is not None
        taken = row.index(call, probe, {}, number)
        kept = iter(zip(probe, after, strict=True))
        use = source
        dropped: tuple[Any, ...] = ()
        for d, (at, size) in enumerate(zip(taken, before, strict=True)):
            if len(after) < len(before) and not (isinstance(at, sympy.Expr) and at.free_symbols & set(probe)):
                start, length, dropped = at, 1, (("selected", d - len(before)),)
            else:
                index, length = next(kept)
                start = symbols.as_dim(sympy.sympify(at) - index)
            if isinstance(start, sympy.Expr) and start.free_symbols & set(probe):
                use = self.intern(Form("stride", (use,), (d - len(before), symbols.render(at))))
            elif not (start == 0 and symbols.same(length, size)):
                part = (_fraction(start, size), _fraction(symbols.as_dim(start + length), size))
                use = self.part(use, d - len(before), part)
        return Use(use.form, (*use.layout, *dropped))

    def part(self, use: Use, dim: int, part: tuple[Any, Any]) -> Use:
        """A slice of a slice of the same dimension is one slice."""
        form = self.result.forms[use.form]
        if form.fn == "slice" and not use.layout and form.detail[0] == dim:
            _, low, high = form.detail
            if all(isinstance(x, Fraction) for x in (low, high, *part)):
                part = (low + part[0] * (high - low), low + part[1] * (high - low))
                use = form.operands[0]
        return self.intern(Form("slice", (use,), (dim, *part)))

    def reduction(self, row: Operator, node: OpNode, call: Call) -> Use:
        rank = len(call.inputs[0].shape)
        assert row.dims is not None
        dims = tuple(d - rank for d in row.dims(call))
        detail = _LAST if dims == (-1,) else ("dims", *dims)
        made = self.intern(Form(_short(node.op), (self.result.values[node.refs[0]],), detail))
        if detail == _LAST and _short(node.op) == "sum":
            self.extents[made.form] = call.inputs[0].shape[-1]
        if len(call.outputs[0].shape) == rank:
            return made
        return Use(made.form, (DROPPED,) if detail == _LAST else (("dropped", *dims),))

    def plain(self, node: OpNode) -> Use:
        operands: list[Use] = []
        detail: list[Any] = []
        for leaf in leaves(node.args):
            if isinstance(leaf, Ref):
                operands.append(self.result.values[leaf.name])
            elif isinstance(leaf, (int, float, sympy.Expr)) and not isinstance(leaf, bool):
                operands.append(self.constant(leaf))
            else:
                detail.append(leaf)
        detail += [(name, value) for name, value in node.kwargs if (name, value) != ("alpha", 1)]
        fn = _short(node.op)
        if fn == "cat":
            dim = call_of(node, self.spec).argument(1, "dim", 0)
            rank = len(self.spec[node.outputs[0]].shape)
            operands, detail = operands[: len(node.refs)], [dim % rank - rank]
        if fn == "gelu":
            detail = [value for _, value in detail if value != "none"]
        if fn == "rsub":
            fn, operands[:2] = "sub", operands[1::-1]
        return self.make(fn, tuple(operands), tuple(detail))

    def constant(self, value: Dim | float) -> Use:
        return self.intern(Form("const", (), (value,)))

    def make(self, fn: str, operands: tuple[Use, ...], detail: tuple[Any, ...] = ()) -> Use:
        """A form, after the arithmetic identities; a dropped dimension stays dropped through arithmetic on it."""
        values = [use for use in operands if self.number(use) is None]
        if values and all(use.layout == (DROPPED,) for use in values):
            bare = tuple(Use(use.form) if use in values else use for use in operands)
            made = self.make(fn, bare, detail)
            return Use(made.form, (*made.layout, DROPPED))
        simpler = None if detail else self.simplify(fn, operands)
        return simpler or self.intern(Form(fn, operands, detail))

    def simplify(self, fn: str, operands: tuple[Use, ...]) -> Use | None:
        match fn, operands:
            case "pow", (x, exponent):
                names = {2: "square", 0.5: "sqrt", -0.5: "rsqrt", -1: "reciprocal"}
                name = names.get(self.number(exponent))  # type: ignore[arg-type]
                return self.make(name, (x,)) if name else None
            case "mul", (a, b):
                return self.product(a, b) or self.product(b, a)
            case "div", (a, b):
                divisor = self.number(b)
                if a.form in self.extents and not a.layout and self.is_extent(divisor, a.form):
                    return self.make("mean", self.result.forms[a.form].operands, _LAST)
                if divisor is None:
                    inverse = self.make("reciprocal", (b,))
                    return inverse if self.number(a) == 1 else self.make("mul", (a, inverse))
                is_number = isinstance(divisor, (int, float)) and divisor != 0
                return self.make("mul", (a, self.constant(1.0 / divisor))) if is_number else None
            case "reciprocal", (x,) if not x.layout and self.result.forms[x.form].fn == "sqrt":
                return self.make("rsqrt", self.result.forms[x.form].operands)
            case _:
                return None

    def product(self, a: Use, b: Use) -> Use | None:
        """a * b where b makes it something simpler."""
        if a == b:
            return self.make("square", (a,))
        factor = self.number(b)
        if factor == 1:
            return a
        if factor == -1:
            return self.make("neg", (a,))
        if isinstance(factor, float) and a.form in self.extents and not a.layout and factor > 0:
            extent = self.extents[a.form]
            if isinstance(extent, int) and math.isclose(factor * extent, 1.0):
                return self.make("mean", self.result.forms[a.form].operands, _LAST)
        if self.result.forms[b.form] == Form("sigmoid", (a,)) and not b.layout:
            return self.make("silu", (a,))
        return None

    def number(self, use: Use) -> Dim | float | None:
        form = self.result.forms[use.form]
        return form.detail[0] if form.fn == "const" else None

    def is_extent(self, value: Dim | float | None, form: int) -> bool:
        extent = self.extents[form]
        if isinstance(value, float) or isinstance(extent, int):
            return bool(value == extent)
        return value is not None and symbols.same(value, extent)


def _short(op: str) -> str:
    """`aten._softmax.default` and `aten.softmax.int` are both "softmax"; other namespaces keep their full names."""
    namespace, name, _ = canonical(op).split(".")
    return name.lstrip("_") if namespace == "aten" else op


def _fraction(at: Dim, size: Dim) -> Any:
    """`at / size` as a Fraction; where that is no number, as text. Halves of a symbolic size count as exact."""
    if isinstance(at, int) and isinstance(size, int):
        return Fraction(at, size) if size else Fraction(0)
    exact = sympy.sympify(at).replace(FloorDiv, lambda a, b: a / b)
    ratio = sympy.cancel(exact / sympy.sympify(size))
    return Fraction(int(ratio.p), int(ratio.q)) if ratio.is_Rational else str(ratio)
