"""Whether two runs of one call gave the same."""

from __future__ import annotations

from typing import Any

import torch

from fusion.patterns.verify import pieces
from fusion.runtime.pytrees import flatten

_LOOSE = 1e-2  # of the greatest value: half precision's rounding, many times over


def same_results(left: Any, right: Any, *, exact: bool = True) -> bool:
    """Whether two results agree bit for bit, in structure, dtypes, shapes and strides; NaN equals NaN.

    Args:
        left, right: results.
        exact: False lets floating values differ as rounding does: torch takes another matrix product for the same
            operands when it is called under a mode, as recorded runs are.
    """
    left_leaves, left_tree = flatten(left)
    right_leaves, right_tree = flatten(right)
    if left_tree != right_tree:
        return False
    return all(_same_leaf(a, b, exact) for a, b in zip(left_leaves, right_leaves, strict=True))


def _same_leaf(a: Any, b: Any, exact: bool) -> bool:
    if a is b:
        return True
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        one_state = getattr(a, "__dict__", a) is getattr(b, "__dict__", b)  # an object that a re-run made anew
        return type(a) is type(b) and (one_state or _equal(a, b) or _both_nan(a, b))
    if a.dtype != b.dtype or a.shape != b.shape or a.device != b.device:
        return False
    if a.stride() != b.stride() and a.numel():
        return False
    if not _compares(a):
        return _same_bytes(a, b)
    if torch.equal(a, b) or all(bool(((x == y) | ((x != x) & (y != y))).all()) for (x, y), _ in pieces(a, b)):
        return True
    if exact or not a.is_floating_point():
        return False
    bound = _LOOSE * max(float(y.nan_to_num(0, 0, 0).abs().max()) for (y,), _ in pieces(b))
    return all(torch.allclose(x, y, rtol=0, atol=bound, equal_nan=True) for (x, y), _ in pieces(a, b))


def _equal(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except Exception:  # an object of the user's that does not compare: not known to be equal
        return False


_COMPARED = frozenset(
    {
        torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16,
        torch.float32, torch.float64, torch.complex64, torch.complex128,
    }
)  # fmt: skip


def _compares(tensor: torch.Tensor) -> bool:
    """Whether torch compares such tensors; for float8, wide unsigned and quantised ones it has no kernels."""
    return tensor.dtype in _COMPARED


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether tensors that torch does not compare hold the same bytes."""
    if a.is_quantized:
        if a.qscheme() != b.qscheme() or not torch.equal(a.dequantize(), b.dequantize()):
            return False
        return torch.equal(a.int_repr(), b.int_repr())
    return a.numel() == 0 or torch.equal(_bytes(a), _bytes(b))


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def _both_nan(a: Any, b: Any) -> bool:
    """Whether two Python numbers are NaN, in the same parts."""
    if isinstance(a, float):
        return a != a and b != b
    if isinstance(a, complex):
        parts = ((a.real, b.real), (a.imag, b.imag))
        return all(x == y or (x != x and y != y) for x, y in parts)
    return False
