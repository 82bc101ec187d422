"""Index maps against torch's own views, and the bounds they are simplified by."""

from __future__ import annotations

import itertools
import math

import pytest
import sympy
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._sympy.functions import Max

from fusion.patterns import indexing, symbols
from fusion.patterns.errors import LoweringError

ROW, J = symbols.index_symbol("i"), symbols.index_symbol("j")
S, T = symbols.symbol("s"), symbols.symbol("t")

untimed = settings(deadline=None)  # how long an example takes depends on what else the machine does


def value(dim: symbols.Dim, **at: int) -> int:
    return symbols.evaluate(dim, at)


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Two shapes of as many elements: the same prime factors, grouped twice."""
    factors = draw(st.lists(st.sampled_from((1, 2, 2, 3, 5)), max_size=4))

    def grouped(order: list[int]) -> tuple[int, ...]:
        cuts = sorted(draw(st.lists(st.integers(0, len(order)), max_size=3)))
        return tuple(math.prod(order[a:b]) for a, b in itertools.pairwise([0, *cuts, len(order)]))

    return grouped(factors), grouped(draw(st.permutations(factors)))


@untimed
@given(reshapes())
def test_reshape_index_is_torchs_reshape(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    in_shape, out_shape = shapes
    reshaped = torch.arange(math.prod(in_shape)).reshape(out_shape)
    names = [f"k{d}" for d in range(len(out_shape))]
    extents = dict(zip(names, out_shape, strict=True))
    index = tuple(0 if n == 1 else symbols.index_symbol(k) for k, n in extents.items())
    mapped = indexing.reshape_index(index, out_shape, in_shape, extents)
    position = indexing.linearize(mapped, in_shape)
    for point in itertools.product(*map(range, out_shape)):
        at = dict(zip(names, point, strict=True))
        assert value(position, **at) == int(reshaped[point])
        assert all(0 <= value(m, **at) < n for m, n in zip(mapped, in_shape, strict=True))


@untimed
@given(
    st.integers(1, 9), st.integers(0, 40), st.integers(0, 40), st.integers(0, 9), st.integers(1, 7), st.integers(1, 7)
)
def test_divide_is_division(by: int, a: int, b: int, shift: int, rows: int, columns: int) -> None:
    whole = a * ROW + b * J + shift
    quotient, rest = indexing.divide(symbols.as_dim(whole), by, {"i": rows, "j": columns})
    for i, j in itertools.product(range(rows), range(columns)):
        assert divmod(a * i + b * j + shift, by) == (value(quotient, i=i, j=j), value(rest, i=i, j=j))


@untimed
@given(st.integers(2, 8), st.integers(1, 20), st.integers(1, 4), st.integers(2, 8))
def test_divided_parts_stay_non_negative_where_the_index_does(by: int, shift: int, rows: int, columns: int) -> None:
    """Emitted code divides with truncation: -1 / 8 would be 0 there, not -1."""
    whole = by * ROW + J - shift
    quotient, rest = indexing.divide(whole, by, {"i": rows, "j": columns})
    for i, j in itertools.product(range(rows), range(columns)):
        if by * i + j >= shift:
            assert divmod(by * i + j - shift, by) == (value(quotient, i=i, j=j), value(rest, i=i, j=j))
            for node in sympy.preorder_traversal(sympy.sympify(quotient) + sympy.sympify(rest)):
                if isinstance(node, (symbols.FloorDiv, symbols.Mod)):
                    assert value(symbols.as_dim(node.args[0]), i=i, j=j) >= 0


def test_divide_simplifies_with_extents() -> None:
    assert indexing.divide(64 * ROW + J, 64, {"i": S, "j": 64}) == (ROW, J)
    assert indexing.divide(S * ROW + J, S, {"i": 4, "j": S}) == (ROW, J)
    assert indexing.divide(S * T * ROW + T * J, T, {"i": 4, "j": S}) == (S * ROW + J, 0)
    assert indexing.divide(ROW, 1, {}) == (ROW, 0)
    quotient, rest = indexing.divide(64 * ROW + J, 64, {"i": S, "j": 65})
    assert (value(quotient, i=2, j=64), value(rest, i=2, j=64)) == (3, 0)


def test_divide_refuses_what_may_be_negative_by_an_unknown_amount() -> None:
    with pytest.raises(LoweringError, match="may be negative"):
        indexing.divide(8 * ROW + J - S, 8, {"i": 4, "j": 8})


@untimed
@given(st.integers(-9, 40), st.integers(1, 9), st.integers(-3, 9), st.integers(1, 9), st.integers(-20, 20))
def test_bounds_are_never_claimed_wrongly(bound: int, modulus: int, factor: int, extent: int, shift: int) -> None:
    expressions = (
        factor * J + shift,
        symbols.modulo(J + 9, modulus) * abs(factor) + shift,
        symbols.floor_div(J, modulus),
    )
    for expression in expressions:
        values = [value(symbols.as_dim(expression), j=j) for j in range(extent)]
        assert not indexing.below(expression, bound, {"j": extent}) or max(values) < bound
        assert not indexing.reaches(expression, bound, {"j": extent}) or min(values) >= bound


def test_bounds_of_symbolic_sizes() -> None:
    assert indexing.below(J, S, {"j": S}) and not indexing.below(J, S, {"j": T})
    assert indexing.below(ROW * S + J, 4 * S, {"i": 4, "j": S})
    assert indexing.below(J, S + 3, {"j": S}) and not indexing.below(J + 1, S, {"j": S})
    assert indexing.reaches(J + S, S, {"j": 4}) and not indexing.reaches(J, S, {"j": 4})
    assert indexing.reaches(S, 1, {}) and not indexing.reaches(S, 2, {})
    assert not indexing.below(symbols.modulo(J, 8), 7, {"j": 17})  # 7 is reached, though not at the last index


def test_reshape_keeps_equal_dimensions_apart() -> None:
    extents = {"i": S, "j": 64}
    assert indexing.reshape_index((ROW, J), (S, 64), (S, 1, 64), extents) == (ROW, 0, J)
    merged = indexing.reshape_index((ROW, J), (S, 64), (S, 4, 16), extents)
    assert merged[0] == ROW and [value(m, i=0, j=35) for m in merged[1:]] == [2, 3]


@untimed
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.data())
def test_broadcast_index_is_torchs_expand(shape: list[int], data: st.DataObject) -> None:
    operand = [data.draw(st.sampled_from((1, n))) for n in shape[data.draw(st.integers(0, len(shape))) :]]
    tensor = torch.arange(math.prod(operand)).reshape(operand)
    expanded = tensor.expand(shape)
    index = tuple(symbols.index_symbol(f"k{d}") for d in range(len(shape)))
    offset = indexing.offset(indexing.broadcast_index(index, shape, operand), tensor.stride())
    for point in itertools.product(*map(range, shape)):
        assert value(offset, **{f"k{d}": p for d, p in enumerate(point)}) == int(expanded[point])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.lists(st.integers(0, 60), min_size=4, max_size=4))
def test_the_offset_of_a_position_is_the_same_put_together_or_not(shape: list[int], strides: list[int]) -> None:
    j, count = symbols.index_symbol("j"), math.prod(shape)
    index = indexing.delinearize(j, shape, {"j": count})
    joined = indexing.offset(index, strides[: len(shape)])
    for at, where in enumerate(itertools.product(*map(range, shape))):
        expected = sum(i * s for i, s in zip(where, strides, strict=False))
        assert symbols.evaluate(joined, {"j": at}) == expected


def test_neighbouring_dimensions_of_a_dense_tensor_are_one() -> None:
    j, s0 = symbols.index_symbol("j"), symbols.symbol("s0")
    index = indexing.delinearize(j, (3, s0, 4), {"j": 12 * s0})
    assert indexing.offset(index, (4 * s0, 4, 1)) == j
    assert indexing.offset(index, (8 * s0, 8, 2)) == 2 * j
    assert indexing.offset(index, (5 * s0, 4, 1)) != j
    assert indexing.joined(7) == 7


def test_a_stride_counts_an_empty_dimension_as_one_only_where_there_is_one() -> None:
    size = symbols.symbol("s0") - 4
    assert symbols.nonempty(Max(1, size) * 3) == size * 3
    assert symbols.nonempty(size) == size
    assert symbols.nonempty(7) == 7
    assert symbols.nonempty(Max(size, symbols.symbol("s1"))) == Max(size, symbols.symbol("s1"))
