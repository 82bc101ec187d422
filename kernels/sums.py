"""One element of a matrix product or of attention, as a scalar expression over its operands' elements."""

from __future__ import annotations

from collections.abc import Callable

import torch

from fusion.patterns import scalar, symbols
from fusion.patterns.indexing import Index
from fusion.patterns.nodes import OpNode
from fusion.patterns.ops import Call, Operator
from fusion.patterns.scalar import COLUMN, INNER, Dot, Reduce, Scalar, Select
from fusion.patterns.symbols import Dim

At = Callable[[str, Index, Dim], Scalar]  # the element of a value at an index, where the column runs so far


def product(at: At, node: OpNode, row: Operator, call: Call, index: Index) -> Scalar:
    """The sum of the products of two operands' elements, and what is added to it."""
    assert row.contraction is not None
    summed = row.contraction(call, index, symbols.index_symbol(COLUMN))
    dtype = scalar.compute_type(call.outputs[0].dtype)

    def element(operand: tuple[int, Index], column: Dim) -> Scalar:
        return scalar.cast(at(node.refs[operand[0]], operand[1], column), dtype)

    left = element(summed.left, summed.extent)
    zero = scalar.constant(0.0, dtype)
    for at_index, size in summed.inside:
        left = Select(dtype, at_index, (0, size), (zero, left, zero))
    total: Scalar = Reduce(dtype, "sum", left * element(summed.right, summed.extent), summed.extent)
    total = total if summed.alpha == 1 else scalar.apply("mul", total, summed.alpha)
    if summed.addend is None:
        return total
    addend = element(summed.addend, 1)
    return total + (addend if summed.beta == 1 else scalar.apply("mul", addend, summed.beta))


def attention(at: At, node: OpNode, row: Operator, call: Call, index: Index) -> Scalar:
    """Values weighted by exponentials of scores less the highest one; a row of which no place counts becomes 0."""
    assert row.attention is not None
    what = row.attention(call, index, symbols.index_symbol(COLUMN), symbols.index_symbol(INNER))
    dtype = scalar.compute_type(call.outputs[0].dtype)

    def element(operand: tuple[int, Index]) -> Scalar:
        return scalar.cast(at(node.refs[operand[0]], operand[1], what.places), dtype)

    scale = what.scale if what.scale is not None else float(what.inner) ** -0.5
    score = scalar.apply("mul", Dot(dtype, element(what.query) * element(what.key), what.inner), scale)
    nowhere, zero = scalar.constant(float("-inf"), dtype), scalar.constant(0.0, dtype)
    if what.mask is not None and call.inputs[what.mask[0]].dtype is torch.bool:
        score = scalar.apply("where", at(node.refs[what.mask[0]], what.mask[1], what.places), score, nowhere)
    elif what.mask is not None:
        score = score + element(what.mask)
    if what.last is not None:
        score = Select(dtype, symbols.index_symbol(COLUMN), (what.last + 1,), (score, nowhere))
    highest = Reduce(dtype, "max", score, what.places)
    empty = scalar.apply("eq", highest, float("-inf"))
    weight = scalar.apply("exp", score - scalar.apply("where", empty, zero, highest))
    total = Reduce(dtype, "sum", weight, what.places)
    weighted = Reduce(dtype, "sum", weight * element(what.value), what.places)
    return scalar.apply("where", empty, zero, weighted / total)
