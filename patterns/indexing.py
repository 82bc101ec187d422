"""Index arithmetic: which element of an input an element of a view is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy

from . import symbols
from .symbols import Dim

Index = tuple[Dim, ...]
Extents = Mapping[str, Dim]  # loop index name -> how far it runs


def divide(value: Dim, by: Dim, extents: Extents) -> tuple[Dim, Dim]:
    """Quotient and remainder of a non-negative index expression, simplified with what the loop extents tell.

    `divide(i*64 + d, 64, {"d": 64})` is `(i, d)`.
    """
    if symbols.same(by, 1):
        return value, 0
    quotient: Dim = 0
    rest: Dim = 0
    for term in sympy.Add.make_args(sympy.expand(sympy.sympify(value))):
        ratio = sympy.cancel(term / by)
        if sympy.denom(ratio) == 1:
            quotient = quotient + ratio
        else:
            rest = rest + term
    if below(rest, by, extents):
        return symbols.as_dim(quotient), symbols.as_dim(rest)
    return (
        symbols.as_dim(quotient + symbols.floor_div(symbols.as_dim(rest), by)),
        symbols.modulo(symbols.as_dim(rest), by),
    )


def below(value: Dim, bound: Dim, extents: Extents) -> bool:
    """Whether an index expression is provably smaller than `bound`."""
    if isinstance(value, int) or value.is_Integer:
        return isinstance(bound, int) and int(value) < bound
    highest = value
    for sym in value.free_symbols:
        if sym.name in extents:
            highest = highest.xreplace({sym: sympy.sympify(extents[sym.name]) - 1})
    gap = sympy.expand(sympy.sympify(bound) - highest)
    return bool(gap.is_positive)


def linearize(index: Sequence[Dim], shape: Sequence[Dim]) -> Dim:
    """The row-major position of `index` in `shape`."""
    position: Dim = 0
    for i, size in zip(index, shape, strict=True):
        position = position * size + i
    return symbols.as_dim(sympy.expand(position)) if isinstance(position, sympy.Expr) else position


def delinearize(position: Dim, shape: Sequence[Dim], extents: Extents) -> Index:
    """The index in `shape` of a row-major position."""
    index: list[Dim] = []
    for k, size in reversed(list(enumerate(shape))):
        if isinstance(size, int) and size == 1:
            index.append(0)
        elif k == 0 or all(isinstance(s, int) and s == 1 for s in shape[:k]):
            index.append(position)
            position = 0
        else:
            position, low = divide(position, size, extents)
            index.append(low)
    return tuple(reversed(index))


def reshape_index(index: Index, out_shape: Sequence[Dim], in_shape: Sequence[Dim], extents: Extents) -> Index:
    """Where element `index` of a reshape to `out_shape` lies in the tensor of `in_shape`.

    Dimensions are matched in groups of provably equal size, so that `[b, s, h*d] -> [b, s, h, d]` touches only the
    last one and stays linear.
    """
    result: list[Dim] = []
    i = o = 0
    while i < len(in_shape) or o < len(out_shape):
        i_end, o_end = _group(in_shape, out_shape, i, o)
        group_in, group_out = in_shape[i:i_end], out_shape[o:o_end]
        if len(group_in) == len(group_out) == 1:
            result.append(index[o] if not symbols.same(group_in[0], 1) else 0)
        elif group_in:
            result.extend(delinearize(linearize(index[o:o_end], group_out), group_in, extents))
        i, o = i_end, o_end
    return tuple(result)


def _group(in_shape: Sequence[Dim], out_shape: Sequence[Dim], i: int, o: int) -> tuple[int, int]:
    """The shortest runs of dimensions from `i` and `o` on whose products are provably equal; else all the rest."""
    for length in range(1, len(in_shape) - i + len(out_shape) - o + 1):
        for taken in range(max(0, length - (len(out_shape) - o)), min(length, len(in_shape) - i) + 1):
            given = length - taken
            if taken == 0 and given == 0:
                continue
            have, want = symbols.product(in_shape[i : i + taken]), symbols.product(out_shape[o : o + given])
            if symbols.same(have, want):
                return i + taken, o + given
    return len(in_shape), len(out_shape)


def broadcast_index(index: Index, out_shape: Sequence[Dim], in_shape: Sequence[Dim]) -> Index:
    """Where element `index` of the broadcast shape lies in an operand of `in_shape`."""
    skip = len(out_shape) - len(in_shape)
    return tuple(
        0 if isinstance(size, int) and size == 1 and not (isinstance(out, int) and out == 1) else at
        for at, size, out in zip(index[skip:], in_shape, out_shape[skip:], strict=True)
    )


def offset(index: Index, strides: Sequence[Dim]) -> Dim:
    """The element offset of `index` under `strides`."""
    total: Dim = 0
    for at, stride in zip(index, strides, strict=True):
        total = total + at * stride
    return symbols.as_dim(sympy.expand(total)) if isinstance(total, sympy.Expr) else total
