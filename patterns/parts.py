"""Parts of a dimension, as fractions of its size; so that the halves of any size are the same halves."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import sympy
from torch.utils._sympy.functions import FloorDiv

from .symbols import Dim


def part_of_part(outer: tuple[Any, ...], inner: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """The slice (dimension, from, to) that slicing by `outer` and then by `inner` takes; None where none is known."""
    fractions = (*outer[1:], *inner[1:])
    if outer[0] != inner[0] or not all(isinstance(x, Fraction) for x in fractions):
        return None
    low, size = outer[1], outer[2] - outer[1]
    return outer[0], low + inner[1] * size, low + inner[2] * size


def _quotient(a: sympy.Expr, b: sympy.Expr) -> sympy.Expr:
    """a / b for a // b, and for its like that rounds up: (a + b - 1) // b."""
    rest = a.as_coeff_Add()[0]
    return (a - rest) / b if rest == b - 1 else a / b


def fraction(at: Dim, size: Dim) -> Any:
    """`at / size` as a Fraction; where that is no number, as text. Halves of a symbolic size count as exact."""
    if isinstance(at, int) and isinstance(size, int):
        return Fraction(at, size) if size else Fraction(0)
    exact = sympy.sympify(at).replace(FloorDiv, _quotient)
    ratio = sympy.cancel(exact / sympy.sympify(size))
    return Fraction(int(ratio.p), int(ratio.q)) if ratio.is_Rational else str(ratio)
