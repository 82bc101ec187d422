"""Product rows: matrix products, each a sum over one index of the products of two operands' elements.

Half precision and float32 are added up in float32, and the sum is rounded once, as torch does it. Products of
integers and complex numbers stay library calls; so do those of float64, as nothing more exact could prove a kernel's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from .. import indexing, symbols
from ..indexing import Index
from ..symbols import Dim
from .table import Attention, Call, Contraction, Kind, Operator, register

FLOATS = (torch.bfloat16, torch.float16, torch.float32)
_NOTE = "summed in float32, rounded once"


def _covers(*ranks: int, addend: bool = False) -> Callable[[Call], str | None]:
    """The `covers` of a row whose factors have such ranks; -1 stands for 2 or more."""

    def covers(call: Call) -> str | None:
        dtypes = {spec.dtype for spec in (*call.inputs, *call.outputs)}
        if len(dtypes) > 1 or not dtypes <= set(FLOATS):
            return f"a product of {', '.join(sorted(map(str, dtypes)))}; kernels multiply float32 or half precision"
        if any(isinstance(x, torch.dtype) for x in (*call.args, *call.kwargs.values())):
            return "a product with a dtype for its result"
        factors = call.inputs[1:3] if addend else call.inputs[:2]
        for spec, rank in zip(factors, ranks, strict=True):
            if len(spec.shape) != rank if rank > 0 else len(spec.shape) < 2:
                return f"an operand with {len(spec.shape)} dimensions"
        if any(isinstance(n, int) and n == 0 for spec in call.inputs for n in spec.shape):
            return "an operand without elements"
        if factors[0].shape[-1] == 1:
            return "a product of a column and a row, which adds nothing up"
        if addend and not all(isinstance(call.kwargs.get(k, 1), (int, float)) for k in ("alpha", "beta")):
            return "a factor that is no number"
        return None

    return covers


def _linear(call: Call, index: Index, k: Dim) -> Contraction:
    """x[..., k] * weight[n, k], plus bias[n]."""
    x = call.inputs[0]
    bias = (2, (index[-1],)) if len(call.inputs) > 2 else None
    return Contraction((0, (*index[:-1], k)), (1, (index[-1], k)), x.shape[-1], bias)


def _matmul(call: Call, index: Index, k: Dim) -> Contraction:
    """a[..., m, k] * b[..., k, n], dimensions before the last two broadcast."""
    a, b = call.inputs[:2]
    batch, whole = index[:-2], call.outputs[0].shape[:-2]
    left = (*indexing.broadcast_index(batch, whole, a.shape[:-2]), index[-2], k)
    right = (*indexing.broadcast_index(batch, whole, b.shape[:-2]), k, index[-1])
    return Contraction((0, left), (1, right), a.shape[-1])


def _added(call: Call, index: Index, k: Dim) -> Contraction:
    """beta * addend + alpha * (a @ b)."""
    addend, a = call.inputs[:2]
    alpha, beta = call.kwargs.get("alpha", 1), call.kwargs.get("beta", 1)
    at = indexing.broadcast_index(index, call.outputs[0].shape, addend.shape)
    known = (0, at) if beta != 0 else None  # torch does not read it then
    left, right = (*index[:-2], index[-2], k), (*index[:-2], k, index[-1])
    return Contraction((1, left), (2, right), a.shape[-1], known, alpha, beta)


def _product(
    op: str, contraction: Callable[[Call, Index, Dim], Contraction], covers: Callable[[Call], str | None]
) -> None:
    register(Operator(f"aten.{op}", Kind.PRODUCT, contraction=contraction, covers=covers, note=_NOTE))


_product("linear.default", _linear, _covers(-2, 2))
_product("matmul.default", _matmul, _covers(-2, -2))
_product("mm.default", _matmul, _covers(2, 2))
_product("bmm.default", _matmul, _covers(3, 3))
_product("addmm.default", _added, _covers(2, 2, addend=True))
_product("baddbmm.default", _added, _covers(3, 3, addend=True))


def _letters(call: Call) -> tuple[str, str, str]:
    """Of an equation of two operands: the letters of each one's dimensions, and those of the result's."""
    operands, _, result = str(call.args[0]).replace(" ", "").partition("->")
    left, _, right = operands.partition(",")
    return left, right, result


def _covers_einsum(call: Call) -> str | None:
    equation = str(call.args[0])
    left, right, result = _letters(call)
    if len(call.inputs) != 2 or "->" not in equation or "." in equation:
        return "an equation that is not of two operands and a result, letter by letter"
    if {spec.dtype for spec in (*call.inputs, *call.outputs)} - set(FLOATS):
        return "an equation of other dtypes than float32 and half precision"
    if any(len(set(side)) != len(side) for side in (left, right, result)):
        return "an equation with a diagonal"
    summed = (set(left) & set(right)) - set(result)
    if len(summed) != 1 or (set(left) | set(right)) - set(result) != summed:
        return "an equation that sums over none or several indices, or over one of a single operand"
    sizes: dict[str, Dim] = {}
    for letter, size in zip(left + right, (n for spec in call.inputs for n in spec.shape), strict=True):
        if not symbols.same(sizes.setdefault(letter, size), size) or size == 0:
            return "an equation of operands without elements, or of sizes that are not known to be equal"
    return None


def _einsum(call: Call, index: Index, k: Dim) -> Contraction:
    """One summed letter; the others are the result's."""
    left, right, result = _letters(call)
    of = dict(zip(result, index, strict=True))
    first, second = (tuple(of.get(letter, k) for letter in side) for side in (left, right))
    (summed,) = set(left) - set(result)
    return Contraction((0, first), (1, second), call.inputs[0].shape[left.index(summed)])


_product("einsum.default", _einsum, _covers_einsum)


def _covers_attention(call: Call) -> str | None:
    factors = call.inputs[:3]
    if len({spec.dtype for spec in (*factors, *call.outputs)}) > 1 or factors[0].dtype not in FLOATS:
        return f"attention of {', '.join(sorted({str(spec.dtype) for spec in factors}))}"
    if any(len(spec.shape) != 4 for spec in factors):
        return "an operand that has not four dimensions"
    if call.argument(4, "dropout_p", 0.0):
        return "attention with dropout"
    if not isinstance(call.argument(5, "is_causal", False), bool):
        return "a flag that is no constant"
    if not all(isinstance(spec.shape[d], int) for spec in factors for d in (1, 3)):
        return "heads or a head's size that vary"
    if not isinstance(call.kwargs.get("scale"), (float, int, type(None))):
        return "a scale that is no number"
    query, key, value = (spec.shape for spec in factors)
    batches = [spec.shape[0] for spec in factors]
    if any((n == 1) != (batches[0] == 1) for n in batches) or key[1] != value[1]:
        return "batches or heads that broadcast"
    if query[1] != key[1] and not (call.kwargs.get("enable_gqa") and query[1] % key[1] == 0):
        return "heads that broadcast"
    mask = call.operand(3, "attn_mask")
    if mask is not None and call.inputs[mask].dtype not in (torch.bool, factors[0].dtype, torch.float32):
        return f"a mask of {call.inputs[mask].dtype}"
    return None


def _attention(call: Call, index: Index, place: Dim, inner: Dim) -> Attention:
    """softmax(scale * query @ key.T + mask) @ value for each head; heads of a group share keys and values."""
    query, key = (spec.shape for spec in call.inputs[:2])
    batch, head, row, lane = index
    group = symbols.floor_div(head, query[1] // key[1]) if query[1] != key[1] else head
    mask = call.operand(3, "attn_mask")
    masked = None
    if mask is not None:
        shape = call.inputs[mask].shape
        whole = (*query[:3], key[2])
        masked = (mask, indexing.broadcast_index((batch, head, row, place), whole, shape))
    return Attention(
        (0, (batch, head, row, inner)), (1, (batch, group, place, inner)), (2, (batch, group, place, lane)),
        query[3], key[2], call.kwargs.get("scale"), masked, row if call.argument(5, "is_causal", False) else None,
    )  # fmt: skip


register(
    Operator(
        "aten.scaled_dot_product_attention.default", Kind.PRODUCT, attention=_attention, covers=_covers_attention,
        note="scores, softmax and sums in float32, rounded once; a row with a NaN score is NaN",
    )
)  # fmt: skip
