"""The normal form of a SubGraph: what it computes, without what does not matter to its name.

Conversions, copies and broadcasts disappear. Views that reorder elements move from nodes to edges. Equal
expressions become one, and the ways to write the same arithmetic (x*x, square, pow 2; sum/n, mean; 1/sqrt, rsqrt;
a norm as one operator; gelu written out; a > b, b < a) become one way. Tensors of one number are that number, and an
arange is the index along a dimension. Matching compares normal forms; nothing is compiled from them.
"""

from __future__ import annotations

import math
from typing import Any

import sympy

from . import expansions, symbols
from .graph import SubGraph
from .leaves import Ref, leaves
from .nodes import OpNode
from .normal_form import Form, NormalForm, Use
from .ops import Call, Kind, Operator, call_of, canonical, lookup
from .ops.creation import progression
from .ops.pointwise import CONVERSIONS
from .ops.views import PERMUTATIONS, REARRANGEMENTS, SAME_ELEMENTS, SELECTIONS
from .parts import fraction, part_of_part
from .symbols import Dim

DROPPED = ("dropped",)  # the layout step of a reduction that did not keep its dimension
_LAST = ("last",)
# Reductions that their dimensions say all about: what else they take (keepdim, dtype) shows in their result.
_BY_DIMENSION = (
    "sum", "mean", "amax", "amin", "prod", "any", "all", "logsumexp", "softmax", "log_softmax", "cumsum", "cumprod",
)  # fmt: skip
_MOMENTS = ("var", "var_mean")
_MIRRORED = {"gt": "lt", "ge": "le"}  # a > b is b < a
_NEGATED = {"lt": "le", "le": "lt"}  # not a < b is b <= a
# Tensors of one number: where the number is among the arguments, or what it is.
_FILLED: dict[str, tuple[int, str] | int] = {
    "full": (1, "fill_value"), "full_like": (1, "fill_value"), "new_full": (2, "fill_value"), "scalar_tensor": (0, "s"),
    "zeros": 0, "zeros_like": 0, "new_zeros": 0, "ones": 1, "ones_like": 1, "new_ones": 1,
}  # fmt: skip
_CONVERSIONS = frozenset(f"aten.{op}" for op in CONVERSIONS)


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
            made = self.intern(Form("input", (), (name,)))
            self.result.values[name] = made
            if len(self.spec[name].shape) == 1:
                self.result.vectors.add(made.form)
        for node in graph.nodes:
            self.visit(node)
        self.result.outputs = tuple(self.result.values[name] for name in graph.outputs)

    def intern(self, form: Form) -> Use:
        number = self.numbers.setdefault(form, len(self.result.forms))
        if number == len(self.result.forms):
            self.result.forms.append(form)
        return Use(number)

    def form(self, use: Use) -> Form:
        return self.result.forms[use.form]

    def visit(self, node: OpNode) -> None:
        row = lookup(node.op)
        values = self.result.values
        if node.op in _CONVERSIONS:
            values[node.outputs[0]] = values[node.refs[0]]
        elif row is not None and row.kind is Kind.VIEW:
            call = call_of(node, self.spec)
            for number, name in enumerate(node.outputs):
                values[name] = self.view(row, call, number, values[node.refs[0]])
        else:
            values.update(zip(node.outputs, self.computed(row, node), strict=False))

    def computed(self, row: Operator | None, node: OpNode) -> tuple[Use, ...]:
        """The results of a call that is no view."""
        fn, values = _short(node.op), self.result.values
        if fn in _FILLED or (row is not None and row.kind is Kind.ELEMENT and not node.refs):
            return (self.created(fn, node),)
        if row is not None and row.kind is Kind.REDUCTION:
            call = call_of(node, self.spec)
            if fn in _BY_DIMENSION:
                return (self.reduction(row, fn, values[node.refs[0]], call),)
            if fn in ("max", "min") and row.dims is not None and len(node.refs) == 1:
                best = self.reduction(row, f"a{fn}", values[node.refs[0]], call)
                return best, self.plain(fn, node)
            if fn in _MOMENTS and self.is_population(call):
                mean, variance = (self.kept(row, u, call) for u in self.moments(row, values[node.refs[0]], call))
                return (variance, mean)[: len(node.outputs)]
        by_position = tuple(values[a.name] if isinstance(a, Ref) else None for a in node.args)
        given = tuple(a for a in node.args if isinstance(a, Ref))
        if len(given) == len(node.refs):
            expanded = expansions.expand(self, fn, call_of(node, self.spec), by_position)
            if expanded is not None:
                return expanded
        made = self.plain(fn, node)
        if len(node.outputs) == 1:
            return (made,)
        return tuple(self.intern(Form("result", (made,), (k,))) for k in range(len(node.outputs)))

    def created(self, fn: str, node: OpNode) -> Use:
        """A tensor made of numbers: what it is filled with, or the index along its dimension."""
        call = call_of(node, self.spec)
        if fn in _FILLED:
            filled = _FILLED[fn]
            value = call.argument(*filled, 0) if isinstance(filled, tuple) else filled
            return self.constant(value)
        if fn != "arange":
            return self.plain(fn, node)
        start, step = progression(call)
        place = self.scaled(self.intern(Form("index", (), (-1,))), step)
        return place if start == 0 else self.make("add", (place, self.constant(start)))

    def is_population(self, call: Call) -> bool:
        """Whether a variance divides by the number of elements."""
        given = call.kwargs.get("correction", call.argument(2, "unbiased", None))
        return given is not None and float(given) == 0.0

    def moments(self, row: Operator, source: Use, call: Call) -> tuple[Use, Use]:
        return expansions.moments(self, source, self.dims(row, call))

    def dims(self, row: Operator, call: Call) -> tuple[int, ...]:
        assert row.dims is not None
        return tuple(d - len(call.inputs[0].shape) for d in row.dims(call))

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
            if row.op == "aten.repeat_interleave.self_int" and isinstance(call.argument(2, "dim", None), int):
                detail = (call.args[1], call.args[2] % len(before) - len(before))
            return self.intern(Form(_short(row.op), (source,), (number, *detail)))
        if self.result.is_position(source.form) and not source.layout:
            return self.placed(source, after)
        if source.layout == () and self.form(source).fn == "stack" and len(after) == len(before) - 1:
            joined = symbols.as_dim(before[-2] * before[-1])
            if self.form(source).detail == (-1,) and symbols.same(after[-1], joined):
                return self.interleaved(self.form(source).operands)
        if len(before) == len(after) and all(map(symbols.same, before, after)):
            return source
        if source.layout[-1:] == (DROPPED,) and len(after) == len(before) + 1 and after[-1] == 1:
            return Use(source.form, source.layout[:-1])  # the dimension a reduction dropped is back
        return Use(source.form, (*source.layout, ("reshape", tuple(map(symbols.render, after)))))

    def placed(self, source: Use, after: tuple[Dim, ...]) -> Use:
        """A position seen in another shape: the index along the one dimension that is longer than 1."""
        along = [d - len(after) for d, size in enumerate(after) if size != 1]
        form = self.form(source)
        if form.fn == "const" or len(along) != 1:
            return source if form.fn == "const" else Use(source.form, (("reshape", tuple(map(symbols.render, after))),))
        if form.fn == "index":
            return self.intern(Form("index", (), (along[0],)))
        return self.make(form.fn, tuple(self.placed(use, after) for use in form.operands), form.detail)

    def interleaved(self, operands: tuple[Use, ...]) -> Use:
        """The elements of the operands in turn; of one operand twice, a repetition."""
        if len(set(operands)) == 1:
            return self.intern(Form("repeat_interleave", operands[:1], (0, len(operands), -1)))
        return self.intern(Form("interleave", operands))

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
                step = symbols.substitute(symbols.as_dim(at), {index: symbols.index_symbol("i")})
                use = self.intern(Form("stride", (use,), (d - len(before), symbols.render(step))))
            elif not (start == 0 and symbols.same(length, size)):
                part = (fraction(start, size), fraction(symbols.as_dim(start + length), size))
                use = self.part(use, d - len(before), part)
        return Use(use.form, (*use.layout, *dropped))

    def part(self, use: Use, dim: int, part: tuple[Any, Any]) -> Use:
        """A slice of a slice of the same dimension is one slice."""
        form = self.form(use)
        detail: tuple[Any, ...] = (dim, *part)
        if form.fn == "slice" and not use.layout and (joined := part_of_part(form.detail, detail)):
            use, detail = form.operands[0], joined
        return self.intern(Form("slice", (use,), detail))

    def reduction(self, row: Operator, fn: str, source: Use, call: Call) -> Use:
        dims = self.dims(row, call)
        made = self.reduced(fn, source, dims)
        if dims == (-1,) and fn == "sum":
            self.extents[made.form] = call.inputs[0].shape[-1]
        return self.kept(row, made, call)

    def reduced(self, fn: str, source: Use, dims: tuple[int, ...]) -> Use:
        """A reduction over dimensions counted from the end."""
        return self.intern(Form(fn, (source,), _LAST if dims == (-1,) else ("dims", *dims)))

    def kept(self, row: Operator, made: Use, call: Call) -> Use:
        """What was reduced, with the dimensions gone that the call did not keep."""
        if len(call.outputs[0].shape) == len(call.inputs[0].shape):
            return made
        dims = self.dims(row, call)
        return Use(made.form, (DROPPED,) if dims == (-1,) else (("dropped", *dims),))

    def plain(self, fn: str, node: OpNode) -> Use:
        operands: list[Use] = []
        detail: list[Any] = []
        for leaf in leaves(node.args):
            if isinstance(leaf, Ref):
                operands.append(self.result.values[leaf.name])
            elif isinstance(leaf, (int, float, sympy.Expr)) and not isinstance(leaf, bool):
                operands.append(self.constant(leaf))
            else:
                detail.append(leaf)
        named = dict(node.kwargs)
        if fn in ("add", "sub") and len(operands) == 2:
            operands[1] = self.scaled(operands[1], named.pop("alpha", 1))
        detail += named.items()
        if fn in ("cat", "stack"):
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

    def scaled(self, x: Use, factor: Dim | float) -> Use:
        """`x` times a number; `x` itself for 1."""
        return x if factor == 1 else self.make("mul", (x, self.constant(factor)))

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
                power = self.number(exponent)
                name = None if power is None else names.get(power)
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
            case (("gt" | "ge"), (a, b)):
                return self.make(_MIRRORED[fn], (b, a))
            case (("bitwise_not" | "logical_not"), (x,)):
                inside = self.form(x)
                if inside.fn in _NEGATED and not x.layout:
                    return self.make(_NEGATED[inside.fn], inside.operands[::-1])
                return self.intern(Form("not", operands))
            case "masked_fill", (x, mask, value):
                return self.make("where", (mask, value, x))
            case "where", (mask, a, b) if self.form(mask).fn == "not" and not mask.layout:
                return self.make("where", (self.form(mask).operands[0], b, a))
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
        return expansions.gelu(self, a, b)

    def number(self, use: Use) -> Dim | float | None:
        form = self.form(use)
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
