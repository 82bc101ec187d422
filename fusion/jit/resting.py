"""Calls whose plan was dropped: they go to the original before anything is looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from fusion.jit.statistics import Statistics

RESTS = 127  # calls from one that is let through to the next; a prime, which no period divides
_FIRST_RESTS = 61


class Resting:
    """Tells which calls pass by a scope's plans once one of them was dropped: those as large as calls that would have
    taken it. It lets one in many through, for which a recording or a plan is looked for.

    Args:
        statistics: where calls that rest count as eager.
    """

    _LOOKS_AT = 7  # of so many calls one is looked at, to see how large it is
    _CLOSELY = 64  # calls that are all looked at, once one was of another size

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._sizes: list[tuple[int, int]] = []  # ranges
        self._left = _FIRST_RESTS
        self._closely = 0

    def add(self, arguments: Sequence[Any]) -> None:
        """A call would have taken a dropped plan: others as large rest from now on."""
        size = _size(arguments)
        if not any(low <= size <= high for low, high in self._sizes):
            near = next(((low, high) for low, high in self._sizes if low <= 2 * size and size <= 2 * high), None)
            if near is not None:
                self._sizes.remove(near)
            low, high = near or (size, size)
            self._sizes.append((min(low, size), max(high, size)))

    @property
    def any(self) -> bool:
        """Whether some calls rest."""
        return bool(self._sizes)

    def forget(self) -> None:
        """No call rests."""
        self._sizes.clear()
        self._left = _FIRST_RESTS

    def takes(self, *arguments: Any) -> bool:
        """Whether a call rests."""
        self._left -= 1
        if self._left <= 0:
            self._left = RESTS
            return False
        if self._closely or not self._left % self._LOOKS_AT:
            self._closely = max(0, self._closely - 1)
            size = _size(arguments)
            if not any(low <= size <= high for low, high in self._sizes):
                self._closely = self._CLOSELY
                return False
        self._statistics.eager += 1
        return True


def _size(arguments: Sequence[Any]) -> int:
    """How many elements the tensors among the arguments have, without those of subclasses: to ask takes too long."""
    size = 0
    for argument in arguments:
        if type(argument) is torch.Tensor:
            size += argument.numel()
    return size
