"""What `model_code` is made of: functions with inputs to run them on. Weights keep the dtype of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

BATCH, HEADS, HEAD, HIDDEN, EXPERTS = 2, 3, 16, 32, 8
Tensor = torch.Tensor


class Written(NamedTuple):
    """A function of tensors; `inputs(dtype, length)`, by name; the names of the regions it becomes."""

    fn: Callable[..., Any]
    inputs: Callable[[torch.dtype, int], dict[str, Tensor]]
    names: tuple[str, ...]


def normal(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Standard normal numbers, the same in every run."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def tokens(**widths: int) -> Callable[[torch.dtype, int], dict[str, Tensor]]:
    """Inputs [batch, length, width] by name; names that start with a capital are vectors [width]."""

    def make(dtype: torch.dtype, length: int) -> dict[str, Tensor]:
        return {
            name.lower(): normal(k, *(() if name[0].isupper() else (BATCH, length)), width, dtype=dtype)
            for k, (name, width) in enumerate(widths.items())
        }

    return make


def token_logits(dtype: torch.dtype, length: int) -> dict[str, Tensor]:
    """Logits [length, vocabulary]."""
    return {"logits": normal(0, length, 97, dtype=dtype)}
