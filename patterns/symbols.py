"""Sizes as numbers or symbolic expressions, and the two ways to print them.

A `Dim` is a plain int, or a sympy expression over positive integer symbols. Index expressions are never negative where
they are used, so floor division and remainder print as the C operators; between sizes they are Python's.
"""

from __future__ import annotations

import ast
import functools
import math
import operator
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

import sympy
from torch.utils._sympy.functions import CleanDiv, FloorDiv, Max, Min, Mod, PythonMod

from .errors import GraphError

Dim: TypeAlias = int | sympy.Expr

# What `render` prints, and what it stands for; torch's classes print some of them as operators.
_FUNCTIONS: dict[str, Callable[..., sympy.Expr]] = {
    "FloorDiv": FloorDiv, "CleanDiv": CleanDiv, "Mod": Mod, "PythonMod": PythonMod, "Max": Max, "Min": Min,
}  # fmt: skip
_OPERATORS: dict[type[ast.operator], Callable[..., sympy.Expr]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Pow: operator.pow,
    ast.Div: operator.truediv, ast.FloorDiv: FloorDiv, ast.Mod: Mod,
}  # fmt: skip


@functools.cache
def symbol(name: str) -> sympy.Symbol:
    """The symbol called `name`; one object per name, a positive integer to sympy's simplifier."""
    return sympy.Symbol(name, integer=True, positive=True)


@functools.cache
def index_symbol(name: str) -> sympy.Symbol:
    """A loop index: a non-negative integer."""
    return sympy.Symbol(name, integer=True, nonnegative=True)


def as_dim(value: object) -> Dim:
    """`value` as a Dim: sympy integers become ints, torch SymInts become their expression."""
    if isinstance(value, bool):
        raise GraphError(f"A size is an integer or an expression, not the bool {value!r}.")
    if isinstance(value, int):
        return value
    node = getattr(value, "node", None)
    if node is not None and hasattr(node, "expr"):
        return as_dim(node.expr)
    if isinstance(value, sympy.Expr):
        return int(value) if value.is_Integer else value
    raise GraphError(f"A size is an integer or an expression, not {value!r} of type {type(value).__name__}.")


def floor_div(numerator: Dim, denominator: Dim) -> Dim:
    """Floor division of non-negative sizes."""
    return as_dim(FloorDiv(sympy.sympify(numerator), sympy.sympify(denominator)))


def modulo(numerator: Dim, denominator: Dim) -> Dim:
    """Remainder of non-negative sizes."""
    if isinstance(numerator, int) and isinstance(denominator, int):
        return numerator % denominator
    return as_dim(Mod(sympy.sympify(numerator), sympy.sympify(denominator)))


def product(dims: Iterable[Dim]) -> Dim:
    """The product of sizes; 1 for none."""
    total: Dim = 1
    for dim in dims:
        total = total * dim
    return as_dim(total)


def same(left: Dim, right: Dim) -> bool:
    """Whether two sizes are provably equal for all values of their symbols."""
    if left == right or (isinstance(left, int) and isinstance(right, int)):
        return bool(left == right)
    return bool(sympy.expand(left - right) == 0)


def nonempty(stride: Dim) -> Dim:
    """A stride as it is where no size is 0: torch counts a size of 0 as 1 in strides, and writes Max(1, size)."""
    if isinstance(stride, int):
        return stride
    counted = [m for m in stride.atoms(Max) if len(m.args) == 2 and sympy.Integer(1) in m.args]
    return as_dim(stride.xreplace({m: m.args[m.args[0] == 1] for m in counted}))


def free_symbols(dims: Iterable[Dim]) -> tuple[sympy.Symbol, ...]:
    """Every symbol that occurs in `dims`, sorted by name."""
    found: set[sympy.Symbol] = set()
    for dim in dims:
        if isinstance(dim, sympy.Expr):
            found |= dim.free_symbols
    return tuple(sorted(found, key=lambda s: s.name))


def substitute(dim: Dim, replacements: Mapping[sympy.Expr, Dim]) -> Dim:
    """`dim` with symbols replaced, simultaneously."""
    if isinstance(dim, int):
        return dim
    return as_dim(dim.xreplace({k: sympy.sympify(v) for k, v in replacements.items()}))


def evaluate(dim: Dim, values: Mapping[str, int]) -> int:
    """The number `dim` stands for, given the value of each symbol by name."""
    if isinstance(dim, int):
        return dim
    missing = [s.name for s in dim.free_symbols if s.name not in values]
    if missing:
        raise GraphError(f"No value for the size symbols {sorted(missing)} in {dim}.")
    found = _number(dim, values)
    return (
        found if found is not None else int(dim.xreplace({s: sympy.Integer(values[s.name]) for s in dim.free_symbols}))
    )


def _number(dim: sympy.Expr, values: Mapping[str, int]) -> int | None:
    """`evaluate` for what most sizes are made of, without building expressions; None for anything else."""
    if isinstance(dim, sympy.Symbol):
        return int(values[dim.name])
    if isinstance(dim, sympy.Integer):
        return int(dim)
    if not isinstance(dim, (sympy.Add, sympy.Mul, FloorDiv, Mod)):
        return None
    parts: list[int] = []
    for argument in dim.args:
        part = _number(argument, values)
        if part is None:
            return None
        parts.append(part)
    if isinstance(dim, sympy.Add):
        return sum(parts)
    if isinstance(dim, sympy.Mul):
        return math.prod(parts)
    numerator, denominator = parts
    if not denominator:
        return None
    return numerator // denominator if isinstance(dim, FloorDiv) else numerator % denominator


@functools.lru_cache(maxsize=1 << 16)  # printing is most of the time a digest takes
def render(dim: Dim) -> str:
    """The canonical text of a size: what digests and JSON use; `parse` reads it back."""
    return str(dim)


def parse(text: str | int) -> Dim:
    """Reads what `render` wrote; evaluates nothing else.

    Raises:
        GraphError: `text` is no size expression.
    """
    if isinstance(text, int):
        return text
    try:
        return as_dim(_read(ast.parse(text, mode="eval").body))
    except SyntaxError as error:
        raise GraphError(f"{text!r} is no size expression.") from error


def _read(node: ast.expr) -> sympy.Expr:
    match node:
        case ast.Constant(value=int(value)):
            return sympy.Integer(value)
        case ast.Name(id=name):
            return symbol(name)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_read(operand)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _OPERATORS:
            return _OPERATORS[type(op)](_read(left), _read(right))
        case ast.Call(func=ast.Name(id=name), args=args, keywords=[]) if name in _FUNCTIONS:
            return _FUNCTIONS[name](*map(_read, args))
    raise GraphError(f"{ast.unparse(node)!r} is no part of a size expression.")


def print_python(dim: Dim, rename: Callable[[str], str] = lambda name: name) -> str:
    """`dim` as Python (and Triton) source."""
    return _Printer("//", rename).text(dim)


def printable(dim: Dim) -> bool:
    """Whether plans and kernels can compute a size from its symbols."""
    try:
        print_python(dim)
    except GraphError:
        return False
    return True


def print_c(dim: Dim, rename: Callable[[str], str] = lambda name: name) -> str:
    """`dim` as C source over 64-bit integers; index expressions are correct for non-negative operands only."""
    return _Printer("/", rename).text(dim)


def _may_be_negative(dim: sympy.Expr) -> bool:
    """Whether a quotient or remainder may have an operand below zero.

    Of those with an index, that is a quotient that takes something away: (16 - i) // 8, where 16 - i is never below 0,
    becomes -i // 8 + 2.
    """
    whole, by = dim.args
    if whole.is_nonnegative and by.is_positive:
        return False
    if isinstance(dim, FloorDiv) and any(term.could_extract_minus_sign() for term in sympy.Add.make_args(whole)):
        return True
    return all(s.is_positive for s in dim.free_symbols)


class _Printer:
    def __init__(self, divide: str, rename: Callable[[str], str]) -> None:
        self.divide = divide
        self.rename = rename

    def text(self, dim: Dim) -> str:
        if isinstance(dim, int) or dim.is_Integer:
            return str(int(dim))
        if isinstance(dim, sympy.Symbol):
            return self.rename(dim.name)
        if isinstance(dim, sympy.Add):
            return "(" + " + ".join(self.text(a) for a in dim.as_ordered_terms()) + ")"
        if isinstance(dim, sympy.Mul):
            return "(" + "*".join(self.text(a) for a in dim.args) + ")"
        if isinstance(dim, sympy.Pow) and dim.exp.is_Integer and int(dim.exp) > 0:
            return "(" + "*".join([self.text(dim.base)] * int(dim.exp)) + ")"
        if isinstance(dim, (FloorDiv, Mod, PythonMod)) and _may_be_negative(dim):
            return self._rounded_down(dim)
        if isinstance(dim, (FloorDiv, CleanDiv)):
            return f"({self.text(dim.args[0])} {self.divide} {self.text(dim.args[1])})"
        if isinstance(dim, (Mod, PythonMod)):
            return f"({self.text(dim.args[0])} % {self.text(dim.args[1])})"
        if isinstance(dim, (Max, Min)):
            compare = ">" if isinstance(dim, Max) else "<"
            return functools.reduce(lambda a, b: self._choose(a, b, compare), map(self.text, dim.args))
        raise GraphError(f"A size expression of kind {type(dim).__name__} cannot be printed: {dim}.")

    def _rounded_down(self, dim: sympy.Expr) -> str:
        """A quotient or remainder as Python's, also where the language rounds towards zero."""
        whole, by = map(self.text, dim.args)
        rest = f"(({whole} % {by} + {by}) % {by})"
        return f"(({whole} - {rest}) {self.divide} {by})" if isinstance(dim, FloorDiv) else rest

    def _choose(self, a: str, b: str, compare: str) -> str:
        if self.divide == "//":
            return f"{'max' if compare == '>' else 'min'}({a}, {b})"
        return f"({a} {compare} {b} ? {a} : {b})"
