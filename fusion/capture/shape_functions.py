"""Shape functions in place of torch's, where those fix sizes that may vary or refuse what the operator takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._prims_common import corresponding_complex_dtype, is_contiguous_or_false

_CHOICES = ("self", "Scalar", "ScalarSelf", "ScalarOther")  # the overloads of `where` with something to choose


def _complex(real: torch.Tensor, imaginary: torch.Tensor) -> torch.Tensor:
    """Complex numbers made of two: torch's own function asks for strides as numbers, which fixes the sizes."""
    like = real + imaginary
    dtype = corresponding_complex_dtype(like.dtype)
    return torch.empty_strided(like.shape, like.stride(), dtype=dtype, device=like.device)


def _reshaped(call: Any) -> Callable[..., torch.Tensor]:
    """A reshaped tensor, with the sizes that were asked for where torch writes quotients of others."""

    def shape(tensor: torch.Tensor, sizes: Sequence[Any]) -> torch.Tensor:
        made: torch.Tensor = call(tensor, sizes)
        wanted = [m if isinstance(s, int) and s < 0 else s for s, m in zip(sizes, made.shape, strict=True)]
        if list(map(str, wanted)) == list(map(str, made.shape)) or not is_contiguous_or_false(made):
            return made
        return torch.empty(wanted, dtype=made.dtype, device=made.device)

    return shape


def _moments(call: Any) -> Callable[..., Any]:
    """A spread and a mean: torch's own function takes `unbiased` by name only, the operator by position too."""

    def shape(tensor: torch.Tensor, dim: Any, unbiased: bool = True, keepdim: bool = False) -> Any:
        return call(tensor, dim, correction=int(unbiased), keepdim=keepdim)

    return shape


def _where(call: Any) -> Callable[..., torch.Tensor]:
    """A choice: torch's own function takes no condition of bytes, which the operator still does."""

    def shape(condition: torch.Tensor, *choices: Any) -> torch.Tensor:
        made: torch.Tensor = call(condition.bool(), *choices)
        return made

    return shape


# By operator: takes the operator's arguments, returns fake results.
SHAPES: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.polar.default: _complex,
    torch.ops.aten.complex.default: _complex,
    torch.ops.aten.std_mean.dim: _moments(torch.ops.aten.std_mean.correction),
    torch.ops.aten.var_mean.dim: _moments(torch.ops.aten.var_mean.correction),
    **{op: _reshaped(op) for op in (torch.ops.aten.view.default, torch.ops.aten.reshape.default)},
    **{getattr(torch.ops.aten.where, o): _where(getattr(torch.ops.aten.where, o)) for o in _CHOICES},
}
