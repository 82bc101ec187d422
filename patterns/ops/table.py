"""The operator table: everything the compiler knows about an operator, one row each.

Legality, lowering, the cost model and the documentation read these rows; emitters see the scalar expressions that are
made of them. Short lists of special cases are in `match.py`, `reference.py`, `agree.py` and `samples.py` here, and in
`fusion/choices/trial.py`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedOperator
from ..indexing import Extents, Index
from ..leaves import Ref, leaves
from ..nodes import OpNode
from ..scalar import Scalar
from ..specs import TensorSpec
from ..symbols import Dim
from .spellings import canonical


class Kind(enum.Enum):
    """What an operator does, as far as fusing is concerned."""

    POINTWISE = "pointwise"  # one element from one element of each operand, after broadcasting
    REDUCTION = "reduction"  # the elements along some dimensions to one element, or (softmax) to as many
    VIEW = "view"  # an element is an element of the one operand, at another index
    ELEMENT = "element"  # an element from its index and any operands' elements at any index (cat, pad, triu, arange)
    PRODUCT = "product"  # a sum of the products of two operands' elements (linear, matmul, bmm), or attention
    LIBRARY = "library"  # called, never fused: transposed convolutions, indexing
    EFFECT = "effect"  # writes to an existing tensor, or draws random numbers; kept in order


CALLED = (Kind.LIBRARY, Kind.PRODUCT)  # whose results torch's libraries lay out as they choose
FUSABLE = (Kind.POINTWISE, Kind.REDUCTION, Kind.ELEMENT)  # what kernels hold, besides products; views come along


@dataclass(frozen=True, slots=True)
class Call:
    """One use of an operator, as a row's functions see it.

    Attributes:
        args: positional arguments with defaults filled in by the row's functions themselves; tensors as `Ref`s.
        kwargs: keyword arguments by name.
        inputs: specs of the tensor operands, in order.
        outputs: specs of the results.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def argument(self, position: int, name: str, default: Any) -> Any:
        """An argument given by position or by name, or its default."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def operand(self, position: int, name: str) -> int | None:
        """Which of `inputs` the tensor argument given by position or by name is; None where it is not given."""
        if position < len(self.args):
            given, before = self.args[position], self.args[:position]
        else:
            given = self.kwargs.get(name)
            before = (self.args, *(v for k, v in self.kwargs.items() if k < name))  # kwargs are sorted by name
        return sum(isinstance(x, Ref) for x in leaves(before)) if isinstance(given, Ref) else None


def covered(call: Call) -> str | None:
    """The `covers` of a row that covers every use."""
    return None


# An operand's element, in the compute dtype of the result: (which of the call's inputs, index) -> element. It is taken
# only where the Selects around it choose it, so the index may lie outside the operand elsewhere.
Read = Callable[[int, Index], Scalar]


@dataclass(frozen=True, slots=True)
class Run:
    """What the expression of a REDUCTION is made of: the elements of its first operand along the reduced dimensions.

    Attributes:
        x: the element: inside a Reduce or Scan the one at the column, outside the one at the result's index.
        position: where it stands among the elements reduced over, from 0, in row-major order; int64.
        others: elements of the further tensor operands, each broadcast to the first one; by position.
        extent: how many elements are reduced over.
    """

    x: Scalar
    position: Scalar
    others: tuple[Scalar, ...]
    extent: Dim


@dataclass(frozen=True, slots=True)
class Contraction:
    """What a PRODUCT adds up for one element of its result: `left * right`, for the summed index from 0 to `extent`.

    Attributes:
        left, right: which of the call's inputs, and its index over the result's index and the summed one.
        extent: how many products are added up.
        addend: an input that is added to the sum, with its index; None where there is none.
        alpha, beta: what the sum, and the addend, are multiplied by.
        inside: pairs of an index and a size: where an index is less than 0, or not less than its size, `left` is 0.
    """

    left: tuple[int, Index]
    right: tuple[int, Index]
    extent: Dim
    addend: tuple[int, Index] | None = None
    alpha: float | int = 1
    beta: float | int = 1
    inside: tuple[tuple[Dim, Dim], ...] = ()


@dataclass(frozen=True, slots=True)
class Attention:
    """What attention is for one element of its result: values weighted by the softmax of their keys' scores.

    A score is `scale` times the sum of query * key over the inner index. An index is over the result's index, the
    place (of a key and its value) and the inner index.

    Attributes:
        query, key, value: which of the call's inputs, and its index.
        inner, places: how far the inner index and the place run.
        scale: of the scores; None for one over the root of `inner`.
        mask: an input that is added to scores or, of bools, tells which places count; None where there is none.
        last: places past this one do not count; None for all of them.
    """

    query: tuple[int, Index]
    key: tuple[int, Index]
    value: tuple[int, Index]
    inner: Dim
    places: Dim
    scale: float | None = None
    mask: tuple[int, Index] | None = None
    last: Dim | None = None


@dataclass(frozen=True, slots=True)
class Operator:
    """A row of the table.

    Attributes:
        op: full name with overload, "aten.mul.Tensor".
        kind: what it does.
        expression: POINTWISE: builds the result element from the call's arguments, tensors replaced by the operand's
            element (a Scalar in the compute dtype). REDUCTION: (call, `Run`, number of the result) -> its element.
        unpromoted: POINTWISE: positions of tensor operands that keep their own dtype (masks).
        typed: POINTWISE: whether the expression takes the result's dtype, as its keyword `result`.
        narrows: POINTWISE: whether eager on CPUs rounds a number to the result's half precision before it computes.
        wide: POINTWISE: the position of the operand that eager on CPUs takes as it is where it is a 0-d tensor of a
            wider dtype than the result; it rounds those at other positions first.
        dims: REDUCTION: (call) -> the dimensions of the first operand that it runs over, ascending.
        keeps: REDUCTION: whether the first result has an element for each of the operand's, as a softmax has.
        index: VIEW: (call, index of the result, loop extents, number of the result) -> index of the operand.
        element: ELEMENT: (call, index of the result, loop extents, `Read`) -> the result's element, in any dtype.
        contraction: PRODUCT: (call, index of the result, summed index) -> what is added up.
        attention: PRODUCT: (call, index of the result, place, inner index) -> what is weighted by what, where a row
            has no contraction.
        covers: whether the row covers this use; else the reason it does not.
        note: numerics, for the documentation.
    """

    op: str
    kind: Kind
    expression: Callable[..., Scalar] | None = None
    unpromoted: tuple[int, ...] = ()
    typed: bool = False
    narrows: bool = False
    wide: int | None = None
    dims: Callable[[Call], tuple[int, ...]] | None = None
    keeps: bool = False
    index: Callable[[Call, Index, Extents, int], Index] | None = None
    element: Callable[[Call, Index, Extents, Read], Scalar] | None = None
    contraction: Callable[[Call, Index, Dim], Contraction] | None = None
    attention: Callable[[Call, Index, Dim, Dim], Attention] | None = None
    covers: Callable[[Call], str | None] = covered
    note: str = ""


Number = float | int | bool  # what a call may be given where a row's function takes an element

# What rows say of their precision.
EXACT = "exact up to the rounding of the result"
VECTOR = "within 2 ulp of float32 before the result is rounded"

TABLE: dict[str, Operator] = {}


def register(row: Operator) -> Operator:
    """Adds a row.

    Raises:
        ValueError: the operator has a row already.
    """
    if row.op in TABLE:
        raise ValueError(f"{row.op} has a row in the operator table already.")
    TABLE[row.op] = row
    return row


def pointwise(
    ops: str | Iterable[str],
    expression: Callable[..., Scalar],
    *,
    unpromoted: tuple[int, ...] = (),
    typed: bool = False,
    narrows: bool = False,
    wide: int | None = None,
    covers: Callable[[Call], str | None] = covered,
    note: str = "",
) -> None:
    """Registers overloads that share one expression; `ops` are names without "aten."."""
    for op in (ops,) if isinstance(ops, str) else ops:
        register(
            Operator(
                f"aten.{op}",
                Kind.POINTWISE,
                expression,
                unpromoted=unpromoted,
                typed=typed,
                narrows=narrows,
                wide=wide,
                covers=covers,
                note=note,
            )
        )


def lookup(op: str) -> Operator | None:
    """The row of an operator, which may go by another of its names; None where it has none."""
    return TABLE.get(op) or TABLE.get(canonical(op))


def row_of(op: str) -> Operator:
    """The row of an operator.

    Raises:
        UnsupportedOperator: it has none.
    """
    row = lookup(op)
    if row is None:
        raise UnsupportedOperator(
            f"The operator {op} has no row in the operator table.",
            remedy="It runs eagerly between kernels; see CONTRIBUTING.md, 'Adding an operator'.",
        )
    return row


def kind_of(op: str) -> Kind:
    """The kind of an operator; one without a row counts as a library call."""
    row = lookup(op)
    return row.kind if row else Kind.LIBRARY


def call_of(node: OpNode, spec: dict[str, TensorSpec]) -> Call:
    """`node` as the table's functions see it."""
    return Call(node.args, dict(node.kwargs), tuple(spec[r] for r in node.refs), tuple(spec[o] for o in node.outputs))
