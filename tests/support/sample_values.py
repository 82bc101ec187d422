"""What samples of calls are made of: arguments, and tensors that several operators take."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch


class Sample(NamedTuple):
    """The arguments of one call."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any] = {}  # noqa: RUF012 -- a NamedTuple's default, never written to


def sample(*args: Any, **kwargs: Any) -> Sample:
    return Sample(args, kwargs)


def real(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(*shape: int) -> torch.Tensor:
    return real(*shape).abs() + 0.1


def counted(*shape: int) -> torch.Tensor:
    return torch.arange(math.prod(shape)).view(shape)


X, Y, ROW = real(4, 6), real(4, 6, seed=1), real(6, seed=2)  # ROW broadcasts
SPECIAL = torch.tensor([0.0, -0.0, math.nan, math.inf, -math.inf, 0.5, -1.5, 2.5, 40.0, -40.0], dtype=torch.float64)
OTHER = torch.tensor([1.0, -2.0, 3.0, 0.5, -0.5, math.inf, math.nan, 0.75, -7.0, 6.0], dtype=torch.float64)
FIRST, SECOND = torch.arange(-12, 12).view(4, 6), torch.arange(5, 29).view(4, 6)
YES, NO = FIRST % 2 == 0, FIRST % 3 == 0
BOX = counted(2, 3, 4)
