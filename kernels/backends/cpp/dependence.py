"""Which sizes and expressions run with the column index."""

from __future__ import annotations

from collections.abc import Iterable

import sympy

from fusion.patterns import scalar, symbols
from fusion.patterns.scalar import Load, Scalar, Scanned, Select, Size
from fusion.patterns.symbols import Dim


def mentions_column(dims: Iterable[Dim]) -> bool:
    """Whether any of `dims` runs with the column index."""
    return any(s.name == scalar.COLUMN for s in symbols.free_symbols(dims))


def split_column(dim: Dim) -> tuple[Dim, Dim] | None:
    """`(a, b)` with `dim = a*column + b` and neither of them running with the column; None if there is no such form."""
    if not mentions_column([dim]):
        return 0, dim
    expanded = sympy.expand(dim)
    (column,) = (s for s in expanded.free_symbols if s.name == scalar.COLUMN)
    step: Dim = 0
    rest: Dim = 0
    for term in sympy.Add.make_args(expanded):
        if column in term.free_symbols:
            step = step + term / column
        else:
            rest = rest + term
    step, rest = symbols.as_dim(sympy.sympify(step)), symbols.as_dim(sympy.sympify(rest))
    return None if mentions_column([step]) else (step, rest)


class Dependence:
    """Tells which expressions run with the column."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[Scalar, bool]] = {}  # the node is kept, so that its id stays its own

    def __call__(self, root: Scalar) -> bool:
        for node in scalar.walk(root):
            if id(node) not in self._known:
                below = isinstance(node, Scanned) or any(self._known[id(c)][1] for c in scalar.children(node))
                self._known[id(node)] = (node, below or mentions_column(_dims(node)))
        return self._known[id(root)][1]


def _dims(node: Scalar) -> tuple[Dim, ...]:
    match node:
        case Load(offset=offset):
            return (offset,)
        case Size(dim=dim):
            return (dim,)
        case Select(index=index, bounds=bounds):
            return (index, *bounds)
        case _:
            return ()
