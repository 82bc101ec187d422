"""Naming SubGraphs by structure.

A name needs the pattern's data flow, not its operators in a row: SwiGLU is a product one factor of which is the silu
of the other's partner, whatever stands between the two calls. Names are for people and hints for schedules; a region
without one fuses all the same.

Subgraph isomorphism (VF2, as networkx has it) asks another question: it maps nodes one to one, with edges as they are.
Here two constants of a pattern may be one number, layouts add up along a path, a slice may be part of a slice. On the
56 regions of `tests/support/model_code.py`, VF2 over the same normal forms took 73 ms each, and named 41; this unifier
takes 0.9 ms and names 52.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .forms import normal_form
from .graph import SubGraph
from .named import PATTERNS, Pattern
from .nodes import OpNode
from .normal_form import Form, NormalForm, Use
from .ops import Kind, kind_of
from .parts import part_of_part

_COMMUTATIVE = frozenset({"add", "mul"})
_REORDERING_MATTERS = frozenset(
    {
        "mean", "sum", "amax", "amin", "softmax", "log_softmax", "logsumexp", "cumsum", "slice", "stride", "cat",
        "interleave", "repeat_interleave", "index", "triu", "tril",
    }
)  # fmt: skip

Binding = dict[int, Use]  # form of the pattern -> what it is in the graph


@dataclass(frozen=True, slots=True)
class Found:
    """One place where a pattern's form occurs.

    Attributes:
        pattern: which.
        binding: what each of the pattern's forms is in the graph.
        covered: the graph's forms that the pattern computes (its inputs and constants left out).
    """

    pattern: Pattern
    binding: Binding
    covered: frozenset[int]


def match(graph: SubGraph) -> str | None:
    """The name of the pattern that explains all of `graph`, or None.

    Every output must be one of the pattern's outputs, every operation part of it, and its inputs must be inputs of
    the graph or slices of them. A graph that holds the pattern several times, side by side, has its name too (the
    queries and the keys of one rotary embedding). A bundle is named after those of its parts that
    have a name: "RoPE x2", "SwiGLU and 2 others".
    """
    if graph.bundle:
        return _bundle_name(graph)
    if any(kind_of(node.op) is Kind.PRODUCT for node in graph.nodes):
        return _after_products(graph)
    form = normal_form(graph)
    return next((pattern.name for pattern in PATTERNS if _explains(pattern, form)), None)


def _after_products(graph: SubGraph) -> str | None:
    """The name of what a graph makes of its matrix products, "linear*2+SwiGLU"; None where that has none."""
    products = [node for node in graph.nodes if kind_of(node.op) is Kind.PRODUCT]
    made = {name for node in products for name in node.outputs}
    rest = [node for node in graph.nodes if node not in products and not made.isdisjoint(_made_of(graph, node))]
    if not rest or not made.isdisjoint(graph.outputs):
        return None
    inside = {name for node in rest for name in node.outputs}
    inputs = tuple(dict.fromkeys(name for node in rest for name in node.refs if name not in inside))
    specs = tuple((name, graph.spec[name]) for name in (*inputs, *sorted(inside)))
    name = match(replace(graph, inputs=inputs, nodes=tuple(rest), specs=specs, pattern=None))
    words = Counter(node.op.split(".")[1] for node in products)
    before = "+".join(word if count == 1 else f"{word}*{count}" for word, count in words.items())
    return f"{before}+{name}" if name else None


def _made_of(graph: SubGraph, node: OpNode) -> set[str]:
    """Names of all values that a call's result is made of."""
    found, waiting = set[str](), list(node.refs)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            maker = graph.producer.get(name)
            waiting += maker.refs if maker is not None else ()
    return found


def _bundle_name(graph: SubGraph) -> str | None:
    names = Counter(map(match, graph.parts))
    others = names.pop(None, 0)
    if not names:
        return None
    known = ", ".join(str(name) if count == 1 else f"{name} x{count}" for name, count in names.items())
    return f"{known} and {others} other{'s' if others > 1 else ''}" if others else known


def contained(graph: SubGraph) -> tuple[str, ...]:
    """Names of the patterns that occur anywhere in `graph`, sorted; those that are part of a larger one left out."""
    form = normal_form(graph)
    live = sorted(form.live())
    found = [f for p in PATTERNS for root in live if (f := _find(p, form, root, live, leaves_only=False))]
    return tuple(sorted({f.pattern.name for f in found if not any(f.covered < other.covered for other in found)}))


def constants(graph: SubGraph) -> tuple[float, ...]:
    """The numbers that stand for the float constants of the pattern `graph` matches, such as RMSNorm's eps.

    Returns:
        in the order of the pattern's calls; of the first output, where the pattern occurs several times; empty when
        `graph` matches no pattern.
    """
    form = normal_form(graph)
    for pattern in PATTERNS:
        if _explains(pattern, form):
            roots = [use.form for use in form.outputs]
            places = (_find(pattern, form, root, roots, leaves_only=True) for root in roots)
            return next((_numbers(pattern, form, found.binding) for found in places if found), ())
    return ()


@functools.cache
def _form_of(pattern: Pattern) -> NormalForm:
    return normal_form(pattern.graph)


@functools.cache
def _is_strict(pattern: Pattern) -> bool:
    return any(form.fn in _REORDERING_MATTERS for form in _form_of(pattern).forms)


def _explains(pattern: Pattern, form: NormalForm) -> bool:
    covered: set[int] = set()
    handed_out: set[int] = set()
    roots = dict.fromkeys(use.form for use in form.outputs)
    for root in roots:
        found = _find(pattern, form, root, roots, leaves_only=True)
        if found:
            covered |= found.covered
            handed_out |= {found.binding[u.form].form for u in _form_of(pattern).outputs if u.form in found.binding}
    if not covered or not roots.keys() <= handed_out:
        return False
    return all(_is_given(form, number) for number in form.live() - covered)


def _is_given(form: NormalForm, number: int) -> bool:
    return form.is_leaf(number) or form.forms[number].fn == "const"


def _find(pattern: Pattern, form: NormalForm, root: int, others: Iterable[int], *, leaves_only: bool) -> Found | None:
    """The pattern with its first output at `root`, and its further ones, where they are there, among `others`."""
    shape = _form_of(pattern)
    goal = shape.outputs[0]
    if shape.forms[goal.form].fn != form.forms[root].fn:
        return None
    unifier = _Unifier(pattern, form, leaves_only)
    for first in unifier.unify(goal, Use(root, goal.layout), {}):
        binding = unifier.with_outputs(first, others)
        inside = {use.form for number, use in binding.items() if shape.forms[number].fn not in ("input", "const")}
        outside = {use.form for number, use in binding.items() if shape.forms[number].fn == "input"}
        complete = all(use.form in binding for use in shape.outputs) or not pattern.whole
        holds = pattern.holds is None or pattern.holds(*_numbers(pattern, form, binding))
        if complete and holds and not inside & outside:
            return Found(pattern, binding, frozenset(inside))
    return None


def _numbers(pattern: Pattern, form: NormalForm, binding: Binding) -> tuple[float, ...]:
    """What stands for the pattern's float constants, in the order of its calls."""
    free = [use for number, use in sorted(binding.items()) if _is_free_constant(_form_of(pattern).forms[number])]
    return tuple(form.forms[use.form].detail[0] for use in free)


def _is_free_constant(form: Form) -> bool:
    return form.fn == "const" and isinstance(form.detail[0], float)


class _Unifier:
    """Compares a pattern's form with a graph's, from a use of each towards the leaves."""

    def __init__(self, pattern: Pattern, form: NormalForm, leaves_only: bool) -> None:
        self.shape = _form_of(pattern)
        self.form = form
        self.leaves_only = leaves_only
        self.strict = _is_strict(pattern)
        self.vectors = pattern.vectors

    def with_outputs(self, bound: Binding, candidates: Iterable[int]) -> Binding:
        """`bound` with the pattern's further outputs, where they are among the candidates."""
        for goal in self.shape.outputs[1:]:
            ways = (w for c in candidates for w in self.unify(goal, Use(c, goal.layout), bound))
            bound = bound if goal.form in bound else next(ways, bound)
        return bound

    def unify(self, want: Use, have: Use, bound: Binding) -> Iterator[Binding]:
        """Every way to extend `bound` so that `want` of the pattern is `have` of the graph."""
        if want.form in bound:
            if bound[want.form] == have:
                yield bound
            return
        pattern, target = self.shape.forms[want.form], self.form.forms[have.form]
        extended = {**bound, want.form: have}
        if pattern.fn == "input":
            if self.may_be_input(want, have, bound):
                yield extended
        elif pattern.fn == "const":
            if target.fn == "const" and (_is_free_constant(pattern) or target.detail == pattern.detail):
                yield extended
        elif pattern.fn == "slice" and self.is_part(pattern, target, bound):
            yield extended
        elif (
            pattern.fn == target.fn
            and pattern.detail == target.detail
            and len(pattern.operands) == len(target.operands)
            and not (self.strict and have.layout and not want.layout)
        ):
            yield from self.operands(pattern, target.operands, extended)
            if pattern.fn in _COMMUTATIVE and len(pattern.operands) == 2:
                yield from self.operands(pattern, target.operands[::-1], extended)

    def operands(self, pattern: Form, have: tuple[Use, ...], bound: Binding) -> Iterator[Binding]:
        def extend(position: int, so_far: Binding) -> Iterator[Binding]:
            if position == len(have):
                yield so_far
                return
            for further in self.unify(pattern.operands[position], have[position], so_far):
                yield from extend(position + 1, further)

        return extend(0, bound)

    def may_be_input(self, want: Use, have: Use, bound: Binding) -> bool:
        if self.form.forms[have.form].fn == "const" or (self.leaves_only and not self.form.is_leaf(have.form)):
            return False
        if self.shape.forms[want.form].detail[0] in self.vectors and have.form not in self.form.vectors:
            return False
        others = {use.form for number, use in bound.items() if self.shape.forms[number].fn == "input"}
        return have.form not in others

    def is_part(self, pattern: Form, target: Form, bound: Binding) -> bool:
        """Whether `target` is the part of what the pattern slices, where that is itself a slice of something."""
        whole = bound.get(pattern.operands[0].form)
        if whole is None or whole.layout or target.fn != "slice":
            return False
        outer = self.form.forms[whole.form]
        if outer.fn != "slice" or outer.operands != target.operands:
            return False
        return part_of_part(outer.detail, pattern.detail) == target.detail
