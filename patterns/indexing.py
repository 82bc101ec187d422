"""Index arithmetic: which element of an input an element of a view is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import sympy
from torch.utils._sympy.functions import FloorDiv, Mod, PythonMod

from . import symbols
from .errors import LoweringError
from .symbols import Dim

Index = tuple[Dim, ...]
Extents = Mapping[str, Dim]  # loop index name -> how far it runs


def divide(value: Dim, by: Dim, extents: Extents) -> tuple[Dim, Dim]:
    """Quotient and remainder of a non-negative index expression, simplified with what the loop extents tell.

    `divide(i*64 + d, 64, {"d": 64})` is `(i, d)`. Whatever is still divided is non-negative where `value` is, since
    emitted code divides with truncation.

    Raises:
        LoweringError: "index": part of `value` may be negative by an amount that is not a number.
    """
    if by == 0 or symbols.same(by, 1):  # an empty dimension has no element that an index could be of
        return value, 0
    quotient: Dim = 0
    rest: Dim = 0
    for term in sympy.Add.make_args(sympy.expand(sympy.sympify(value))):
        ratio = sympy.cancel(term / by)
        if sympy.denom(ratio) == 1:
            quotient = quotient + ratio
        else:
            rest = rest + term
    if quotient != 0 and not reaches(rest, 0, extents):
        lowest = _bound(rest, extents, highest=False)
        if lowest is None or not lowest.is_Integer or not isinstance(by, int):
            raise LoweringError("index", f"The index {value} cannot be divided by {by}: {rest} may be negative.")
        lift = -(int(lowest) // by)
        quotient, rest = quotient - lift, rest + lift * by
    if below(rest, by, extents):
        return symbols.as_dim(quotient), symbols.as_dim(rest)
    return (
        symbols.as_dim(quotient + symbols.floor_div(symbols.as_dim(rest), by)),
        symbols.modulo(symbols.as_dim(rest), by),
    )


def below(value: Dim, bound: Dim, extents: Extents) -> bool:
    """Whether an index expression is provably smaller than `bound` for every loop index."""
    highest = _bound(sympy.expand(sympy.sympify(value)), extents, highest=True)
    return highest is not None and _at_least(bound - highest, 1)


def reaches(value: Dim, bound: Dim, extents: Extents) -> bool:
    """Whether an index expression is provably at least `bound` for every loop index."""
    lowest = _bound(sympy.expand(sympy.sympify(value)), extents, highest=False)
    return lowest is not None and _at_least(lowest - bound, 0)


def _bound(value: sympy.Expr, extents: Extents, *, highest: bool) -> sympy.Expr | None:
    """An upper or lower bound of an index expression, over size symbols only; None where there is no simple one."""
    if isinstance(value, sympy.Symbol):
        if value.name not in extents:
            return value
        return sympy.sympify(extents[value.name]) - 1 if highest else sympy.Integer(0)
    if not value.args:
        return value
    if isinstance(value, sympy.Mul) and value.args[0].is_negative:
        positive = _bound(-value, extents, highest=not highest)
        return None if positive is None else -positive
    if isinstance(value, (Mod, PythonMod)):
        return value.args[1] - 1 if highest else sympy.Integer(0)
    if not isinstance(value, (sympy.Add, sympy.Mul, sympy.Pow, FloorDiv)):
        return None
    parts = [_bound(part, extents, highest=highest) for part in value.args]
    if any(part is None for part in parts) or (isinstance(value, FloorDiv) and not _at_least(parts[0], 0)):
        return None
    return value.func(*parts)


def _at_least(value: Dim, bound: int) -> bool:
    """Whether a polynomial in size symbols is provably at least `bound`, given that each symbol is at least 1."""
    lowest = sympy.Integer(0)
    for term in sympy.Add.make_args(sympy.expand(sympy.sympify(value))):
        number, factors = term.as_coeff_Mul()
        if factors != 1 and (number < 0 or not factors.is_polynomial(*factors.free_symbols)):
            return False
        lowest += number
    return lowest.is_extended_real is True and bool(lowest >= bound)  # a quotient by a size of 0 is no number


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
    return joined(symbols.as_dim(sympy.expand(total))) if isinstance(total, sympy.Expr) else total


def joined(value: Dim) -> Dim:
    """`value` with quotients and remainders of one division put together again: `(p // q) * q + p % q` is `p`."""
    if not isinstance(value, sympy.Expr) or not value.has(Mod, PythonMod):
        return value
    for remainder in sorted(value.atoms(Mod, PythonMod), key=str):
        dividend, by = remainder.args
        quotient = sympy.sympify(symbols.floor_div(dividend, by))
        factor = value.coeff(remainder)
        if factor != 0 and sympy.expand(value.coeff(quotient) - factor * by) == 0:
            rest = value - factor * remainder - factor * by * quotient
            return joined(symbols.as_dim(sympy.expand(rest + factor * dividend)))
    return value
